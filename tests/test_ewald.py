"""Ewald messages: exact sums, invariances, sizes, and the physics they come from."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.analysis.ewald import EwaldSummation
from pymatgen.core import Lattice, Structure

from ewald_cases import (
    BOX,
    BROKEN,
    CUTOFF,
    EXACT,
    VOXELS,
    bulk,
    every_index,
    free,
    literal_message,
    of_each,
    reciprocal_rows,
    unlike_cells,
)
from ocp_faenet.geometry import kspace
from ocp_faenet.geometry.padding import like_sizes
from ocp_faenet.models import transforms
from ocp_faenet.models.config import (
    FAENetConfig,
    FrameAveraging,
    FrameSource,
)
from ocp_faenet.models.ewald import EwaldMessagePassing
from ocp_faenet.models.ewald_config import EwaldConfig
from ocp_faenet.models.wave_sources import ATOM_VOLUME
from ocp_faenet.nn import native
from ocp_faenet.nn.ewald import KSpace, RadialFilter, WaveGroup, ewald_message
from symmetry_cases import random_poses, structure

PERIODIC = pytest.mark.parametrize("ewald", [BOX, CUTOFF], ids=["box", "cutoff"])


@pytest.fixture(scope="module")
def batch():
    return unlike_cells()


def layers(ewald, channels=3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = EwaldMessagePassing(ewald, channels, 1, torch.nn.functional.silu)
    return made.double()


def identities(graph):
    return torch.eye(3).double().expand(graph.num_graphs, 1, 3, 3)


def embeddings(graph, channels=3, frames=1):
    generator = torch.Generator().manual_seed(1)
    shape = (frames, graph.num_atoms, channels)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def message_of(ewald, graph, h, rotations=None):
    made = layers(ewald, h.shape[-1])
    spaces = made.prepare(graph, identities(graph) if rotations is None else rotations)
    return torch.cat([ewald_message(h, space, made.blocks[0].up) for space in spaces])


# -- exactness ------------------------------------------------------------------------------------


def test_index_box_is_the_literal_double_sum(batch):
    made = layers(BOX)
    h = embeddings(batch)
    found = message_of(BOX, batch, h)[0]
    indices = every_index(BOX.box)
    kept = {tuple(n): row for row, n in enumerate(kspace.half_box(BOX.box).tolist())}
    assert len(kept) == (len(indices) + 1) // 2
    for one, mine in of_each(batch):
        vectors = torch.tensor(indices, dtype=torch.float64) @ reciprocal_rows(one.cell[0])
        rows = [kept.get(n, kept.get(tuple(-x for x in n))) for n in indices]
        filters = made.filter.weight[rows] @ made.blocks[0].up.T
        filters = filters / math.sqrt(len(indices) * one.num_atoms)
        expected = literal_message(h[0, mine], one.positions, vectors, filters.detach())
        torch.testing.assert_close(found[mine], expected, rtol=0.0, atol=EXACT)


def test_cutoff_is_the_literal_double_sum(batch):
    made = layers(CUTOFF)
    h = embeddings(batch)
    found = message_of(CUTOFF, batch, h)[0]
    counts = []
    for one, mine in of_each(batch):
        indices = torch.tensor(every_index((8, 8, 8)), dtype=torch.float64)
        vectors = indices @ reciprocal_rows(one.cell[0])
        vectors = vectors[vectors.norm(dim=-1) <= CUTOFF.k_cutoff]
        counts.append(len(vectors))
        filters = made.filter(vectors.norm(dim=-1)) @ made.blocks[0].up.T
        a = one.cell[0]
        volume = float(torch.dot(a[0], torch.linalg.cross(a[1], a[2])).abs())
        size = math.sqrt((CUTOFF.k_cutoff**3 / (6 * math.pi**2)) / ATOM_VOLUME)
        filters = filters / (volume * size)
        expected = literal_message(h[0, mine], one.positions, vectors, filters.detach())
        torch.testing.assert_close(found[mine], expected, rtol=0.0, atol=EXACT)
    assert len(set(counts)) == len(counts)  # a batch of unlike numbers of wave vectors


def test_voxel_grid_is_the_literal_double_sum(batch):
    made, molecules = layers(VOXELS), free(batch)
    rotations = random_poses(batch.num_graphs, about_z=False, reflections=False).unsqueeze(1)
    h = embeddings(batch)
    found = message_of(VOXELS, molecules, h, rotations)[0]
    d = VOXELS.voxel
    vectors = d * torch.tensor(every_index((2, 2, 2)), dtype=torch.float64)
    vectors = vectors[vectors.norm(dim=-1) <= VOXELS.k_cutoff]
    filters = made.filter(vectors.norm(dim=-1)) @ made.blocks[0].up.T
    size = math.sqrt((VOXELS.k_cutoff**3 / (6 * math.pi**2)) / ATOM_VOLUME)
    filters = filters * (d / (2 * math.pi)) ** 3 / size
    for index, (one, mine) in enumerate(of_each(molecules)):
        x = (one.positions - one.positions.mean(0)) @ rotations[index, 0]
        half = x * d / 2
        damping = torch.where(half == 0, 1.0, half.sin() / half).prod(-1)
        expected = literal_message(h[0, mine], x, vectors, filters.detach(), damping)
        torch.testing.assert_close(found[mine], expected, rtol=0.0, atol=EXACT)


def test_voxel_damping_is_the_mean_over_a_voxel():
    """The mean of a plane wave over a voxel, by a fine midpoint rule."""
    x, d, fine = torch.tensor([[0.7, -2.0, 3.1]], dtype=torch.float64), 0.4, 60
    inside = ((torch.arange(fine, dtype=torch.float64) + 0.5) / fine - 0.5) * d
    q = torch.cartesian_prod(inside, inside, inside)
    mean = (q @ x[0]).cos().mean()
    found = kspace.voxel_damping(x * d / (2 * math.pi))
    torch.testing.assert_close(found[0], mean, rtol=1e-4, atol=0.0)


@given(st.lists(st.integers(0, 3), min_size=3, max_size=3))
def test_half_of_kspace_is_one_of_each_pair(limits):
    half = kspace.half_box(limits).tolist()
    assert half[0] == [0, 0, 0]
    both = [tuple(n) for n in half] + [tuple(-x for x in n) for n in half[1:]]
    assert sorted(both) == sorted(every_index(limits))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.floats(1.3, 2.5))
def test_all_wave_vectors_within_the_cutoff_whatever_the_cell(seed, cutoff):
    generator = torch.Generator().manual_seed(seed)
    cell = 8 * torch.eye(3).double() + 3 * torch.rand(2, 3, 3, generator=generator).double()
    change = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0], [0.0, 0.0, 1.0]]).double()
    lengths = []
    for cells in (cell, change @ cell):
        found = kspace.vectors_within(kspace.reciprocal_cells(cells), cells, cutoff)
        lengths.append([found.norms[b, :n].sort().values for b, n in enumerate(found.counts)])
        beyond = torch.arange(found.indices.shape[1]) >= torch.tensor(found.counts)[:, None]
        assert float(found.multiplicity[beyond].abs().sum()) == 0.0
    for index, (one, other) in enumerate(zip(*lengths, strict=True)):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
        literal = torch.tensor(every_index((10, 10, 10))).double() @ reciprocal_rows(cell[index])
        assert int((literal.norm(dim=-1) <= cutoff).sum()) == 2 * len(one) - 1


# -- invariances ----------------------------------------------------------------------------------


@PERIODIC
def test_messages_do_not_see_pose_origin_image_or_order(batch, ewald):
    h = embeddings(batch)
    found = message_of(ewald, batch, h)
    matrices = random_poses(batch.num_graphs, about_z=False, reflections=True)
    turned = transforms.turned(batch, matrices)
    far = torch.tensor([[31.0, -12.0, 55.0]]).expand(batch.num_graphs, 3)
    moved = transforms.translated(turned, far, wrap=True)
    torch.testing.assert_close(message_of(ewald, moved, h), found, rtol=0.0, atol=EXACT)
    order = transforms.random_order(batch, torch.Generator().manual_seed(0))
    permuted = message_of(ewald, transforms.permuted(batch, order), h[:, order])
    torch.testing.assert_close(permuted, found[:, order], rtol=0.0, atol=EXACT)
    # Negative control: an atom that moves against the others changes all messages.
    pushed = batch.positions.clone()
    pushed[0, 2] += 0.1
    change = (message_of(ewald, batch.with_positions(pushed), h) - found).abs().amax((0, 2))
    assert float(change[batch.batch == 0].min()) > BROKEN
    assert float(change[batch.batch != 0].max()) == 0.0


def test_the_choice_of_the_cell_is_seen_by_an_index_box_alone(batch):
    h = embeddings(batch)
    change = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 2.0, 1.0]]).double()
    other = transforms.recelled(batch, change.expand(batch.num_graphs, 3, 3))
    same = message_of(CUTOFF, other, h) - message_of(CUTOFF, batch, h)
    assert float(same.abs().max()) < EXACT
    assert float((message_of(BOX, other, h) - message_of(BOX, batch, h)).abs().max()) > 1e-3


def test_a_multiple_of_the_cell_has_the_messages_of_the_cell():
    one = bulk(5, 4, (5.0, 6.0, 5.5))
    shift = one.cell[0, 0]
    double = structure(
        torch.cat([one.positions, one.positions + shift]),
        one.atomic_numbers.repeat(2),
        one.cell[0] * torch.tensor([[2.0], [1.0], [1.0]]).double(),
    )
    h = embeddings(one)
    found = message_of(CUTOFF, double, h.repeat(1, 2, 1))
    torch.testing.assert_close(found, message_of(CUTOFF, one, h).repeat(1, 2, 1))
    assert float((message_of(BOX, double, h.repeat(1, 2, 1))[:, :4]
                  - message_of(BOX, one, h)).abs().max()) > 1e-3  # fmt: skip


# -- kernels and sizes ---------------------------------------------------------------------------


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("ewald", [BOX, CUTOFF, replace(BOX, num_residual=0)])
@pytest.mark.parametrize("frames", [(1, 1), (3, 3), (3, 1)])
@pytest.mark.parametrize("channels", [32, 64, 42])
@torch.no_grad()
def test_compiled_block_gives_the_same_messages(batch, ewald, frames, channels, monkeypatch):
    """Unlike structures, embeddings of each frame or of none, channels that vectors do not fill."""
    made = layers(replace(ewald, residual_channels=32), channels).float()
    graph = replace(batch, positions=batch.positions.float(), cell=batch.cell.float())
    spaces = made.prepare(graph, identities(graph).float())
    assert len(spaces[0].groups) > 1
    short = embeddings(graph, channels, frames[0]).float()
    h = embeddings(graph, channels, frames[1]).float().roll(1, 1)
    called, compiled = [], native.ewald_group

    def group(*args):
        called.append(compiled(*args))
        return called[-1]

    monkeypatch.setattr(native, "ewald_group", group)
    found = made(0, h, short, spaces)
    assert called == ([True] * len(spaces[0].groups) if channels % 32 == 0 else [False])
    with native.switched_off():
        plain = made(0, h, short, spaces)
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)
    with torch.enable_grad():  # training takes derivatives of the plain form
        called.clear()
        assert made(0, h, short, spaces).requires_grad
        assert not called


def test_padding_at_most_doubles_sizes():
    natoms, waves = [1, 2, 3, 200, 130, 5, 0], [30, 31, 32, 60, 33, 64, 31]
    groups = like_sizes(natoms, waves)
    assert sorted(itertools.chain(*groups)) == list(range(7))
    for group in groups:
        for sizes in (natoms, waves):
            members = [sizes[s] for s in group]
            assert max(members) < 2 * min(members) or max(members) == 0


def test_memory_is_linear_in_atoms_times_wave_vectors():
    """Cosines and sines of half of k-space at each atom, whatever else is in the batch."""
    for natoms, limits in [(8, (1, 1, 3)), (16, (1, 1, 3)), (16, (2, 3, 3))]:
        graph = bulk(7, natoms, (5.0, 6.0, 12.0))
        made = layers(EwaldConfig(box=limits))
        (space,) = made.prepare(graph, identities(graph))
        waves = sum(group.waves.numel() for group in space.groups)
        assert waves == natoms * (math.prod(2 * n + 1 for n in limits) + 1)


# -- physics --------------------------------------------------------------------------------------


CRYSTALS = {
    "NaCl": ("Fm-3m", 5.64, {"Na+": [0, 0, 0], "Cl-": [0.5, 0.5, 0.5]}),
    "CsCl": ("Pm-3m", 4.12, {"Cs+": [0, 0, 0], "Cl-": [0.5, 0.5, 0.5]}),
    "ZnS": ("F-43m", 5.41, {"Zn2+": [0, 0, 0], "S2-": [0.25, 0.25, 0.25]}),
}


@pytest.mark.parametrize("name", CRYSTALS)
def test_coulomb_filter_gives_ewald_energies(name):
    """Reciprocal energies of real crystals, beside pymatgen's own Ewald sum."""
    group, a, sites = CRYSTALS[name]
    crystal = Structure.from_spacegroup(group, Lattice.cubic(a), list(sites), list(sites.values()))
    cutoff, eta = 9.0, 0.6
    known = EwaldSummation(crystal, recip_space_cut=cutoff, eta=eta)
    cell = torch.tensor(crystal.lattice.matrix).unsqueeze(0)
    charges = torch.tensor([float(site.specie.oxi_state) for site in crystal]).double()
    vectors = kspace.vectors_within(kspace.reciprocal_cells(cell), cell, cutoff)
    square = vectors.norms[0].square()
    coulomb = torch.where(square > 0, 4 * math.pi / square * (-square / (4 * eta)).exp(), 0.0)
    filters = coulomb * vectors.multiplicity[0] / torch.linalg.det(cell)
    atoms = torch.arange(len(crystal))
    waves = kspace.plane_waves(torch.tensor(crystal.frac_coords).unsqueeze(0), vectors.indices)
    weights = filters.repeat(2).view(1, -1, 1)
    space = KSpace((WaveGroup(atoms.unsqueeze(0), waves, weights),), atoms)
    potential = ewald_message(charges.view(1, -1, 1), space, torch.ones(1, 1).double())
    energy = 0.5 * 14.399645478 * float((charges * potential[0, :, 0]).sum())  # eV Å
    assert energy == pytest.approx(known.reciprocal_space_energy, abs=1e-6)
    assert abs(energy) > 1.0


# -- filters and bad input ------------------------------------------------------------------------


def test_radial_filter_ends_smoothly_at_the_cutoff():
    made = RadialFilter(2.0, 10, 4).double()
    k = torch.tensor([[1.999, 2.0, 2.3]], dtype=torch.float64)
    values = made(k).abs().amax((0, 2))
    assert 0 < float(values[0]) < 1e-5
    assert values[1:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("choices", "told"),
    [
        ({}, "give one of them"),
        ({"box": (1, 1, 3), "k_cutoff": 1.0}, "give one of them"),
        ({"box": (0, 0, 0)}, "ewald.box"),
        ({"box": (1, -1, 3)}, "ewald.box"),
        ({"k_cutoff": 0.0}, "ewald.k_cutoff: 0.0 is not positive"),
        ({"box": (1, 1, 3), "voxel": 0.2}, "ewald.voxel: 0.2 needs k_cutoff"),
        ({"box": (1, 1, 3), "num_residual": -1}, "ewald.num_residual"),
        ({"k_cutoff": 1.0, "num_gaussians": 1}, "ewald.num_gaussians"),
    ],
)
def test_contradictions_are_refused(choices, told):
    with pytest.raises(ValueError, match=told):
        EwaldConfig(**choices)


def test_forms_go_with_their_periodicity():
    with pytest.raises(ValueError, match="use_pbc is true"):
        FAENetConfig(ewald=VOXELS)
    with pytest.raises(ValueError, match="needs use_pbc: true"):
        FAENetConfig(ewald=BOX, use_pbc=False)
    with pytest.raises(ValueError, match="frame_source is 'edges'; set frame_source: positions"):
        FAENetConfig(ewald=VOXELS, use_pbc=False, frame_averaging=FrameAveraging.SPACE,
                     frame_source=FrameSource.EDGES)  # fmt: skip
    with pytest.raises(ValueError, match="less than a voxel"):
        layers(EwaldConfig(k_cutoff=0.3, voxel=0.4))


@PERIODIC
def test_cells_that_cannot_be_summed_over_are_refused(batch, ewald):
    with pytest.raises(ValueError, match="cell: Ewald messages"):
        message_of(ewald, free(batch), embeddings(batch))
    flat = batch.cell.clone()
    flat[2] = 0.0  # one structure that says it is free among periodic ones
    with pytest.raises(ValueError, match="cell has no volume"):
        message_of(ewald, replace(batch, cell=flat), embeddings(batch))
    flat[2] = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0]])
    with pytest.raises(ValueError, match=r"cell 1 0 0; 0 1 0; 1 1 0 Å"):
        message_of(ewald, replace(batch, cell=flat), embeddings(batch))


def test_a_cutoff_below_the_shortest_wave_vector_is_refused(batch):
    shortest = float(reciprocal_rows(batch.cell[0]).norm(dim=-1).min())
    with pytest.raises(ValueError, match=rf"k_cutoff: 0.7 .* shortest is {shortest:.3g}"):
        message_of(EwaldConfig(k_cutoff=0.7), batch, embeddings(batch))
