"""Order of the edges, shells of equal distance, and the limit on neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from ocp_faenet.geometry.neighbors_common import HalfEdges

SHELL_WIDTH = 1e-3
"""Å between two distances that still belong to one shell (the host: 0.01 Å² at any length)."""


class NeighborLimit(str, Enum):
    """What happens to the shell of equal distances that does not fit under the maximum."""

    STRICT = "strict"  # cut: exactly the maximum, by the tie rule
    SHELL = "shell"  # kept whole: more than the maximum, as the host does by default
    COMPLETE = "complete"  # left out whole: never more, and no rule needed


def tie_width(dtype: torch.dtype) -> float:
    """Å between distances that count as equal for positions of ``dtype``: its rounding noise."""
    return 1e-9 if dtype == torch.float64 else 1e-5


@dataclass(frozen=True)
class Edges:
    """All directed edges, in no order."""

    target: Tensor  # (E,) int64
    source: Tensor  # (E,) int64
    offsets: Tensor  # (E, 3) int64
    distance: Tensor  # (E,) float64, Å


def both_directions(half: HalfEdges) -> Edges:
    """Every half edge with its mirror image."""
    other = (half.source != half.target).nonzero().flatten()
    offsets = torch.stack([axis.long() for axis in half.offsets], dim=1)  # (H, 3)
    distance = half.squared.sqrt()
    return Edges(
        torch.cat((half.target, half.source.index_select(0, other))),
        torch.cat((half.source, half.target.index_select(0, other))),
        torch.cat((offsets, offsets.index_select(0, other).neg_())),
        torch.cat((distance, distance.index_select(0, other))),
    )


def order_edges(
    edges: Edges, num_atoms: int, width: float, most: int | None, limit: NeighborLimit
) -> Tensor:
    """Which edges stay (K,), by target, distance, and within ties by the rule.

    Distances belong to one tie where each follows the one before within ``width``. In a tie come
    first sources with fewer neighbours inside the cutoff, then lower source numbers, then lower
    cell offsets, axis by axis.
    """
    if edges.target.shape[0] == 0:
        return edges.target
    degree = torch.bincount(edges.target, minlength=num_atoms)
    order = _by_distance(edges, num_atoms)
    distance = edges.distance.index_select(0, order)
    begins = _begins(distance, degree, width)
    if most is None or int(degree.max()) <= most:
        return _settle_ties(edges, order, begins, degree)
    rank = torch.arange(len(order), device=order.device)
    rank -= torch.repeat_interleave(degree.cumsum(0) - degree, degree)
    strict = limit is NeighborLimit.STRICT
    shells = begins if strict else _begins(distance, degree, SHELL_WIDTH)
    kept = _fitting(shells, rank, most, limit)
    order = _settle_ties(edges, order[kept], begins[kept], degree)
    return order[rank[kept] < most] if strict else order


def _by_distance(edges: Edges, num_atoms: int) -> Tensor:
    """Order by target, then distance, in one sort of whole numbers."""
    steps = 2 ** (62 - num_atoms.bit_length())
    scaled = edges.distance * ((steps - 1) / (1.001 * float(edges.distance.max())))
    keys = scaled.long().add_(edges.target, alpha=steps)
    return torch.argsort(keys)


def _begins(distance: Tensor, degree: Tensor, width: float) -> Tensor:
    """Whether a new shell begins at each ordered edge, (E,) bool."""
    begins = torch.ones_like(distance, dtype=torch.bool)
    begins[1:] = torch.diff(distance) > width
    begins[(degree.cumsum(0) - degree)[degree > 0]] = True
    return begins


def _fitting(shells: Tensor, rank: Tensor, most: int, limit: NeighborLimit) -> Tensor:
    """Ordered edges whose shell begins (``COMPLETE``: ends) within the first ``most``."""
    starts = shells.nonzero().flatten()  # (S,) first edge of each shell
    sizes = torch.diff(starts, append=starts.new_tensor([len(rank)]))
    decisive = starts + sizes - 1 if limit is NeighborLimit.COMPLETE else starts
    return torch.repeat_interleave(rank[decisive] < most, sizes).nonzero().flatten()


def _settle_ties(edges: Edges, order: Tensor, begins: Tensor, degree: Tensor) -> Tensor:
    """Put the edges of each tie in the order of the rule; all others stay where they are."""
    alone = begins.clone()
    alone[:-1] &= begins[1:]
    places = (~alone).nonzero().flatten()
    if len(places) == 0:
        return order
    tied = order[places]
    source = edges.source[tied]
    tie = begins.cumsum(0)[places]
    keys = [tie, degree[source], source, *edges.offsets.index_select(0, tied).unbind(1)]
    return order.index_copy(0, places, tied[lexsort(keys)])


def lexsort(keys: list[Tensor]) -> Tensor:
    """Stable order (K,) by several whole-number keys (K,), the first the most significant.

    Keys are packed into as few 64-bit numbers as their ranges allow: mostly one sort.
    """
    order = torch.arange(keys[0].shape[0], device=keys[0].device)
    bounds = torch.stack([torch.stack(key.aminmax()) for key in keys]).tolist()
    packed, size = torch.zeros_like(order), 1
    for key, (low, high) in zip(reversed(keys), reversed(bounds), strict=True):
        if size * (high - low + 1) >= 2**62:
            order = order[packed[order].argsort(stable=True)]
            packed, size = torch.zeros_like(order), 1
        packed.add_(key - low, alpha=size)
        size *= high - low + 1
    return order[packed[order].argsort(stable=True)]
