"""Sums over segments (atoms of a graph, edges of an atom), the slow part of message passing."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_sum(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """Sum the rows of ``values`` that share a segment.

    .. math:: y_s = \\sum_{e : index_e = s} x_e

    Args:
        values: ``(..., E, C)``, rows along the last axis but one.
        index: ``(E,)`` int64, the segment of each row, in ``[0, num_segments)``.
        num_segments: number of segments ``S``; empty ones give zeros.

    Returns:
        ``(..., S, C)``.
    """
    out = values.new_zeros(*values.shape[:-2], num_segments, values.shape[-1])
    if values.device.type == "cpu":  # whole rows at a time
        return out.index_add(-2, index, values)
    expanded = index.unsqueeze(-1).expand(values.shape)
    return out.scatter_add_(-2, expanded, values)


def segment_count(index: Tensor, num_segments: int) -> Tensor:
    """Rows in each segment: ``(S,)`` int64."""
    return torch.bincount(index, minlength=num_segments)


def segment_mean(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """Mean of the rows of each segment; an empty segment gives zeros. Shapes as `segment_sum`."""
    count = segment_count(index, num_segments).clamp(min=1)
    return segment_sum(values, index, num_segments) / count.unsqueeze(-1).to(values.dtype)
