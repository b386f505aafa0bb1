"""What both neighbour searches share: the prepared batch, its half edges, exact distances."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ocp_faenet.geometry.cells import Lattices

CUTOFF_SLACK = 1e-9
"""Relative slack of the cutoff: float64 rounding cannot split a shell that lies on it."""
ZERO_LENGTH = 1e-5
"""Å: two atoms closer than this coincide; such an edge has no direction and is left out."""
_FRACTION_SLACK = 1e-6


@dataclass(frozen=True)
class Search:
    """A batch made ready, in float64.

    Coordinates come first in every array: column by column is several times faster on a CPU.
    """

    positions: Tensor  # (3, N) Å
    fractional: Tensor  # (3, N)
    batch: Tensor  # (N,) structure of each atom
    first: Tensor  # (B,) index of each structure's first atom
    natoms: Tensor  # (B,)
    matrix: Tensor  # (3, 3, B) Å, cell vector by coordinate
    reach: Tensor  # (3, B) cutoff in plane spacings of each axis, never too short
    periodic: Tensor  # (3, B) bool
    cutoff: float  # Å


def make_search(positions: Tensor, natoms: Tensor, lattices: Lattices, cutoff: float) -> Search:
    """Prepare a batch: ``positions`` (N, 3) in Å, ``natoms`` (B,), lattices on the CPU."""
    device = positions.device
    batch = torch.repeat_interleave(natoms)
    coordinates = positions.to(torch.float64).T.contiguous()  # (3, N)
    inverse = lattices.inverse.permute(1, 2, 0).to(device).contiguous()  # (3, 3, B)
    reach = cutoff / lattices.spacing * (1 + _FRACTION_SLACK) + _FRACTION_SLACK
    return Search(
        positions=coordinates,
        fractional=_product(coordinates, inverse, batch),
        batch=batch,
        first=natoms.cumsum(0) - natoms,
        natoms=natoms,
        matrix=lattices.matrix.permute(1, 2, 0).to(device).contiguous(),
        reach=reach.T.to(device).contiguous(),
        periodic=lattices.periodic.T.to(device).contiguous(),
        cutoff=cutoff,
    )


@dataclass(frozen=True)
class HalfEdges:
    """Each edge between two atoms in one direction; those to an atom's own images in both."""

    target: Tensor  # (H,) int64
    source: Tensor  # (H,) int64
    offsets: Tensor  # (3, H) float64, whole numbers
    squared: Tensor  # (H,) float64, Å²

    @staticmethod
    def cat(parts: list[HalfEdges]) -> HalfEdges:
        """All parts, at least one, as one."""
        return HalfEdges(
            torch.cat([p.target for p in parts]),
            torch.cat([p.source for p in parts]),
            torch.cat([p.offsets for p in parts], dim=1),
            torch.cat([p.squared for p in parts]),
        )


def within_cutoff(search: Search, target: Tensor, source: Tensor, offsets: Tensor) -> HalfEdges:
    """Keep the candidates (C,), offsets (3, C), with ``|r_j - r_i + n C|`` in (0, cutoff].

    Elementwise float64 in one fixed order, so that both searches, and an edge whichever way it
    is met, agree.
    """
    graph = search.batch.index_select(0, target)
    shifts = _product(offsets, search.matrix, graph)
    squared = torch.zeros_like(shifts[0])
    for coordinate, shift in zip(search.positions, shifts, strict=True):
        step = coordinate.index_select(0, source).sub_(coordinate.index_select(0, target))
        step.add_(shift)
        squared.addcmul_(step, step)
    limit = (search.cutoff * (1 + CUTOFF_SLACK)) ** 2
    kept = ((squared <= limit) & (squared > ZERO_LENGTH**2)).nonzero().flatten()
    return HalfEdges(
        target.index_select(0, kept),
        source.index_select(0, kept),
        offsets.index_select(1, kept),
        squared.index_select(0, kept),
    )


def _product(rows: Tensor, matrix: Tensor, graph: Tensor) -> Tensor:
    """``rows[:, k] @ matrix[graph[k]]``: rows (3, K), matrix (3, 3, B), graph (K,), (3, K)."""
    result = torch.empty_like(rows)
    for column in range(3):
        entries = matrix[:, column].contiguous()  # (3, B)
        total = rows[0] * entries[0].index_select(0, graph)
        total.addcmul_(rows[1], entries[1].index_select(0, graph))
        result[column] = total.addcmul_(rows[2], entries[2].index_select(0, graph))
    return result


def ranges(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Rows repeated ``counts`` (R,) times, and each repeat's number from 0: both (sum,)."""
    row = torch.repeat_interleave(counts)
    start = counts.cumsum(0) - counts
    return row, torch.arange(row.shape[0], device=row.device) - start.index_select(0, row)


def blocks(costs: Tensor, budget: int) -> Iterator[tuple[int, int]]:
    """Cut rows with the given costs (R,) into runs whose cost is about ``budget``, one at least."""
    number = torch.div(costs.long().cumsum(0), budget, rounding_mode="floor")
    edges = (torch.diff(number).nonzero().flatten() + 1).tolist()
    yield from zip([0, *edges], [*edges, costs.shape[0]], strict=True)


def budget_for(device: torch.device) -> int:
    """Candidates held at a time: some 50 MB on a CPU, large enough to fill a GPU."""
    return 2**19 if device.type == "cpu" else 2**23
