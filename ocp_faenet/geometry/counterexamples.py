"""Pairs of structures that differ, yet look alike to networks that see too little of them.

Edges belong to the pair: they are not found by a cutoff. Every edge of a chain or of twisted or
forked ends is `BOND` long, so that what is left to tell are angles, and farther-reaching things.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Å, length of bonds.
BOND = 3.0
#: Å, with which networks should be built: next neighbours in chains are farther.
CUTOFF = 4.5
#: Atomic numbers: what chains are of, and the two kinds of arms of a fork.
CARBON, NITROGEN, OXYGEN = 6, 7, 8
#: A bent bond leaves the axis by 4/5 of its length, and goes on along it by 3/5.
ACROSS, ALONG = 0.8, 0.6


@dataclass(frozen=True)
class Structure:
    """Atoms and the edges between them.

    Attributes:
        positions: ``(N, 3)`` float64, Å.
        atomic_numbers: ``(N,)`` int64.
        edge_index: ``(2, E)`` int64, each edge in both directions.
    """

    positions: Tensor
    atomic_numbers: Tensor
    edge_index: Tensor


@dataclass(frozen=True)
class Pair:
    """Two structures that are not congruent (save for `mirror_images`, congruent by reflection)."""

    name: str
    first: Structure
    second: Structure


def k_chains(k: int) -> Pair:
    """``k`` atoms in a row, one more bent off at each end: to the same side, or to both.

    Told apart by ``k // 2 + 1`` rounds of the geometric Weisfeiler-Leman test (Joshi et al., arXiv
    2301.09308, section 5). They have ``k + 2`` atoms; the report's ``k`` counts them all.

    Raises:
        ValueError: fewer than two atoms in the row.
    """
    return _ends("chain", k, [0.0], [0.0], [math.pi])


def forked_chains(k: int) -> Pair:
    """A row of ``k`` atoms, each end with an arm of nitrogen and an opposite one of oxygen.

    In the second structure the arms of one end are exchanged. Both put atoms on the same points,
    so that axes of inertia say nothing: our own, to tell what frames see from what messages carry.

    Raises:
        ValueError: fewer than two atoms in the row.
    """
    arms = [0.0, math.pi]
    return _ends("fork", k, arms, arms, arms[::-1], [NITROGEN, OXYGEN])


def twisted_ends(fold: int) -> Pair:
    """A row of ``fold`` atoms with ``fold`` arms at each end: eclipsed, or staggered.

    The report's rotationally symmetric structures (section 2.2). Whatever an end sends along the
    row is unchanged by a turn of ``2 pi / fold``, so tensors of lower order than ``fold`` cannot
    hold how it is turned (Joshi et al., section 5).

    Raises:
        ValueError: a fold of less than two.
    """
    arms = [2 * math.pi * arm / fold for arm in range(fold)]
    return _ends("fold", fold, arms, arms, [angle + math.pi / fold for angle in arms])


def _ends(
    name: str,
    k: int,
    low: Sequence[float],
    high: Sequence[float],
    changed: Sequence[float],
    numbers: Sequence[int] | None = None,
) -> Pair:
    """A row along y with arms at the angles ``low`` and ``high``, or ``low`` and ``changed``."""
    if k < 2:
        raise ValueError(f"{name}: {k} is too few; at least 2")
    kinds = list(numbers or [CARBON] * len(low))
    row = torch.zeros(k, 3, dtype=torch.float64)
    row[:, 1] = BOND * torch.arange(k)
    count = len(low)
    edges = [(atom, atom + 1) for atom in range(k - 1)]
    edges += [(0, k + arm) for arm in range(count)]
    edges += [(k - 1, k + count + arm) for arm in range(count)]
    structures = [
        _structure(
            torch.cat([row, row[:1] + _arms(low, -1.0), row[-1:] + _arms(top, 1.0)]),
            edges,
            [CARBON] * k + kinds + kinds,
        )
        for top in (high, changed)
    ]
    return Pair(f"{name} {k}", *structures)


def _arms(angles: Sequence[float], way: float) -> Tensor:
    """``(A, 3)`` bonds that leave the y axis at the azimuths ``angles``, forward or backward."""
    azimuth = torch.tensor(angles, dtype=torch.float64)
    along = torch.full_like(azimuth, way * ALONG)
    return BOND * torch.stack([ACROSS * azimuth.cos(), along, ACROSS * azimuth.sin()], dim=-1)


def _structure(
    positions: Tensor, edges: Sequence[tuple[int, int]], numbers: Sequence[int]
) -> Structure:
    one_way = torch.tensor(edges).T
    return Structure(positions, torch.tensor(numbers), torch.cat([one_way, one_way.flip(0)], dim=1))


def _star(name: str, first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Pair:
    """An atom at the origin with neighbours, the longest bond of both `BOND` long."""
    points = [
        torch.tensor([[0.0, 0.0, 0.0], *arms], dtype=torch.float64) for arms in (first, second)
    ]
    scale = BOND / max(float(each.norm(dim=-1).max()) for each in points)
    edges = [(0, arm) for arm in range(1, len(points[0]))]
    numbers = [CARBON] * len(points[0])
    return Pair(name, *(_structure(scale * each, edges, numbers) for each in points))


def same_distances() -> Pair:
    """An atom with two bonds of one length, at an angle and in line: the same edges."""
    return _star("distances", [[5, 0, 0], [3, 0, 4]], [[5, 0, 0], [-5, 0, 0]])


def hexagon_and_triangles() -> Pair:
    """Six corners of an icosahedron: two opposite faces, or the belt between; all pairs are edges.

    Every atom of either has two others at the edge length, two at the second distance, and one
    opposite, so that no number of rounds over distances tells them apart (Pozdnyakov and Ceriotti,
    arXiv 2201.07136, of complete graphs).
    """
    golden = (1 + math.sqrt(5)) / 2
    corners = torch.tensor(
        [
            point
            for a in (1.0, -1.0)
            for b in (golden, -golden)
            for point in ((0.0, a, b), (a, b, 0.0), (b, 0.0, a))
        ],
        dtype=torch.float64,
    )
    corners = corners * (BOND / 2 / corners[0].norm())
    axis = torch.ones(3, dtype=torch.float64)  # through the middle of a face
    height = (corners @ axis).abs()
    faces = height > height.mean()
    edges = [(i, j) for i in range(6) for j in range(i)]
    first, second = (_structure(corners[part], edges, [CARBON] * 6) for part in (faces, ~faces))
    return Pair("distances, all pairs", first, second)


def same_angles() -> Pair:
    """Four neighbours with the same bonds and the same angles between them, as multisets.

    Pozdnyakov et al., Phys. Rev. Lett. 125, 166001 (arXiv 2001.11696), figure 1: the sign of one
    coordinate of the last neighbour exchanges its angles with the second and the third.
    """
    common = [[5, 0, 5], [5, 5, 5], [-5, -5, 5]]
    return _star("angles", [*common, [0, 5, 5]], [*common, [0, -5, 5]])


def same_tetrahedra() -> Pair:
    """Seven neighbours with the same distances, angles and unsigned volumes, as multisets.

    Pozdnyakov et al., as `same_angles`, figure 2: two triangles, one above the other and turned
    by 18 degrees, and one more neighbour above the one or below the other.
    """
    triangle = torch.tensor([[3, 2, -4], [0, 2, 5], [0, 2, -5]], dtype=torch.float64)
    angle = math.pi / 10
    turn = torch.tensor(
        [
            [math.cos(angle), 0, math.sin(angle)],
            [0, 1, 0],
            [-math.sin(angle), 0, math.cos(angle)],
        ],
        dtype=torch.float64,
    )
    below = (triangle * torch.tensor([1.0, -1.0, 1.0])) @ turn.T
    common = [*triangle.tolist(), *below.tolist()]
    return _star("tetrahedra", [*common, [0, 5, 0]], [*common, [0, -5, 0]])


def mirror_images() -> Pair:
    """Four different neighbours of one atom and their reflection: congruent, but by no rotation."""
    arms = [[5.0, 0.0, 0.0], [0.0, 4.5, 0.0], [0.0, 0.0, 4.0], [2.0, 1.5, 1.0]]
    return _star("mirror images", arms, [[-x, y, z] for x, y, z in arms])


def counterexamples() -> list[Pair]:
    """The pairs that belong to no family."""
    return [
        same_distances(),
        hexagon_and_triangles(),
        same_angles(),
        same_tetrahedra(),
        mirror_images(),
    ]
