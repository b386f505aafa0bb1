"""Neighbour search by cell list: for large structures, linear in the number of atoms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ocp_faenet.geometry.neighbors_common import (
    HalfEdges,
    Search,
    blocks,
    budget_for,
    ranges,
    within_cutoff,
)


@dataclass(frozen=True)
class Bins:
    """Atoms of one structure sorted into boxes along its own axes."""

    first: int  # index of the structure's first atom
    sizes: list[int]  # bins along each axis
    sides: list[int]  # bins to look at on each side, per axis
    periodic: list[bool]  # per axis
    place: Tensor  # (3, n) int64, the bin of each atom
    wrapped: Tensor  # (3, n) float64, lattice vectors taken off to bring the atom into the cell

    @property
    def candidates_per_pair(self) -> float:
        """Candidates over the number of atom pairs, were the atoms spread evenly."""
        seen = 1.0
        for side, size, periodic in zip(self.sides, self.sizes, self.periodic, strict=True):
            beyond = 0 if periodic else side * (side + 1)
            seen *= ((2 * side + 1) * size - beyond) / size**2
        return seen


def make_bins(search: Search, graph: int) -> Bins:
    """Sort structure ``graph`` into bins at least one cutoff wide where it is wider than that.

    Axes that do not repeat are binned between their outermost atoms. There are never many more
    bins than atoms.
    """
    first, natoms = int(search.first[graph]), int(search.natoms[graph])
    periodic = search.periodic[:, graph, None]  # (3, 1)
    fractional = search.fractional[:, first : first + natoms]
    wrapped = fractional.floor().where(periodic, 0.0)
    place = fractional - torch.where(periodic, wrapped, fractional.amin(1, keepdim=True))
    span = torch.where(periodic, 1.0, place.amax(1, keepdim=True)).clamp(min=1e-9)  # (3, 1)
    reach = search.reach[:, graph, None] / span
    size = reach.reciprocal().floor()
    for axis in range(3):
        room = 2.0 * natoms / float(size.clamp(min=1).prod())
        size[axis] = (size[axis] * min(room, 1.0)).floor().clamp(min=1)
    sides = (reach * size).ceil()
    sides = torch.where(periodic, sides, torch.minimum(sides, size - 1))
    return Bins(
        first=first,
        sizes=[int(n) for n in size.flatten().tolist()],
        sides=[int(n) for n in sides.flatten().tolist()],
        periodic=periodic.flatten().tolist(),
        place=torch.minimum((place / span * size).floor(), size - 1).long(),
        wrapped=wrapped,
    )


def bin_edges(search: Search, bins: Bins) -> list[HalfEdges]:
    """Half edges of one structure from the atoms in half of the bins around each atom."""
    device = bins.place.device
    steps = [torch.arange(-side, side + 1, device=device) for side in bins.sides]
    stencil = torch.cartesian_prod(*steps).T  # (3, 2 S - 1), rising
    stencil = stencil[:, stencil.shape[1] // 2 :].contiguous()  # (3, S), first the own bin
    natoms = bins.place.shape[1]
    box = _number(list(bins.place), bins.sizes)
    filled = torch.bincount(box, minlength=math.prod(bins.sizes))
    contents = _Contents(box.argsort(stable=True), filled, filled.cumsum(0) - filled)
    per_atom = stencil.shape[1] + bins.candidates_per_pair * natoms
    costs = torch.full((natoms,), per_atom, device=device)
    parts = []
    for low, high in blocks(costs, budget_for(device)):
        target, source, offsets = _block(bins, contents, stencil, low, high)
        found = within_cutoff(search, target + bins.first, source + bins.first, offsets)
        parts += [found, _own_images_mirrored(found)]
    return parts


@dataclass(frozen=True)
class _Contents:
    order: Tensor  # (n,) atoms by bin
    filled: Tensor  # (bins,) atoms in each bin
    start: Tensor  # (bins,) where each bin begins in ``order``


def _block(
    bins: Bins, contents: _Contents, stencil: Tensor, low: int, high: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates (C,) for the atoms ``low`` to ``high``: targets, sources, offsets (3, C)."""
    images, around = [], []
    inside = torch.ones((high - low) * stencil.shape[1], dtype=torch.bool, device=stencil.device)
    for axis, size in enumerate(bins.sizes):
        place = (bins.place[axis, low:high, None] + stencil[axis]).flatten()  # (R * S,)
        images.append(torch.div(place, size, rounding_mode="floor"))
        around.append(place - images[axis] * size)
        if not bins.periodic[axis]:
            inside &= images[axis] == 0
    box = _number(around, bins.sizes)
    row, number = ranges(contents.filled.index_select(0, box) * inside)  # (C,)
    source = contents.order.index_select(
        0, contents.start.index_select(0, box).index_select(0, row).add_(number)
    )
    target = low + torch.div(row, stencil.shape[1], rounding_mode="floor")
    own_bin = row - (target - low) * stencil.shape[1] == 0
    kept = (~own_bin | (source < target)).nonzero().flatten()
    source, target, row = (t.index_select(0, kept) for t in (source, target, row))
    offsets = torch.empty(3, len(row), dtype=bins.wrapped.dtype, device=row.device)
    for axis, wrapped in enumerate(bins.wrapped):
        image = images[axis].index_select(0, row)
        offsets[axis] = wrapped.index_select(0, target) - wrapped.index_select(0, source) + image
    return target, source, offsets


def _own_images_mirrored(found: HalfEdges) -> HalfEdges:
    """The other sign of the edges between an atom and its own images."""
    own = (found.target == found.source).nonzero().flatten()
    atom = found.target.index_select(0, own)
    offsets = found.offsets.index_select(1, own).neg_()
    return HalfEdges(atom, atom, offsets, found.squared.index_select(0, own))


def _number(place: list[Tensor], sizes: list[int]) -> Tensor:
    """One number for the bin at ``place`` (three of (K,)), row-major."""
    return (place[0] * sizes[1] + place[1]) * sizes[2] + place[2]
