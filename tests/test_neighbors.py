"""Neighbour search against ASE, a literal double loop, the host, and its own invariances."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ocp_faenet.geometry import neighbors as neighbors_module
from ocp_faenet.geometry import neighbors_order, neighbors_pairs
from ocp_faenet.geometry.cells import build_lattices
from ocp_faenet.geometry.edges import edge_vectors
from ocp_faenet.geometry.neighbors import NeighborLimit, NeighborList, neighbor_list
from ocp_faenet.geometry.neighbors_bins import bin_edges, make_bins
from ocp_faenet.geometry.neighbors_common import HalfEdges, Search, make_search
from ocp_faenet.geometry.neighbors_order import both_directions, lexsort
from ocp_faenet.geometry.neighbors_pairs import pair_edges

Edge = tuple[int, ...]
Structure = tuple[Tensor, Tensor, Tensor]  # positions (N, 3), cell (3, 3), pbc (3,)

FLAGS = list(itertools.product([False, True], repeat=3))


def edge_set(found: NeighborList) -> set[Edge]:
    table = torch.cat((found.edge_index.T, found.cell_offsets), dim=1)
    edges = {tuple(row) for row in table.tolist()}
    assert len(edges) == table.shape[0]  # no edge twice
    return edges


def lengths(found: NeighborList, positions: Tensor, cell: Tensor | None) -> Tensor:
    if cell is None:
        return edge_vectors(positions, found.edge_index).norm(dim=1)
    graph = torch.repeat_interleave(found.neighbors)
    vectors = edge_vectors(positions, found.edge_index, cell, found.cell_offsets, graph)
    return vectors.norm(dim=1)


def literal_edges(structure: Structure, cutoff: float, images: int) -> dict[Edge, float]:
    """Every pair in every image, one after the other, with the length of each edge."""
    positions, cell, pbc = (t.tolist() for t in structure)
    spans = [range(-images, images + 1) if on else range(1) for on in pbc]
    edges = {}
    for i, j in itertools.product(range(len(positions)), repeat=2):
        for offset in itertools.product(*spans):
            image = [
                positions[j][x] + sum(n * vector[x] for n, vector in zip(offset, cell, strict=True))
                for x in range(3)
            ]
            length = math.dist(image, positions[i])
            if 1e-5 < length <= cutoff:
                edges[(j, i, *offset)] = length
    return edges


def ase_edges(structure: Structure, cutoff: float) -> set[Edge]:
    primitive = pytest.importorskip("ase.neighborlist").primitive_neighbor_list
    positions, cell, pbc = (t.numpy() for t in structure)
    i, j, offsets, length = primitive("ijSd", pbc, cell, positions, cutoff)
    assume(not bool((abs(length - cutoff) < 1e-7).any()))  # ASE leaves out d == cutoff
    return {
        (int(b), int(a), *map(int, shift))
        for a, b, shift, d in zip(i, j, offsets, length, strict=True)
        if d > 1e-5
    }


def join(structures: list[Structure]) -> dict[str, Tensor]:
    return {
        "positions": torch.cat([s[0] for s in structures]),
        "natoms": torch.tensor([len(s[0]) for s in structures]),
        "cell": torch.stack([s[1] for s in structures]),
        "pbc": torch.stack([s[2] for s in structures]),
    }


def random_structure(
    seed: int, kind: str, natoms: int, flags: tuple[bool, ...], outside: float
) -> Structure:
    generator = torch.Generator().manual_seed(seed)
    size = {"thin": 1.5, "large": 25.0, "skewed": 4.0, "left": 5.0, "mixed": 6.0}[kind]
    cell = torch.eye(3, dtype=torch.float64) * size
    if kind == "mixed":
        cell = cell * torch.tensor([[0.3], [1.0], [4.0]])
    tilt = {"skewed": 2.5, "thin": 0.2}.get(kind, 0.3)
    cell = cell + tilt * size * torch.randn(3, 3, generator=generator, dtype=torch.float64).tril(-1)
    if kind == "left":
        cell = cell.flip(0)
    fractional = torch.rand(natoms, 3, generator=generator, dtype=torch.float64)
    spread = torch.randn(natoms, 3, generator=generator, dtype=torch.float64).mul(outside).round()
    return (fractional + spread) @ cell, cell, torch.tensor(flags)


structures = st.builds(
    random_structure,
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(["thin", "large", "skewed", "left", "mixed"]),
    natoms=st.integers(1, 9),
    flags=st.sampled_from(FLAGS),
    outside=st.sampled_from([0.0, 2.0]),
)


def slab(natoms: int = 60, seed: int = 0, dtype: torch.dtype = torch.float64) -> Structure:
    """A generic slab: no two distances alike."""
    generator = torch.Generator().manual_seed(seed)
    cell = torch.tensor([[8.0, 0, 0], [3.0, 7.5, 0], [0, 0, 30.0]], dtype=dtype)
    scale = torch.tensor([1.0, 1.0, 0.4], dtype=dtype)
    fractional = torch.rand(natoms, 3, generator=generator, dtype=dtype) * scale
    return fractional @ cell, cell, torch.tensor([True, True, True])


def copper(repeat: int = 2, dtype: torch.dtype = torch.float64) -> Structure:
    """Cubic fcc: whole shells of 12, 6, 24, ... at equal distance."""
    basis = torch.tensor([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]], dtype=dtype)
    corners = torch.cartesian_prod(*[torch.arange(repeat, dtype=dtype)] * 3)
    positions = (corners[:, None] + basis).reshape(-1, 3) * 3.61
    cell = torch.eye(3, dtype=dtype) * 3.61 * repeat
    return positions, cell, torch.tensor([True, True, True])


def rotation(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    return (matrix * torch.linalg.det(matrix)).to(dtype)


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


# ---------------------------------------------------------------- order, shells and the maximum


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


def test_shell_width_is_wider_than_any_tie() -> None:
    widths = [neighbors_order.tie_width(t) for t in (torch.float32, torch.float64)]
    assert max(widths) < neighbors_order.SHELL_WIDTH
