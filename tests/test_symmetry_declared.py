"""Every method keeps what it declares, and nothing that it does not declare holds by accident."""

from __future__ import annotations

import itertools

import pytest
import torch

from ocp_faenet.metrics.symmetry import SymmetryTable, symmetry_errors
from ocp_faenet.models import transforms
from ocp_faenet.models.config import (
    Augmentation,
    FAMethod,
    FrameAveraging,
    FrameSource,
    NormScope,
    Subgroup,
)
from ocp_faenet.models.symmetries import Claim, Symmetry, declared_symmetries
from symmetry_cases import mixed_batch, model

EXACT = 1e-10
BROKEN = 1e-6

FRAMED = [
    {
        "frame_averaging": space,
        "eval_fa_method": method,
        "frame_source": source,
    }
    for space, method, source in itertools.product(
        [FrameAveraging.PLANE, FrameAveraging.SPACE],
        [method for method in FAMethod if not method.is_learned],
        FrameSource,
    )
]
LEARNED = [
    {"frame_averaging": space, "fa_method": method, "frame_source": source}
    for space, method, source in itertools.product(
        [FrameAveraging.PLANE, FrameAveraging.SPACE],
        [FAMethod.LEARNED, FAMethod.SE3_LEARNED],
        [FrameSource.POSITIONS, FrameSource.EDGES],
    )
] + [
    {
        "frame_averaging": space,
        "fa_method": method,
        "frame_source": FrameSource.EDGES,
        "canonical_subgroup": subgroup,
    }
    for space in (FrameAveraging.PLANE, FrameAveraging.SPACE)
    for method, subgroup in (
        (FAMethod.LEARNED, Subgroup.REFLECTION),
        (FAMethod.LEARNED, Subgroup.SIGNS),
        (FAMethod.SE3_LEARNED, Subgroup.SIGNS),
    )
]
OTHERS = [
    {},
    {"graph_norm_scope": NormScope.BATCH},
    {"graph_norm_scope": NormScope.BATCH, "graph_norm": False},
    *(
        {"frame_averaging": FrameAveraging.DATA_AUGMENTATION, "augmentation": augmentation}
        for augmentation in Augmentation
    ),
]


@pytest.fixture(scope="module")
def batch():
    return mixed_batch()


def seed(number):
    return torch.Generator().manual_seed(number)


def name(choices):
    return "-".join(str(getattr(v, "value", v)) for v in choices.values()) or "no frames"


@pytest.mark.parametrize("choices", FRAMED + LEARNED + OTHERS, ids=name)
@torch.no_grad()
def test_declared_symmetries(batch, choices):
    core = model(**choices)
    if choices in LEARNED:
        core.backbone.eval_frames.network.last.weight.normal_(generator=seed(2))
    claims = declared_symmetries(core.config)
    draws = seed(0)
    errors = symmetry_errors(
        lambda graph: core(graph, generator=draws),
        batch,
        generator=seed(1),
        trials=3 if "stochastic" in name(choices) else 1,
    )
    assert set(claims) == set(errors) == set(Symmetry)
    for symmetry, trials in errors.items():
        worst = max(float(torch.maximum(t.energy, t.forces).max()) for t in trials)
        if claims[symmetry] is Claim.EXACT:
            assert worst < EXACT, symmetry
        else:  # the negative control: with random weights nothing holds by itself
            assert worst > BROKEN, symmetry


def test_errors_are_those_of_each_structure():
    """A prediction that changes for one structure alone is reported for that one."""
    graph = mixed_batch()

    def predict(g):
        """Energy: x of the first atom of each structure, but constant for the third."""
        first = torch.searchsorted(g.batch, torch.arange(g.num_graphs))
        energy = g.positions[first, :1].clone()
        energy[2] = 1.0
        return {"energy": energy}

    errors = symmetry_errors(predict, graph, [Symmetry.ROTATION_Z], generator=seed(0), trials=3)
    assert len(errors[Symmetry.ROTATION_Z]) == 3
    for trial in errors[Symmetry.ROTATION_Z]:
        assert trial.forces is None
        assert (trial.energy > 1e-3).tolist() == [True, True, False, True]
    table = SymmetryTable()
    table.add(errors, ["a", "b", "c", "d"])
    score = table.energy()[Symmetry.ROTATION_Z]
    every = torch.stack([t.energy for t in errors[Symmetry.ROTATION_Z]]) * 1e3
    assert score.mean == pytest.approx(float(every.mean()))
    assert score.worst == pytest.approx(float(every.max()))
    assert score.worst_id == "abcd"[int(every.max(0).values.argmax())]
    assert table.forces() == {}


def test_signed_differences_do_not_cancel():
    """An error of one sign in one pose and the other in the next is an error (defect 12)."""
    graph = transforms.alone(mixed_batch(), 0)
    signs = itertools.cycle([0.0, 1.0, -1.0])

    def predict(g):
        return {"energy": torch.full((1, 1), next(signs))}

    errors = symmetry_errors(predict, graph, [Symmetry.ORDER], generator=seed(0), trials=2)
    table = SymmetryTable()
    table.add(errors, ["a"])
    assert table.energy()[Symmetry.ORDER].mean == 1000.0
