"""Periodic neighbour search for a batch of unlike structures, in plain PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ocp_faenet.geometry.cells import (
    Lattices,
    Periodicity,
    build_lattices,
    resolve_periodicity,
)
from ocp_faenet.geometry.neighbors_bins import bin_edges, make_bins
from ocp_faenet.geometry.neighbors_common import HalfEdges, Search, make_search
from ocp_faenet.geometry.neighbors_order import (
    NeighborLimit,
    both_directions,
    order_edges,
    tie_width,
)
from ocp_faenet.geometry.neighbors_pairs import pair_edges

__all__ = ["NeighborLimit", "NeighborList", "neighbor_list"]

_LARGE = 300
"""Atoms from which the cell list is considered."""
_WORTH_BINS = 0.5
"""Candidates per atom pair under which the cell list is faster (measured on CPU)."""
_MOST_IMAGES = 1e6


@dataclass(frozen=True)
class NeighborList:
    """Edges of a batch, sorted by target, then by distance, then by the tie rule."""

    edge_index: Tensor  # (2, E) int64: row 0 the source j, row 1 the target i
    cell_offsets: Tensor  # (E, 3) int64: vector = pos[j] - pos[i] + cell_offsets @ cell
    neighbors: Tensor  # (B,) int64, edges of each structure


@torch.no_grad()
def neighbor_list(
    positions: Tensor,
    natoms: Tensor,
    *,
    cutoff: float,
    cell: Tensor | None = None,
    pbc: Periodicity | None = None,
    max_neighbors: int | None = None,
    limit: NeighborLimit = NeighborLimit.STRICT,
) -> NeighborList:
    """Edges ``j -> i`` in image ``n`` with ``0 < |r_j - r_i + n C| <= cutoff``, for a whole batch.

    The edges are those of ASE's ``neighbor_list`` (which leaves out a length that equals the
    cutoff) with the signs of the host's ``radius_graph_pbc``. Every structure is searched in its
    own images only; structures, and axes of a structure, may differ in periodicity. Positions may
    lie outside the cell: the offsets belong to the positions as given. Lengths are computed in
    float64 whatever the dtype, and a length within one part in 10⁹ of the cutoff counts as on it.
    Not differentiable: take vectors with :func:`~ocp_faenet.geometry.edges.edge_vectors`.

    Coincident atoms (closer than 1e-5 Å) have no edge between them, since it has no direction.

    Ties: distances closer than the rounding of the positions (1e-5 Å, 1e-9 Å in float64) count as
    equal. Among them come first sources with fewer neighbours inside the cutoff, then lower atom
    numbers, then lower cell offsets. Neither batch-mates, pose, nor wrapping change that choice.
    Where ``STRICT`` cuts through a shell of *equivalent* atoms, it does depend on the order of
    the atoms and on the choice of cell, as every such rule must; ``SHELL`` and ``COMPLETE`` do
    not cut shells (distances within 1e-3 Å) and depend on neither.

    Args:
        positions: (N, 3) in Å.
        natoms: (B,) atoms of each structure; zero is allowed.
        cutoff: in Å.
        cell: (B, 3, 3) in Å, rows are the cell vectors; ``None`` for molecules. Rows of axes that
            do not repeat are ignored.
        pbc: one flag, three for the axes, or (B, 3). ``None``: periodic along all axes wherever
            the cell is not all zero.
        max_neighbors: most edges into one atom, nearest first; ``None`` for no limit.
        limit: what happens to the shell at that limit.

    Raises:
        ValueError: shapes that do not fit, positions or cells that are not finite, a cell without
            volume along its periodic axes, or one so thin that its unit cannot be Å.
    """
    _check_input(positions, natoms, cutoff, cell, max_neighbors)
    periodic = resolve_periodicity(pbc, cell, natoms.shape[0])
    lattices = build_lattices(cell, periodic)
    _check_images(lattices, cutoff)
    natoms = natoms.to(positions.device)
    search = make_search(positions.detach(), natoms, lattices, cutoff)
    edges = both_directions(HalfEdges.cat(_half_edges(search)))
    width = tie_width(positions.dtype)
    order = order_edges(edges, positions.shape[0], width, max_neighbors, limit)
    target = edges.target.index_select(0, order)
    return NeighborList(
        edge_index=torch.stack((edges.source.index_select(0, order), target)),
        cell_offsets=edges.offsets.index_select(0, order),
        neighbors=torch.bincount(search.batch.index_select(0, target), minlength=len(natoms)),
    )


def _check_images(lattices: Lattices, cutoff: float) -> None:
    images = (2 * cutoff / lattices.spacing + 1).where(lattices.periodic, 1.0).prod(1)
    if bool((images > _MOST_IMAGES).any()):
        worst = int(images.argmax())
        raise ValueError(
            f"the lattice planes of structure {worst} lie {lattices.spacing[worst].tolist()} Å "
            f"apart, with {float(images[worst]):.0f} images within the cutoff of {cutoff} Å: give "
            "the cell in Å, or turn pbc off"
        )


def _half_edges(search: Search) -> list[HalfEdges]:
    """Small structures together, pair by pair; large ones by cell list where that is less work."""
    parts = []
    by_pairs = torch.ones_like(search.natoms, dtype=torch.bool)
    for graph in (search.natoms > _LARGE).nonzero().flatten().tolist():
        bins = make_bins(search, graph)
        if bins.candidates_per_pair < _WORTH_BINS:
            by_pairs[graph] = False
            parts += bin_edges(search, bins)
    atoms = by_pairs.index_select(0, search.batch).nonzero().flatten()
    return pair_edges(search, atoms) + parts


def _check_input(
    positions: Tensor, natoms: Tensor, cutoff: float, cell: Tensor | None, most: int | None
) -> None:
    if positions.ndim != 2 or positions.shape[1] != 3 or not positions.is_floating_point():
        raise ValueError(
            f"positions are {positions.dtype} {tuple(positions.shape)}: give (N, 3) in Å"
        )
    if natoms.ndim != 1 or natoms.is_floating_point():
        raise ValueError(f"natoms is {natoms.dtype} {tuple(natoms.shape)}: give (B,) integers")
    if int(natoms.sum()) != positions.shape[0] or bool((natoms < 0).any()):
        raise ValueError(
            f"natoms adds up to {int(natoms.sum())} and there are {positions.shape[0]} positions: "
            "give the number of atoms of each structure"
        )
    if cell is not None and cell.shape != (natoms.shape[0], 3, 3):
        raise ValueError(
            f"cell has shape {tuple(cell.shape)}: give one (3, 3) for each of the "
            f"{natoms.shape[0]} structures, ({natoms.shape[0]}, 3, 3)"
        )
    if not (math.isfinite(cutoff) and cutoff > 0):
        raise ValueError(f"cutoff is {cutoff}: give a positive length in Å")
    if most is not None and most < 1:
        raise ValueError(f"max_neighbors is {most}: give at least 1, or None for no limit")
    finite = torch.isfinite(positions).all(1)
    if not bool(finite.all()):
        atom = int((~finite).nonzero()[0])
        structure = int(torch.repeat_interleave(natoms)[atom])
        raise ValueError(
            f"the position of atom {atom} (structure {structure}) is not finite "
            f"({positions[atom].tolist()}): repair or drop the record"
        )
