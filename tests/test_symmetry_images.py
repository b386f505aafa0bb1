"""The periodic image, and the choice of cell, do not matter where frames are blind to them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ocp_faenet.geometry.lattice import reduced_cells
from ocp_faenet.geometry.transforms import random_cell_changes
from ocp_faenet.models import AtomGraph, transforms
from ocp_faenet.models.config import FrameSource
from symmetry_cases import (
    framed,
    mixed_batch,
    neighbours,
    perfect_slab,
    pose_errors,
    random_poses,
)

EXACT = 1e-10
BROKEN = 1e-5
INVARIANT = [FrameSource.EDGES, FrameSource.LATTICE]
METHODS = ["det", "all", "se3-det", "se3-all"]


@pytest.fixture(scope="module")
def batch():
    return mixed_batch()


@pytest.fixture(scope="module")
def perfect():
    """Unrattled slabs with an adsorbate on a symmetric site: every ambiguity at once."""
    sites = [("square", "hollow"), ("square", "bridge"), ("hexagonal", "hollow"),
             ("hexagonal", "top"), ("rectangular", "top")]  # fmt: skip
    return transforms.joined([perfect_slab(facet, site) for facet, site in sites])


def image_error(core, graph, seed=0):
    """Worst change of energies and forces over translate-and-wrap, images and cells."""
    generator = torch.Generator().manual_seed(seed)
    size = (graph.num_graphs, 3)
    by = 20 * torch.rand(size, generator=generator, dtype=torch.float64) - 10
    shifts = torch.randint(-2, 3, (graph.num_atoms, 3), generator=generator)
    change = random_cell_changes(graph.num_graphs, generator=generator)
    variants = [
        transforms.translated(graph, by),
        transforms.imaged(graph, shifts),
        transforms.recelled(graph, change),
        transforms.recelled(transforms.imaged(graph, shifts), change),
    ]
    base = core(graph)
    errors = []
    for variant in variants:
        out = core(variant)
        energy = float((out["energy"] - base["energy"]).abs().max())
        errors.append((energy, float((out["forces"] - base["forces"]).abs().max())))
    return errors


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("space", ["2D", "3D"])
@pytest.mark.parametrize("source", INVARIANT)
@pytest.mark.parametrize("name", ["batch", "perfect"])
def test_image_does_not_matter(name, source, space, method, request):
    core = framed(space, method, frame_source=source)
    assert max(max(e) for e in image_error(core, request.getfixturevalue(name))) < EXACT


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("space", ["2D", "3D"])
def test_published_frames_fail_the_same_test(batch, space, method):
    """PCA of stored positions turns when atoms are wrapped; not when the cell alone changes."""
    core = framed(space, method, frame_source=FrameSource.POSITIONS)
    wrapped, imaged, recelled, _ = image_error(core, batch)
    assert wrapped[0] > BROKEN
    assert imaged[0] > BROKEN
    assert max(recelled) < EXACT


@pytest.mark.parametrize("source", INVARIANT)
@pytest.mark.parametrize("space", ["2D", "3D"])
@pytest.mark.parametrize("name", ["batch", "perfect"])
def test_exact_under_rotations_and_reflections(name, source, space, request):
    graph = request.getfixturevalue(name)
    for method in METHODS:
        core = framed(space, method, frame_source=source)
        assert max(pose_errors(core, graph, random_poses(2, space == "2D", False))) < EXACT
        if not method.startswith("se3"):
            assert max(pose_errors(core, graph, random_poses(2, space == "2D", True))) < EXACT
        order = transforms.random_order(graph, torch.Generator().manual_seed(0))
        out, moved = core(graph), core(transforms.permuted(graph, order))
        assert float((out["energy"] - moved["energy"]).abs().max()) < EXACT
        assert float((out["forces"][order] - moved["forces"]).abs().max()) < EXACT


@pytest.mark.parametrize("source", INVARIANT)
def test_other_cell_with_its_own_neighbour_search(batch, source):
    """Neighbours found anew in the other cell give the same edges, hence the same energy."""
    core = framed("2D", "det", frame_source=source)
    graph = transforms.alone(batch, 0)
    other = transforms.recelled(graph, random_cell_changes(1, generator=_generator(3)))
    edges, offsets = neighbours(other.positions, other.cell[0], reach=(9, 9, 0))
    anew = AtomGraph.build(
        other.positions, other.atomic_numbers, other.batch, 1, edges,
        cell=other.cell, cell_offsets=offsets, tags=other.tags,
    )  # fmt: skip
    assert anew.edge_vectors.shape == graph.edge_vectors.shape
    assert float((core(anew)["energy"] - core(graph)["energy"]).abs()) < EXACT


def test_an_edge_at_the_cutoff_does_not_turn_the_frame():
    """Frames from edges move continuously as an atom crosses the cutoff of another."""
    provider = framed("2D", "det", frame_source=FrameSource.EDGES).backbone.eval_frames
    graph = transforms.alone(mixed_batch(), 0)
    edge = int((graph.edge_vectors.norm(dim=-1) - 4.0).abs().argmin())
    direction = graph.edge_vectors[edge] / graph.edge_vectors[edge].norm()
    mover = graph.edge_index[0, edge]
    frames = []
    for distance in (4.0 - 1e-4, 4.0 + 1e-4):
        positions = graph.positions.clone()
        positions[mover] += direction * (distance - graph.edge_vectors[edge].norm())
        edges, offsets = neighbours(positions, graph.cell[0])
        moved = AtomGraph.build(
            positions, graph.atomic_numbers, graph.batch, 1, edges,
            cell=graph.cell, cell_offsets=offsets, tags=graph.tags,
        )  # fmt: skip
        frames.append((moved.edge_index.shape[1], provider(moved)))
    assert frames[0][0] != frames[1][0]  # edges did appear or vanish
    assert float((frames[0][1] - frames[1][1]).abs().max()) < 1e-2


def test_lattice_frames_need_a_cell(batch):
    core = framed("2D", "det", frame_source=FrameSource.LATTICE)
    with pytest.raises(ValueError, match="'lattice' needs structures with a cell"):
        core(replace(batch, cell=None, cell_offsets=None))


def _generator(seed):
    return torch.Generator().manual_seed(seed)


def test_reduced_cells_hold_the_shortest_vectors_however_skewed_the_cell():
    generator = _generator(0)
    cell = torch.randn(40, 3, 3, generator=generator, dtype=torch.float64) + 2 * torch.eye(3)
    skewed = cell
    for _ in range(3):
        skewed = random_cell_changes(40, in_plane=False, generator=generator) @ skewed
    assert float((skewed.norm(dim=-1) / cell.norm(dim=-1)).amax()) > 20
    counts = torch.cartesian_prod(*[torch.arange(-4.0, 5.0, dtype=torch.float64)] * 3)
    lengths = (counts[counts.abs().sum(-1) > 0] @ reduced_cells(cell)).norm(dim=-1)
    reduced = reduced_cells(skewed)
    torch.testing.assert_close(reduced[:, 0].norm(dim=-1), lengths.amin(-1))
    assert bool((reduced.norm(dim=-1).diff(dim=-1) >= -1e-9).all())
    change = reduced @ torch.linalg.inv(cell)  # the same lattice: whole numbers, determinant 1
    torch.testing.assert_close(change, change.round(), rtol=0, atol=1e-6)
    determinant = torch.linalg.det(change).abs()
    torch.testing.assert_close(determinant, torch.ones_like(determinant))
