"""Learned canonicalisation: equivariant with any weights, starts as principal axes, trains."""

from __future__ import annotations

import pytest
import torch

from ocp_faenet.geometry.orthogonal import gram_schmidt
from ocp_faenet.geometry.rotations import random_orthogonal, random_rotations
from ocp_faenet.models import FAENetConfig, transforms
from ocp_faenet.models.config import FAMethod, ForceMode, FrameAveraging, FrameSource, Subgroup
from symmetry_cases import (
    cloud,
    mixed_batch,
    model,
    pose_errors,
    random_poses,
    slab,
    slope,
    structure,
)

EXACT = 1e-10
BROKEN = 1e-5


def learned(space, method="learned", *, trained=True, **choices):
    """A model with a canonicaliser that is no longer at its start."""
    core = model(
        frame_averaging=FrameAveraging(space), fa_method=FAMethod(method),
        frame_source=FrameSource.EDGES, **choices,
    )  # fmt: skip
    if trained:
        generator = torch.Generator().manual_seed(7)
        weight = core.backbone.eval_frames.network.last.weight
        with torch.no_grad():
            weight.copy_(3 * torch.randn(weight.shape, generator=generator))
    return core


@pytest.fixture(scope="module")
def batch():
    return mixed_batch()


@pytest.mark.parametrize("subgroup", [None, *Subgroup])
@pytest.mark.parametrize("space", ["2D", "3D"])
def test_exact_under_rotations_and_reflections(batch, space, subgroup):
    core = learned(space, canonical_subgroup=subgroup)
    start = learned(space, canonical_subgroup=subgroup, trained=False)
    assert float((core(batch)["energy"] - start(batch)["energy"]).abs().max()) > BROKEN
    for reflections in (False, True):
        poses = random_poses(3, space == "2D", reflections)
        assert max(pose_errors(core, batch, poses)) < EXACT


@pytest.mark.parametrize("subgroup", [None, Subgroup.SIGNS])
@pytest.mark.parametrize("space", ["2D", "3D"])
def test_se3_form_holds_for_rotations_alone(batch, space, subgroup):
    core = learned(space, "se3-learned", canonical_subgroup=subgroup)
    assert max(pose_errors(core, batch, random_poses(3, space == "2D", False))) < EXACT
    assert min(pose_errors(core, batch, random_poses(2, space == "2D", True))) > BROKEN


@pytest.mark.parametrize("space", ["2D", "3D"])
def test_images_order_and_mates_do_not_matter(batch, space):
    core = learned(space)
    out = core(batch)
    by = torch.full((batch.num_graphs, 3), 5.3)
    moved = core(transforms.translated(batch, by))
    assert float((moved["forces"] - out["forces"]).abs().max()) < EXACT
    order = transforms.random_order(batch, torch.Generator().manual_seed(0))
    moved = core(transforms.permuted(batch, order))
    assert float((moved["forces"] - out["forces"][order]).abs().max()) < EXACT
    single = core(transforms.alone(batch, 1))
    assert float((single["energy"] - out["energy"][1]).abs().max()) < EXACT


def test_dropout_of_the_model_does_not_reach_the_canonicaliser(batch):
    """Frames in training are those of evaluation: no randomness in them (defect 9)."""
    core = learned("2D", dropout_lin=0.5, dropout_lowest_layer="inter-0")
    evaluated = core.backbone.eval_frames(batch)
    core.train()
    assert torch.equal(core.backbone.train_frames(batch), evaluated)


@pytest.mark.parametrize("method", ["learned", "se3-learned"])
@pytest.mark.parametrize("space", ["2D", "3D"])
def test_starts_at_the_principal_axes(batch, space, method):
    start = learned(space, method, trained=False).backbone.eval_frames(batch)
    config = FAENetConfig(
        frame_averaging=FrameAveraging(space),
        fa_method=FAMethod(method.replace("learned", "det")),
        frame_source=FrameSource.EDGES,
        cutoff=4.0,
    )
    expected = model(
        frame_averaging=config.frame_averaging,
        fa_method=config.fa_method,
        frame_source=config.frame_source,
    ).backbone.eval_frames(batch)
    torch.testing.assert_close(start, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("space", ["2D", "3D"])
def test_gradients_reach_every_weight_of_the_canonicaliser(batch, space):
    core = learned(space)
    out = core(batch)
    (out["energy"].square().sum() + out["forces"].square().sum()).backward()
    for name, weight in core.backbone.eval_frames.network.named_parameters():
        assert weight.grad is not None, name
        assert float(weight.grad.abs().max()) > 0, name


def test_a_step_of_training_moves_the_frames(batch):
    core = learned("2D", trained=False)
    before = core.backbone.eval_frames(batch).detach()
    optimiser = torch.optim.AdamW(core.parameters(), lr=1e-2)
    core(batch)["energy"].square().sum().backward()
    optimiser.step()
    assert float((core.backbone.eval_frames(batch) - before).abs().max()) > 1e-4


def test_slopes_pass_through_the_network():
    graph = slab(5)
    core = learned("3D", regress_forces=ForceMode.FROM_ENERGY)
    forces = core(graph)["forces"]
    for atom, axis in [(0, 0), (8, 2)]:
        exact = slope(core, graph, atom, axis)
        assert abs(exact - float(forces[atom, axis])) < 1e-6 * max(1.0, abs(exact))


@pytest.mark.parametrize(
    "kind", ["one atom", "two atoms", "linear tilted", "planar tilted", "square", "octahedron"]
)
def test_awkward_clouds_are_exact_and_finite(kind):
    points = cloud(kind)
    graph = structure(points, [6] * len(points))
    for space in ("2D", "3D"):
        core = learned(space, tag_hidden_channels=0)
        assert max(pose_errors(core, graph, random_poses(2, space == "2D", True))) < EXACT
        out = core(graph)
        (out["energy"].sum() + out["forces"].square().sum()).backward()
        for weight in core.parameters():
            assert weight.grad is None or bool(torch.isfinite(weight.grad).all())


@pytest.mark.parametrize("proper", [False, True])
@pytest.mark.parametrize("planar", [False, True])
def test_gram_schmidt(planar, proper):
    generator = torch.Generator().manual_seed(0)
    draws = {"generator": generator, "dtype": torch.float64}
    vectors = torch.randn(50, 3, 3, **draws)
    fallback = random_rotations(50, **draws)
    frames = gram_schmidt(vectors, fallback, planar=planar, proper=proper)
    eye = torch.eye(3, dtype=torch.float64).expand_as(frames)
    torch.testing.assert_close(frames.mT @ frames, eye, rtol=0, atol=1e-12)
    signs = torch.linalg.det(frames)
    assert bool((signs > 0).all()) == proper
    turn = random_orthogonal(50, about_z=planar, **draws)
    if proper:
        turn = turn * torch.linalg.det(turn)[:, None, None] if not planar else turn
        turn = turn[torch.linalg.det(turn) > 0]
        vectors, frames, fallback = (t[: len(turn)] for t in (vectors, frames, fallback))
    turned = gram_schmidt(turn.mT @ vectors, turn.mT @ fallback, planar=planar, proper=proper)
    torch.testing.assert_close(turned, turn.mT @ frames, rtol=0, atol=1e-12)
    # Negative control: the other side.
    assert float((turned - turn @ frames).abs().max()) > 0.1


@pytest.mark.parametrize("planar", [False, True])
def test_dependent_vectors_take_the_fallback_whole(planar):
    one = torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64)
    vectors = torch.stack([torch.outer(one, one), torch.zeros(3, 3, dtype=torch.float64)])
    vectors = torch.cat([vectors, torch.full((1, 3, 3), 1e-5, dtype=torch.float64)])
    vectors.requires_grad_(True)
    fallback = random_rotations(3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if planar:
        fallback = torch.eye(3, dtype=torch.float64).expand(3, 3, 3)
    frames = gram_schmidt(vectors, fallback, planar=planar, proper=False)
    torch.testing.assert_close(frames, fallback, rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(frames.sum(), vectors)
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"fa_method": FAMethod.LEARNED, "eval_fa_method": FAMethod.DET}, "trained and evaluated"),
        ({"eval_fa_method": FAMethod.LEARNED}, "trained and evaluated alike"),
        ({"fa_method": FAMethod.DET, "canonical_subgroup": Subgroup.SIGNS}, "needs fa_method"),
        (
            {"fa_method": FAMethod.SE3_LEARNED, "canonical_subgroup": Subgroup.REFLECTION},
            "no reflections",
        ),
        ({"fa_method": FAMethod.LEARNED, "canonical_channels": 0}, "not positive"),
    ],
)
def test_contradictions_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        FAENetConfig(frame_averaging=FrameAveraging.PLANE, **choices)
