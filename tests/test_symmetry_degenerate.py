"""Structures whose axes or signs are ambiguous: still exact, still continuous where that exists."""

from __future__ import annotations

import itertools

import pytest
import torch

from ocp_faenet.models import transforms
from ocp_faenet.models.config import ForceMode, FrameSource
from symmetry_cases import KINDS, cloud, framed, pose_errors, random_poses, slope, structure

EXACT = 1e-10
METHODS = ["det", "all", "se3-det", "se3-all"]


def models_from(source):
    choices = {"tag_hidden_channels": 0, "frame_source": source}
    return {
        (space, method): framed(space, method, **choices)
        for space in ("2D", "3D")
        for method in METHODS
    }


@pytest.fixture(scope="module")
def models():
    return models_from(FrameSource.POSITIONS)


@pytest.fixture(scope="module")
def edge_models():
    return models_from(FrameSource.EDGES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("space", ["2D", "3D"])
@pytest.mark.parametrize("source", ["models", "edge_models"])
def test_exact_for_awkward_clouds(source, kind, space, request):
    models = request.getfixturevalue(source)
    points = cloud(kind)
    graph = structure(points, [6] * len(points))
    order = transforms.random_order(graph, torch.Generator().manual_seed(1))
    for method in METHODS:
        core = models[space, method]
        poses = random_poses(3, space == "2D", False)
        assert max(pose_errors(core, graph, poses)) < EXACT, method
        if not method.startswith("se3"):
            poses = random_poses(2, space == "2D", True)
            assert max(pose_errors(core, graph, poses)) < EXACT, method
        out, moved = core(graph), core(transforms.permuted(graph, order))
        assert float((moved["energy"] - out["energy"]).abs().max()) < EXACT
        assert float((moved["forces"] - out["forces"][order]).abs().max()) < EXACT


@pytest.mark.parametrize("kind", ["square", "hexagon", "pyramid", "cube", "linear tilted"])
def test_species_break_ties(models, kind):
    """Exact too where species alone tell the candidates apart, and then fewer frames are used."""
    points = cloud(kind)
    graph = structure(points, [8] + [6] * (len(points) - 2) + [1])
    for space in ("2D", "3D"):
        for method in METHODS:
            core = models[space, method]
            assert max(pose_errors(core, graph, random_poses(3, space == "2D", False))) < EXACT


@pytest.mark.parametrize(("kind", "count"), [("square", 8), ("hexagon", 12), ("triangle", 6)])
def test_as_many_frames_as_symmetries(models, kind, count):
    points = cloud(kind)
    graph = structure(points, [6] * len(points))
    assert models["2D", "det"].backbone.eval_frames(graph).shape[1] == count
    assert models["2D", "se3-det"].backbone.eval_frames(graph).shape[1] == count // 2
    marked = structure(points, [6] * (len(points) - 1) + [7])
    assert models["2D", "det"].backbone.eval_frames(marked).shape[1] == 2  # its mirror plane
    skewed = structure(torch.cat([points, points[:1] * 1.3 + 0.2]), [6] * (len(points)) + [7])
    assert models["2D", "det"].backbone.eval_frames(skewed).shape[1] == 1


@pytest.mark.parametrize(
    ("space", "kind"),
    [
        *itertools.product(["2D", "3D"], ["square", "pyramid", "cube", "inverted pair"]),
        ("3D", "planar tilted"),
    ],
)
def test_without_the_policy_the_same_test_fails(models, kind, space, monkeypatch):
    """Negative control: take the usual frame, whatever is ambiguous about it."""
    core = models[space, "det"]
    monkeypatch.setattr(type(core.backbone.eval_frames), "ambiguous_sets", lambda *_: {})
    points = cloud(kind)
    graph = structure(points, [6] * len(points))
    assert pose_errors(core, graph, random_poses(4, space == "2D", True))[1] > 1e-4


@pytest.mark.parametrize("kind", ["square", "pyramid", "cube", "linear tilted", "inverted pair"])
@pytest.mark.parametrize("space", ["2D", "3D"])
def test_slopes_at_symmetric_structures(kind, space):
    """Within the width of a tie the averaged energy is smooth: its slope is the force."""
    points = cloud(kind) + 0.1
    graph = structure(points, [6] * len(points))
    core = framed(space, "det", tag_hidden_channels=0, regress_forces=ForceMode.FROM_ENERGY)
    forces = core(graph)["forces"]
    for atom, axis in [(0, 0), (1, 1), (2, 2)]:
        exact = slope(core, graph, atom, axis, step=1e-6)
        assert abs(exact - float(forces[atom, axis])) < 1e-6


def test_batch_mates_of_ambiguous_structures_are_not_touched(models):
    """Ambiguous structures need more frames; the mean over them leaves the others alone."""
    graphs = [structure(cloud(k), [6] * len(cloud(k))) for k in ("three atoms", "hexagon")]
    graphs += [structure(cloud(k), [7] * len(cloud(k))) for k in ("square", "one atom")]
    for core in models.values():
        whole = core(transforms.joined(graphs))
        singles = [core(graph) for graph in graphs]
        energies = torch.cat([single["energy"] for single in singles])
        forces = torch.cat([single["forces"] for single in singles])
        assert float((whole["energy"] - energies).abs().max()) < EXACT
        assert float((whole["forces"] - forces).abs().max()) < EXACT
