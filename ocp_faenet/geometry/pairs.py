"""The two directions of an edge."""

from __future__ import annotations

import torch
from torch import Tensor


def undirected_pairs(
    edge_index: Tensor, cell_offsets: Tensor | None, num_atoms: int
) -> tuple[Tensor, int]:
    """Number the undirected edges: ``j -> i`` in image ``o`` and ``i -> j`` in ``-o`` share one.

    Args:
        edge_index: ``(2, E)``.
        cell_offsets: ``(E, 3)`` integers, or ``None`` for a graph without periodicity.
        num_atoms: ``N``.

    Returns:
        ``(E,)`` int64 pair of each edge, and the number of pairs ``P <= E``. An edge whose
        reverse is missing (a cut-off neighbour list) has a pair of its own.
    """
    source, target = edge_index
    if cell_offsets is None:
        cell_offsets = edge_index.new_zeros(edge_index.shape[1], 3)
    offsets = cell_offsets.round().to(torch.int64)
    span = 2 * int(offsets.abs().max()) + 1 if offsets.numel() else 1
    code = (offsets[:, 0] * span + offsets[:, 1]) * span + offsets[:, 2]
    swap = (source > target) | ((source == target) & (code < 0))
    low, high = torch.where(swap, target, source), torch.where(swap, source, target)
    code = torch.where(swap, -code, code) + span**3
    key = (low * num_atoms + high) * (2 * span**3) + code
    unique, pair = torch.unique(key, return_inverse=True)
    return pair, unique.shape[0]
