"""Sums over segments (atoms of a graph, edges of an atom), the slow part of message passing."""

from __future__ import annotations

import torch
from torch import Tensor


def widened(values: Tensor) -> Tensor:
    """The values in the precision in which many of them are summed: single at least.

    A sum that is kept in bfloat16 no longer grows at 256 terms.
    """
    half = values.dtype in (torch.bfloat16, torch.float16)
    return values.float() if half else values


def segment_sum(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """Sum the rows of ``values`` that share a segment.

    .. math:: y_s = \\sum_{e : index_e = s} x_e

    Args:
        values: ``(..., E, C)``, rows along the last axis but one.
        index: ``(E,)`` int64, the segment of each row, in ``[0, num_segments)``.
        num_segments: number of segments ``S``; empty ones give zeros.

    Returns:
        ``(..., S, C)``, in the dtype of ``values``.
    """
    return _wide_sum(values, index, num_segments).to(values.dtype)


def _wide_sum(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    values = widened(values)
    out = values.new_zeros(*values.shape[:-2], num_segments, values.shape[-1])
    if values.device.type == "cpu":  # whole rows at a time
        return out.index_add(-2, index, values)
    expanded = index.unsqueeze(-1).expand(values.shape)
    return out.scatter_add_(-2, expanded, values)


def segment_count(index: Tensor, num_segments: int) -> Tensor:
    """Rows in each segment: ``(S,)`` int64."""
    # Not `torch.bincount`, which makes the host wait for the device.
    return index.new_zeros(num_segments).scatter_add_(0, index, torch.ones_like(index))


def segment_mean(
    values: Tensor, index: Tensor, num_segments: int, count: Tensor | None = None
) -> Tensor:
    """Mean of the rows of each segment; an empty segment gives zeros. Shapes as `segment_sum`.

    Args:
        count: ``(S,)`` rows in each segment, where they are known already.
    """
    count = segment_count(index, num_segments) if count is None else count
    count = count.clamp(min=1)
    total = _wide_sum(values, index, num_segments)
    return (total / count.unsqueeze(-1).to(total.dtype)).to(values.dtype)
