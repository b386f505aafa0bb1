"""Whole models with Ewald messages: symmetries, gradients, batches."""

from __future__ import annotations

import itertools

import pytest
import torch

from ewald_cases import (
    BOX,
    BROKEN,
    CUTOFF,
    EXACT,
    VOXELS,
    bulk,
    free,
    of_each,
    unlike_cells,
)
from ocp_faenet.geometry import kspace
from ocp_faenet.metrics.symmetry import symmetry_errors
from ocp_faenet.models.config import (
    FAMethod,
    ForceMode,
    FrameAveraging,
    FrameSource,
    MPType,
)
from ocp_faenet.models.symmetries import Claim, Symmetry, declared_symmetries
from symmetry_cases import KINDS, cloud, framed, model, pose_errors, random_poses, slope, structure


@pytest.fixture(scope="module")
def batch():
    return unlike_cells()


#: Choices that free structures need.
FREE = {True: {"use_pbc": False, "frame_source": FrameSource.POSITIONS}, False: {}}


CASES = [
    (space, method, ewald)
    for space, method in [
        (FrameAveraging.PLANE, FAMethod.DET),
        (FrameAveraging.SPACE, FAMethod.ALL),
        (FrameAveraging.SPACE, FAMethod.SE3_DET),
        (FrameAveraging.PLANE, FAMethod.STOCHASTIC),
    ]
    for ewald in (BOX, CUTOFF, VOXELS)
]


@pytest.mark.parametrize(("space", "method", "ewald"), CASES)
@torch.no_grad()
def test_declared_symmetries_of_a_model(batch, space, method, ewald):
    graph, periodic = batch, ewald is not VOXELS
    if not periodic:
        graph = free(batch)
    core = framed(space, method, ewald=ewald, **FREE[not periodic])
    claims = declared_symmetries(core.config)
    assert (claims[Symmetry.CELL] is Claim.NONE) == (ewald is BOX)
    draws = torch.Generator().manual_seed(0)
    errors = symmetry_errors(
        lambda g: core(g, generator=draws),
        graph,
        generator=torch.Generator().manual_seed(1),
        trials=3 if method is FAMethod.STOCHASTIC else 1,
    )
    for symmetry, trials in errors.items():
        worst = max(float(torch.maximum(t.energy, t.forces).max()) for t in trials)
        if claims[symmetry] is Claim.EXACT:
            assert worst < EXACT, symmetry
        else:
            assert worst > BROKEN, symmetry


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_free_structures_with_a_symmetry_of_their_own(kind):
    """Where the frame is ambiguous, each of its frames has its own waves."""
    positions = cloud(kind)
    numbers = torch.tensor([8, 1, 6, 1, 1, 7, 1, 8, 1] * 4)[: len(positions)]
    if kind in ("square", "hexagon", "cube", "octahedron"):
        numbers = torch.full_like(numbers, 6)
    graph = structure(positions, numbers)
    core = framed("3D", "all", ewald=VOXELS, tag_hidden_channels=0, **FREE[True])
    poses = random_poses(3, about_z=False, reflections=True)
    energy, force = pose_errors(core, graph, poses)
    assert energy < EXACT
    assert force < 1e-8
    if len(positions) > 1 and kind != "coincident":
        wide = graph.with_positions(graph.positions * 1.3)
        assert float((core(wide)["energy"] - core(graph)["energy"]).abs()) > 1e-9


@pytest.mark.parametrize("ewald", [BOX, CUTOFF, VOXELS], ids=["box", "cutoff", "voxels"])
def test_forces_are_the_slope(ewald):
    periodic = ewald is not VOXELS
    graph = bulk(6, 5, (5.0, 6.0, 7.0))
    if not periodic:
        graph = free(graph)
    choices = {"regress_forces": ForceMode.FROM_ENERGY, **FREE[not periodic]}
    core = framed("3D", "det", ewald=ewald, **choices)
    forces = core(graph)["forces"]
    plain = framed("3D", "det", **choices)
    assert float((forces - plain(graph)["forces"]).abs().max()) > 1e-4
    for atom, axis in itertools.product(range(graph.num_atoms), range(3)):
        exact = slope(core, graph, atom, axis)
        assert abs(exact - float(forces[atom, axis])) < 1e-7 * max(1.0, abs(exact))


@pytest.mark.parametrize("ewald", [BOX, CUTOFF, VOXELS], ids=["box", "cutoff", "voxels"])
@torch.no_grad()
def test_unlike_cells_in_a_batch_are_as_each_alone(batch, ewald):
    periodic = ewald is not VOXELS
    graph = batch if periodic else free(batch)
    core = framed("3D", "det", ewald=ewald, **FREE[not periodic])
    whole = core(graph)
    for index, (one, mine) in enumerate(of_each(graph)):
        out = core(one)
        torch.testing.assert_close(out["energy"][0], whole["energy"][index], rtol=0.0, atol=EXACT)
        torch.testing.assert_close(out["forces"], whole["forces"][mine], rtol=0.0, atol=EXACT)


@pytest.mark.parametrize("mp_type", list(MPType))
@torch.no_grad()
def test_beside_every_form_of_message_passing(batch, mp_type):
    """An atom out of reach of all others is felt with Ewald messages, and not without."""
    graph = structure(
        torch.tensor([[0.0, 0, 0], [2.0, 0, 0], [2.0, 1.5, 0], [9.0, 9.0, 9.0]]),
        torch.tensor([29, 8, 1, 47]), 18 * torch.eye(3).double(), torch.tensor([1, 2, 2, 1]),
        reach=(1, 1, 1),
    )  # fmt: skip
    moved = graph.with_positions(graph.positions + torch.tensor([[0.0]] * 3 + [[0.5]]))
    assert 3 not in graph.edge_index
    choices = {"mp_type": mp_type, "frame_averaging": None}
    for ewald, felt in [(None, False), (BOX, True), (CUTOFF, True)]:
        core = model(ewald=ewald, **choices)
        change = float((core(moved)["energy"] - core(graph)["energy"]).abs())
        assert (change > 1e-7) is felt


@torch.no_grad()
def test_waves_are_made_once_for_all_frames_and_blocks(batch, monkeypatch):
    shapes = []
    plain = kspace.plane_waves

    def counted(fractional, indices):
        shapes.append(fractional.shape[:2])
        return plain(fractional, indices)

    monkeypatch.setattr(kspace, "plane_waves", counted)
    framed("3D", "all", ewald=CUTOFF, num_interactions=4)(batch)
    assert sum(structures for structures, _ in shapes) == batch.num_graphs
