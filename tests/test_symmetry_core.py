"""The core is as symmetric as its frames promise, and no more."""

from __future__ import annotations

import pytest
import torch

from ocp_faenet.models import transforms
from ocp_faenet.models.config import FAMethod, ForceMode, FrameAveraging, MPType, NormScope
from symmetry_cases import framed, mixed_batch, model, pose_errors, random_poses, slab, slope

EXACT = 1e-10
BROKEN = 1e-4


@pytest.fixture(scope="module")
def batch():
    return mixed_batch()


@pytest.mark.parametrize("reflections", [False, True], ids=["rotations", "reflections"])
@pytest.mark.parametrize("method", ["all", "det"])
@pytest.mark.parametrize("space", ["2D", "3D"])
def test_exact_under_rotations_and_reflections(batch, space, method, reflections):
    poses = random_poses(4, space == "2D", reflections)
    errors = pose_errors(framed(space, method), batch, poses)
    assert max(errors) < EXACT


@pytest.mark.parametrize("method", ["se3-all", "se3-det"])
@pytest.mark.parametrize("space", ["2D", "3D"])
def test_se3_forms_hold_for_rotations_alone(batch, space, method):
    core = framed(space, method)
    assert max(pose_errors(core, batch, random_poses(4, space == "2D", False))) < EXACT
    # Negative control: a reflection is another structure to these.
    assert min(pose_errors(core, batch, random_poses(2, space == "2D", True))) > BROKEN


@pytest.mark.parametrize("reflections", [False, True], ids=["rotations", "reflections"])
@pytest.mark.parametrize("space", ["2D", "3D"])
def test_without_frames_the_same_test_fails(batch, space, reflections):
    poses = random_poses(2, space == "2D", reflections)
    assert min(pose_errors(model(), batch, poses)) > BROKEN


@pytest.mark.parametrize("method", ["all", "det"])
def test_planar_frames_do_not_cover_rotations_in_space(batch, method):
    poses = random_poses(2, about_z=False, reflections=False)
    assert min(pose_errors(framed("2D", method), batch, poses)) > BROKEN


@pytest.mark.parametrize("mp_type", list(MPType))
def test_exact_for_every_form_of_message_passing(batch, mp_type):
    core = framed("2D", "all", mp_type=mp_type, complex_mp=True)
    assert max(pose_errors(core, batch, random_poses(1, True, True))) < EXACT


@pytest.mark.parametrize("method", ["det", "all"])
def test_batch_mates_do_not_matter(batch, method):
    core = framed("2D", method)
    whole = core(batch)
    for index in range(batch.num_graphs):
        single = core(transforms.alone(batch, index))
        torch.testing.assert_close(single["energy"][0], whole["energy"][index], **tight())
        mine = whole["forces"][batch.batch == index]
        torch.testing.assert_close(single["forces"], mine, **tight())


def test_batch_mates_matter_with_batch_wide_norm(batch):
    core = framed("2D", "all", graph_norm_scope=NormScope.BATCH)
    whole = core(batch)["energy"]
    singles = [core(transforms.alone(batch, i))["energy"] for i in range(batch.num_graphs)]
    assert float((torch.cat(singles) - whole).abs().min()) > BROKEN


@pytest.mark.parametrize("method", ["det", "all"])
@pytest.mark.parametrize("space", ["2D", "3D"])
def test_order_of_atoms_does_not_matter(batch, space, method):
    core = framed(space, method)
    order = transforms.random_order(batch, torch.Generator().manual_seed(0))
    assert not torch.equal(order, torch.arange(len(order)))
    out, moved = core(batch), core(transforms.permuted(batch, order))
    torch.testing.assert_close(moved["energy"], out["energy"], **tight())
    torch.testing.assert_close(moved["forces"], out["forces"][order], **tight())
    # Negative control: species do belong to their places.
    shuffled = transforms.permuted(batch, order)
    wrong = core(type(batch).build(
        shuffled.positions, batch.atomic_numbers, batch.batch, batch.num_graphs,
        shuffled.edge_index, cell=batch.cell, cell_offsets=shuffled.cell_offsets,
        tags=batch.tags,
    ))  # fmt: skip
    assert float((wrong["energy"] - out["energy"]).abs().max()) > BROKEN


@pytest.mark.parametrize("method", ["det", "all"])
@pytest.mark.parametrize("space", ["2D", "3D"])
def test_translations_do_not_matter(batch, space, method):
    core = framed(space, method)
    by = torch.tensor([[3.0, -1.0, 2.0]]).expand(batch.num_graphs, 3)
    out = core(batch)
    moved = core(transforms.translated(batch, by, wrap=False))
    torch.testing.assert_close(moved["energy"], out["energy"], **tight())
    torch.testing.assert_close(moved["forces"], out["forces"], **tight())


@pytest.mark.parametrize("method", ["se3-det", "det", "all"])
@pytest.mark.parametrize("space", ["2D", "3D"])
def test_gradient_forces_are_the_slope_through_the_frames(space, method):
    graph = slab(5)
    core = framed(space, method, regress_forces=ForceMode.FROM_ENERGY)
    forces = core(graph)["forces"]
    for atom, axis in [(0, 0), (3, 1), (8, 2), (9, 0)]:
        exact = slope(core, graph, atom, axis)
        assert abs(exact - float(forces[atom, axis])) < 1e-6 * max(1.0, abs(exact))


def test_gradient_forces_are_equivariant(batch):
    core = framed("2D", "det", regress_forces=ForceMode.FROM_ENERGY)
    pose = random_poses(1, True, True)[0]
    forces = core(batch)["forces"]
    moved = core(transforms.turned(batch, pose.expand(batch.num_graphs, 3, 3)))["forces"]
    torch.testing.assert_close(moved, forces @ pose, **tight())
    net = torch.zeros(batch.num_graphs, 3, dtype=forces.dtype).index_add_(0, batch.batch, forces)
    assert float(net.abs().max()) < 1e-8 * float(forces.abs().max()) + 1e-10


def test_stochastic_frames_average_to_all_frames():
    """The mean over many drawn frames is the prediction at ``all``."""
    graph = slab(6, rows=(1, 1), layers=3)
    drawn = model(frame_averaging=FrameAveraging.PLANE, eval_fa_method=FAMethod.STOCHASTIC)
    exact = float(framed("2D", "all")(graph)["energy"].detach())
    copies = transforms.joined([graph] * 400)
    energies = drawn(copies, generator=torch.Generator().manual_seed(0))["energy"].detach()
    spread = float(energies.std())
    assert spread > BROKEN
    assert abs(float(energies.mean()) - exact) < 4 * spread / 400**0.5


def tight():
    return {"rtol": 0.0, "atol": EXACT}
