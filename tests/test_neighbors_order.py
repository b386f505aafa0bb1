"""Neighbour search: the order of edges, shells of equal distance, and the maximum."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from neighbor_cases import (
    Edge,
    copper,
    edge_set,
    join,
    lengths,
    random_structure,
    rotation,
    slab,
)
from ocp_faenet.geometry import neighbors as neighbors_module
from ocp_faenet.geometry import neighbors_order
from ocp_faenet.geometry.neighbors import NeighborLimit, NeighborList, neighbor_list
from ocp_faenet.geometry.neighbors_order import lexsort


def test_sorted_by_target_then_distance() -> None:
    batch = join([slab(40), random_structure(5, "thin", 2, (True, True, True), 0.0)])
    found = neighbor_list(**batch, cutoff=4.0, max_neighbors=30)
    target = found.edge_index[1]
    length = lengths(found, batch["positions"], batch["cell"])
    assert bool((torch.diff(target) >= 0).all())
    assert bool(((torch.diff(length) > -1e-8) | (torch.diff(target) > 0)).all())
    assert int(torch.bincount(target).max()) == 30


def test_edge_set_is_symmetric_without_a_maximum() -> None:
    edges = edge_set(neighbor_list(**join([slab(40)]), cutoff=5.0))
    assert edges == {(i, j, -a, -b, -c) for j, i, a, b, c in edges}


@pytest.mark.parametrize(
    ("limit", "count"),
    [(NeighborLimit.STRICT, 20), (NeighborLimit.SHELL, 42), (NeighborLimit.COMPLETE, 18)],
)
def test_what_happens_to_a_shell_that_does_not_fit(limit: NeighborLimit, count: int) -> None:
    batch = join([copper(2)])
    found = neighbor_list(**batch, cutoff=5.0, max_neighbors=20, limit=limit)
    assert torch.bincount(found.edge_index[1]).tolist() == [count] * 32
    everything = neighbor_list(**batch, cutoff=5.0, max_neighbors=42, limit=limit)
    assert edge_set(everything) == edge_set(neighbor_list(**batch, cutoff=5.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("limit", list(NeighborLimit))
def test_pose_does_not_choose_among_ties(dtype: torch.dtype, limit: NeighborLimit) -> None:
    def edges(turn: Tensor) -> NeighborList:
        positions, cell, pbc = copper(2, dtype)
        turned = (positions @ turn, cell @ turn, pbc)
        return neighbor_list(**join([turned]), cutoff=6.0, max_neighbors=20, limit=limit)

    still = edges(torch.eye(3, dtype=dtype))
    for seed in range(5):
        turned = edges(rotation(seed, dtype))
        assert torch.equal(turned.edge_index, still.edge_index)
        assert torch.equal(turned.cell_offsets, still.cell_offsets)


def test_without_a_tie_width_the_pose_does_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the plain order by distance follows rounding noise."""
    positions, cell, pbc = copper(2, torch.float32)
    monkeypatch.setattr(neighbors_module, "tie_width", lambda dtype: 0.0)
    found = set()
    for seed in range(3):
        turn = rotation(seed, torch.float32)
        turned = join([(positions @ turn, cell @ turn, pbc)])
        found.add(frozenset(edge_set(neighbor_list(**turned, cutoff=6.0, max_neighbors=20))))
    assert len(found) == 3


def relabelled(found: NeighborList, order: Tensor) -> set[Edge]:
    """Edges of atoms taken in ``order`` in the numbers from before."""
    names = order.tolist()
    return {(names[j], names[i], *shift) for j, i, *shift in edge_set(found)}


@pytest.mark.parametrize("limit", list(NeighborLimit))
def test_order_of_atoms_does_not_matter(limit: NeighborLimit) -> None:
    for structure in (slab(50), copper(2)):
        positions, cell, pbc = structure
        order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(0))
        options = {"cutoff": 6.0, "max_neighbors": 20, "limit": limit}
        before = neighbor_list(**join([structure]), **options)
        after = neighbor_list(**join([(positions[order], cell, pbc)]), **options)
        # Cutting a shell of equivalent atoms must choose by number: no rule could avoid it.
        same = limit is not NeighborLimit.STRICT or structure[0].shape[0] == 50
        assert (relabelled(after, order) == edge_set(before)) is same


def test_wrapping_moves_the_offsets_and_nothing_else() -> None:
    for positions, cell, pbc in (slab(50), copper(2)):
        generator = torch.Generator().manual_seed(0)
        moves = torch.randint(-3, 4, (len(positions), 3), generator=generator)
        moved = positions + moves.double() @ cell
        before = neighbor_list(**join([(positions, cell, pbc)]), cutoff=6.0, max_neighbors=20)
        after = neighbor_list(**join([(moved, cell, pbc)]), cutoff=6.0, max_neighbors=20)
        assert torch.equal(before.edge_index, after.edge_index)
        source, target = after.edge_index
        assert torch.equal(before.cell_offsets, after.cell_offsets + moves[source] - moves[target])


def test_ties_prefer_sources_with_fewer_neighbours() -> None:
    """Atom 0 sits between 1, which has a further neighbour, and 2, which has none."""
    positions = torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [-1.0, 0, 0], [1.9, 0, 0]])
    found = neighbor_list(positions, torch.tensor([4]), cutoff=1.5, max_neighbors=1)
    assert found.edge_index[0, found.edge_index[1] == 0].tolist() == [2]
    assert found.edge_index[0, found.edge_index[1] == 1].tolist() == [3]


@pytest.mark.parametrize("cells", [1, 3])
def test_a_shell_on_the_cutoff_is_in_whole_in_every_pose(cells: int) -> None:
    positions, cell, pbc = copper(cells)
    shell = 3.61 * math.sqrt(1.5)
    for seed in range(5):
        turn = rotation(seed)
        batch = join([(positions @ turn, cell @ turn, pbc)])
        degree = torch.bincount(neighbor_list(**batch, cutoff=shell).edge_index[1])
        assert set(degree.tolist()) == {42}


def test_float32_positions_are_decided_in_float64() -> None:
    positions, cell, pbc = slab(60, dtype=torch.float32)
    single = neighbor_list(**join([(positions, cell, pbc)]), cutoff=6.0)
    double = neighbor_list(**join([(positions.double(), cell.double(), pbc)]), cutoff=6.0)
    assert edge_set(single) == edge_set(double)


@given(st.lists(st.tuples(*[st.integers(-(2**40), 2**40)] * 3), min_size=1, max_size=30))
def test_lexsort_is_pythons_sort(rows: list[tuple[int, int, int]]) -> None:
    keys = [torch.tensor(column) for column in zip(*rows, strict=True)]
    assert lexsort(keys).tolist() == sorted(range(len(rows)), key=lambda k: rows[k])


def test_shell_width_is_wider_than_any_tie() -> None:
    widths = [neighbors_order.tie_width(t) for t in (torch.float32, torch.float64)]
    assert max(widths) < neighbors_order.SHELL_WIDTH
