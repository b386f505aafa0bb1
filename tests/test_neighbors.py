"""Neighbour search against ASE, a literal double loop and the host, in batches, on bad input."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from neighbor_cases import (
    Edge,
    Structure,
    ase_edges,
    copper,
    edge_set,
    join,
    lengths,
    literal_edges,
    random_structure,
    slab,
    structures,
)
from ocp_faenet.geometry import neighbors as neighbors_module
from ocp_faenet.geometry import neighbors_pairs
from ocp_faenet.geometry.cells import build_lattices
from ocp_faenet.geometry.edges import edge_vectors
from ocp_faenet.geometry.neighbors import neighbor_list
from ocp_faenet.geometry.neighbors_bins import bin_edges, make_bins
from ocp_faenet.geometry.neighbors_common import HalfEdges, Search, make_search
from ocp_faenet.geometry.neighbors_order import both_directions
from ocp_faenet.geometry.neighbors_pairs import pair_edges

# ---------------------------------------------------------------- the same edges as others find


@settings(max_examples=100, deadline=None)
@given(st.lists(structures, min_size=1, max_size=4), st.sampled_from([2.03, 4.07]))
def test_same_edges_as_ase(batch: list[Structure], cutoff: float) -> None:
    found = neighbor_list(**join(batch), cutoff=cutoff)
    first, expected = 0, set()
    for number, structure in enumerate(batch):
        alone = ase_edges(structure, cutoff)
        assert int(found.neighbors[number]) == len(alone)
        expected |= {(j + first, i + first, *shift) for j, i, *shift in alone}
        first += len(structure[0])
    assert edge_set(found) == expected


@settings(max_examples=60, deadline=None)
@given(structures)
def test_cell_list_finds_the_edges_of_the_pair_search(structure: Structure) -> None:
    search = prepared(structure, 3.0)
    pairs = HalfEdges.cat(pair_edges(search, torch.arange(len(structure[0]))))
    binned = HalfEdges.cat(bin_edges(search, make_bins(search, 0)))
    assert full_set(pairs) == full_set(binned)


def prepared(structure: Structure, cutoff: float) -> Search:
    positions, cell, pbc = structure
    lattices = build_lattices(cell[None], pbc[None])
    return make_search(positions, torch.tensor([len(positions)]), lattices, cutoff)


def full_set(half: HalfEdges) -> set[Edge]:
    edges = both_directions(half)
    table = torch.cat((edges.target[:, None], edges.source[:, None], edges.offsets), dim=1)
    assert len(table.unique(dim=0)) == len(table)
    return {tuple(row) for row in table.tolist()}


@pytest.mark.parametrize("flags", [(True, True, True), (True, True, False), (False,) * 3])
def test_large_structures_take_the_cell_list_and_agree_with_ase(
    flags: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(1)
    cell = torch.tensor([[24.0, 0, 0], [7.0, 22.0, 0], [0, 2.0, 26.0]], dtype=torch.float64)
    fractional = torch.rand(900, 3, generator=generator, dtype=torch.float64) * 3 - 1
    large = (fractional @ cell, cell, torch.tensor(flags))
    small = random_structure(3, "skewed", 5, (True, True, False), 0.0)
    paired: list[Tensor] = []

    def recording(search: Search, atoms: Tensor) -> list[HalfEdges]:
        paired.append(atoms)
        return pair_edges(search, atoms)

    monkeypatch.setattr(neighbors_module, "pair_edges", recording)
    found = neighbor_list(**join([small, large]), cutoff=5.0)
    assert paired[0].tolist() == [0, 1, 2, 3, 4]
    expected = {(j + 5, i + 5, *shift) for j, i, *shift in ase_edges(large, 5.0)}
    assert edge_set(found) == expected | ase_edges(small, 5.0)


def test_literal_double_loop_with_lengths_and_order() -> None:
    structure = random_structure(7, "skewed", 4, (True, False, True), 1.0)
    expected = literal_edges(structure, 4.03, images=12)
    assert edge_set(neighbor_list(**join([structure]), cutoff=4.03)) == set(expected)
    found = neighbor_list(**join([structure]), cutoff=4.03, max_neighbors=5)
    for atom in range(4):
        mine = (found.edge_index[1] == atom).nonzero().flatten()
        nearest = sorted(d for edge, d in expected.items() if edge[1] == atom)[:5]
        got = lengths(found, structure[0], structure[1][None])[mine].tolist()
        assert got == pytest.approx(nearest, abs=1e-8)


@pytest.mark.slow
def test_same_edges_as_the_host() -> None:
    utils = pytest.importorskip("fairchem.core.common.utils")
    from types import SimpleNamespace

    batch = join([slab(40, seed, torch.float32) for seed in range(3)] + [copper(2, torch.float32)])
    data = SimpleNamespace(pos=batch["positions"], cell=batch["cell"], natoms=batch["natoms"])
    index, offsets, counts = utils.radius_graph_pbc(data, 5.0, 1000)
    theirs = torch.cat((index.T, offsets.long()), dim=1).tolist()
    ours = neighbor_list(**batch, cutoff=5.0)
    assert edge_set(ours) == {tuple(row) for row in theirs}
    assert ours.neighbors.tolist() == counts.long().tolist()


# ---------------------------------------------------------------- unlike structures in one batch


def test_batch_mates_change_nothing() -> None:
    batch = [
        copper(2),
        random_structure(0, "thin", 3, (True, True, True), 0.0),
        random_structure(1, "large", 9, (False, False, False), 0.0),
        slab(30),
    ]
    together = neighbor_list(**join(batch), cutoff=5.0, max_neighbors=14)
    alone = [neighbor_list(**join([s]), cutoff=5.0, max_neighbors=14) for s in batch]
    firsts = [0, *itertools.accumulate(len(s[0]) for s in batch)]
    shifted = [found.edge_index + first for found, first in zip(alone, firsts, strict=False)]
    assert torch.equal(together.edge_index, torch.cat(shifted, dim=1))
    assert torch.equal(together.cell_offsets, torch.cat([a.cell_offsets for a in alone]))
    assert together.neighbors.tolist() == [a.edge_index.shape[1] for a in alone]


def test_no_padding_to_the_worst_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thin cell in the batch adds its own candidates and no others."""
    tried: list[int] = []

    def counting(search: Search, target: Tensor, source: Tensor, offsets: Tensor) -> HalfEdges:
        tried.append(len(target))
        return within(search, target, source, offsets)

    within = neighbors_pairs.within_cutoff
    monkeypatch.setattr(neighbors_pairs, "within_cutoff", counting)

    def candidates(batch: list[Structure]) -> int:
        tried.clear()
        neighbor_list(**join(batch), cutoff=6.0)
        return sum(tried)

    thin = random_structure(0, "thin", 1, (True, True, True), 0.0)
    slabs = [slab(50, seed) for seed in range(3)]
    assert candidates([*slabs, thin]) == candidates(slabs) + candidates([thin])
    edges = neighbor_list(**join(slabs), cutoff=6.0).edge_index.shape[1]
    assert candidates(slabs) < 1.5 * edges


def test_blocks_of_any_size_give_the_same_list(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = join([slab(40), copper(2)])
    whole = neighbor_list(**batch, cutoff=6.0, max_neighbors=20)
    monkeypatch.setattr(neighbors_pairs, "budget_for", lambda device: 500)
    cut = neighbor_list(**batch, cutoff=6.0, max_neighbors=20)
    assert torch.equal(whole.edge_index, cut.edge_index)
    assert torch.equal(whole.cell_offsets, cut.cell_offsets)


def test_molecules_need_no_cell() -> None:
    positions = torch.tensor([[0.0, 0, 0], [1.1, 0, 0], [0, 9.0, 0], [0, 0, 0.9]])
    found = neighbor_list(positions, torch.tensor([2, 2]), cutoff=10.0)
    assert found.edge_index.tolist() == [[1, 0, 3, 2], [0, 1, 2, 3]]
    assert not found.cell_offsets.any()
    assert found.neighbors.tolist() == [2, 2]


def test_a_missing_cell_among_crystals_is_a_molecule() -> None:
    positions, cell, _ = copper(1)
    cells = torch.stack((cell, torch.zeros_like(cell)))
    found = neighbor_list(
        torch.cat((positions, positions)), torch.tensor([4, 4]), cutoff=3.0, cell=cells
    )
    assert found.neighbors.tolist() == [4 * 12, 4 * 3]


@pytest.mark.parametrize("pbc", [True, [True, True, True], torch.ones(2, 3, dtype=torch.bool)])
def test_spellings_of_periodicity(pbc: bool | list[bool] | Tensor) -> None:
    batch = join([slab(20), slab(25)])
    expected = neighbor_list(**batch, cutoff=4.0)
    found = neighbor_list(**{**batch, "pbc": pbc}, cutoff=4.0)
    assert torch.equal(found.edge_index, expected.edge_index)


def test_a_flat_cell_serves_a_slab() -> None:
    """ASE's slabs: the vector of an axis that does not repeat may be zero."""
    positions, cell, _ = slab(20)
    flags = torch.tensor([True, True, False])
    flat = cell * flags[:, None]
    full = neighbor_list(**join([(positions, cell, flags)]), cutoff=4.0)
    assert edge_set(neighbor_list(**join([(positions, flat, flags)]), cutoff=4.0)) == edge_set(full)


def test_empty_graphs_and_no_atoms() -> None:
    found = neighbor_list(torch.zeros(2, 3), torch.tensor([0, 1, 0, 1]), cutoff=3.0)
    assert found.edge_index.shape == (2, 0)
    assert found.cell_offsets.shape == (0, 3)
    assert found.neighbors.tolist() == [0, 0, 0, 0]
    nothing = neighbor_list(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), cutoff=3.0)
    assert nothing.edge_index.shape == (2, 0)
    assert nothing.neighbors.shape == (0,)


def test_one_atom_sees_its_own_images_only() -> None:
    cell = 2.0 * torch.eye(3)[None]
    found = neighbor_list(torch.full((1, 3), 0.3), torch.tensor([1]), cutoff=2.0, cell=cell)
    assert edge_set(found) == {
        (0, 0, *(sign * int(axis == k) for k in range(3))) for axis in range(3) for sign in (-1, 1)
    }


def test_coincident_atoms_have_no_edge_between_them() -> None:
    positions = torch.tensor([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [1.5, 0.5, 0.5]])
    found = neighbor_list(positions, torch.tensor([3]), cutoff=1.2)
    assert edge_set(found) == {(2, 0, 0, 0, 0), (2, 1, 0, 0, 0), (0, 2, 0, 0, 0), (1, 2, 0, 0, 0)}


# ---------------------------------------------------------------- vectors along the edges


def test_edge_vectors_point_from_target_to_source_and_carry_gradients() -> None:
    batch = join([slab(6), random_structure(1, "skewed", 3, (True, True, True), 1.0)])
    found = neighbor_list(**batch, cutoff=3.0)
    graph = torch.repeat_interleave(found.neighbors)
    positions = batch["positions"].clone().requires_grad_()
    cell = batch["cell"].clone().requires_grad_()

    def vectors(r: Tensor, c: Tensor) -> Tensor:
        return edge_vectors(r, found.edge_index, c, found.cell_offsets, graph)

    assert torch.autograd.gradcheck(vectors, (positions, cell))
    for edge, vector in enumerate(vectors(positions, cell)):
        j, i = found.edge_index[:, edge].tolist()
        image = found.cell_offsets[edge].double() @ cell[graph[edge]]
        torch.testing.assert_close(vector, positions[j] - positions[i] + image)
    assert float(vectors(positions, cell).norm(dim=1).max()) <= 3.0


def test_edge_vectors_of_one_cell_need_no_graph_index() -> None:
    positions, cell, pbc = slab(10)
    found = neighbor_list(**join([(positions, cell, pbc)]), cutoff=3.0)
    graph = torch.zeros(found.edge_index.shape[1], dtype=torch.long)
    arguments = (positions, found.edge_index, cell[None], found.cell_offsets)
    torch.testing.assert_close(edge_vectors(*arguments), edge_vectors(*arguments, graph))
    with pytest.raises(ValueError, match="pass the structure of each edge"):
        edge_vectors(positions, found.edge_index, cell.expand(2, 3, 3), found.cell_offsets)
    with pytest.raises(ValueError, match="cell is None"):
        edge_vectors(positions, found.edge_index, None, found.cell_offsets)


# ---------------------------------------------------------------- bad input


def bad(**changes: object) -> dict[str, object]:
    return {**join([slab(5), slab(6)]), "cutoff": 4.0, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": torch.zeros(11, 2)}, r"\(N, 3\)"),
        ({"positions": torch.zeros(11, 3, dtype=torch.long)}, "int64"),
        ({"natoms": torch.tensor([5, 5])}, "adds up to 10"),
        ({"natoms": torch.tensor([12, -1])}, "number of atoms"),
        ({"cutoff": 0.0}, "cutoff is 0.0"),
        ({"cutoff": math.inf}, "cutoff is inf"),
        ({"max_neighbors": 0}, "max_neighbors is 0"),
        ({"cell": torch.eye(3)}, r"\(2, 3, 3\)"),
        ({"cell": None, "pbc": True}, "no cell is given"),
        ({"pbc": torch.ones(3, 3)}, r"pbc has shape \(3, 3\)"),
        ({"cell": torch.full((2, 3, 3), math.nan)}, "structure 0 is not finite"),
        ({"cell": torch.eye(3).expand(2, 3, 3) * 1e-3, "pbc": True}, "give the cell in Å"),
    ],
)
def test_bad_input_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        neighbor_list(**bad(**changes))


def test_a_position_that_is_not_finite_names_atom_and_structure() -> None:
    batch = join([slab(5), slab(6)])
    batch["positions"][7, 1] = math.nan
    with pytest.raises(ValueError, match=r"atom 7 \(structure 1\) is not finite"):
        neighbor_list(**batch, cutoff=4.0)


@pytest.mark.parametrize("row", [[0.0, 0.0, 0.0], [8.0, 0.0, 0.0]])
def test_a_cell_without_volume_names_structure_and_remedy(row: list[float]) -> None:
    batch = join([slab(5), slab(6)])
    batch["cell"][1, 1] = torch.tensor(row)
    with pytest.raises(ValueError, match=r"structure 1 has no volume .*turn pbc off"):
        neighbor_list(**batch, cutoff=4.0)
