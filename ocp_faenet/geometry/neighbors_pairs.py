"""Neighbour search over atom pairs: for small structures, in one sweep over the batch."""

from __future__ import annotations

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


def pair_edges(search: Search, atoms: Tensor) -> list[HalfEdges]:
    """Half edges whose targets are ``atoms`` (M,), from every pair of atoms of a structure.

    A pair with the fractional difference ``f`` can be in range only for images ``n`` with
    ``|f_a + n_a| <= cutoff / spacing_a`` on each axis: only these are enumerated, which leaves
    about two candidates per edge whatever the batch-mates are.
    """
    graph = search.batch.index_select(0, atoms)
    sources = atoms - search.first.index_select(0, graph) + 1  # j = first atom .. i
    images = (2 * search.reach).where(search.periodic, 1.0).prod(0)  # (B,) for a pair, on average
    costs = sources * (1 + images).index_select(0, graph)
    return [
        _block(search, atoms[low:high], sources[low:high])
        for low, high in blocks(costs, budget_for(atoms.device))
    ]


def _block(search: Search, atoms: Tensor, sources: Tensor) -> HalfEdges:
    row, number = ranges(sources)
    target = atoms.index_select(0, row)  # (P,)
    graph = search.batch.index_select(0, atoms)
    source = number.add_(search.first.index_select(0, graph).index_select(0, row))  # (P,)
    boxes = [_image_range(search, axis, atoms, graph, row, source) for axis in range(3)]
    images = (boxes[0][1] * boxes[1][1]).mul_(boxes[2][1])  # (P,)
    pair, rest = ranges(images.long())  # (C,)
    offsets = _nth_image(boxes, pair, rest.to(images.dtype))
    return within_cutoff(
        search, target.index_select(0, pair), source.index_select(0, pair), offsets
    )


def _image_range(
    search: Search, axis: int, atoms: Tensor, graph: Tensor, row: Tensor, source: Tensor
) -> tuple[Tensor, Tensor]:
    """Lowest image and number of images along one axis for each pair, (P,) whole float64."""
    reach = search.reach[axis].index_select(0, graph)  # (M,)
    own = search.fractional[axis].index_select(0, atoms)
    other = search.fractional[axis].index_select(0, source)  # (P,)
    lowest = (own - reach).index_select(0, row).sub_(other).ceil_()
    highest = (own + reach).index_select(0, row).sub_(other).floor_()
    periodic = search.periodic[axis]
    if not bool(periodic.all()):
        repeats = periodic.index_select(0, graph).index_select(0, row)
        lowest = torch.where(repeats, lowest, lowest.clamp(min=0))
        highest = torch.where(repeats, highest, highest.clamp(max=0))
    return lowest, highest.sub_(lowest).add_(1).clamp_(min=0)


def _nth_image(boxes: list[tuple[Tensor, Tensor]], pair: Tensor, rest: Tensor) -> Tensor:
    """Image number ``rest`` (C,) of each pair's box as cell offsets, (3, C) float64.

    Floating-point division of whole numbers this small is exact after rounding down, and many
    times faster than integer division.
    """
    offsets = rest.new_empty(3, rest.shape[0])
    for axis in (2, 1):
        lowest, count = (t.index_select(0, pair) for t in boxes[axis])
        quotient = torch.div(rest, count).floor_()
        offsets[axis] = lowest.add_(rest).sub_(count.mul_(quotient))
        rest = quotient
    offsets[0] = boxes[0][0].index_select(0, pair).add_(rest)
    return offsets
