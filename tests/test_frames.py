"""Frame providers: which frames are drawn, and what they do with awkward structures."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ocp_faenet.geometry.frames import sign_patterns
from ocp_faenet.models import transforms
from ocp_faenet.models.config import (
    Augmentation,
    FAENetConfig,
    FAMethod,
    ForceMode,
    FrameAveraging,
    FrameSource,
)
from ocp_faenet.models.frame_quality import frame_quality
from ocp_faenet.models.frames import frame_providers
from symmetry_cases import KINDS, cloud, model, slab, structure

#: chi-square quantiles at 1 - 1e-6, by degrees of freedom.
CHI_SQUARE = {1: 23.93, 3: 30.66, 7: 40.52}


def provider(space, method, **choices):
    config = FAENetConfig(
        frame_averaging=FrameAveraging(space), fa_method=FAMethod(method), **choices
    )
    return frame_providers(config)[0].double()


@pytest.mark.parametrize(
    ("space", "method", "count"),
    [("2D", "stochastic", 4), ("2D", "se3-stochastic", 2),
     ("3D", "stochastic", 8), ("3D", "se3-stochastic", 4)],
)  # fmt: skip
def test_every_frame_is_drawn_equally_often(space, method, count):
    n = 4000
    graph = transforms.joined([slab(1, rows=(1, 1))] * n)
    drawn = provider(space, method)(graph, torch.Generator().manual_seed(0))[:, 0]
    every = provider(space, method.replace("stochastic", "all"))(graph)[0]
    assert every.shape[0] == count
    match = (drawn[:, None] - every[None]).abs().amax((-1, -2)) < 1e-12  # (n, count)
    assert bool((match.sum(1) == 1).all())
    seen = match.sum(0).double()
    statistic = float(((seen - n / count) ** 2 / (n / count)).sum())
    assert statistic < CHI_SQUARE[count - 1]


def test_frames_are_drawn_independently_for_each_graph():
    """Neighbouring graphs of a batch get every pair of frames equally often."""
    n = 4000
    graph = transforms.joined([slab(1, rows=(1, 1))] * n)
    drawn = provider("2D", "stochastic")(graph, torch.Generator().manual_seed(1))[:, 0]
    code = (drawn[:, 0, 0] > 0).long() * 2 + (drawn[:, 1, 1] > 0).long()
    pairs = torch.bincount(code[0::2] * 4 + code[1::2], minlength=16).double()
    expected = n / 2 / 16
    assert float(((pairs - expected) ** 2 / expected).sum()) < 61.0  # 15 d.o.f., 1 - 2e-7


def test_draws_follow_the_generator():
    graph = transforms.joined([slab(1, rows=(1, 1))] * 50)
    frames = provider("3D", "stochastic")
    first = frames(graph, torch.Generator().manual_seed(3))
    assert torch.equal(first, frames(graph, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, frames(graph, torch.Generator().manual_seed(4)))


@pytest.mark.parametrize("proper", [False, True])
@pytest.mark.parametrize("planar", [False, True])
def test_sign_patterns(planar, proper):
    patterns = sign_patterns(planar, proper)
    count = (4 if planar else 8) // (2 if proper else 1)
    assert len(torch.unique(patterns, dim=0)) == len(patterns) == count
    assert not proper or bool((patterns.prod(-1) == 1).all())
    assert not planar or bool((patterns[:, 2] == 1).all())


@pytest.mark.parametrize("method", list(FAMethod))
@pytest.mark.parametrize("space", ["2D", "3D"])
def test_frames_are_orthogonal_and_proper_where_they_should_be(space, method):
    graph = transforms.joined([slab(s, rows=(1, 1)) for s in range(20)])
    frames = provider(space, method.value)(graph, torch.Generator().manual_seed(0))
    eye = torch.eye(3, dtype=frames.dtype).expand_as(frames)
    torch.testing.assert_close(frames.mT @ frames, eye, atol=1e-12, rtol=0)
    determinants = torch.linalg.det(frames)
    if method.value.startswith("se3"):
        assert bool((determinants > 0).all())
    elif method in (FAMethod.ALL, FAMethod.STOCHASTIC):
        assert bool((determinants < 0).any())
    if space == "2D":
        z = torch.tensor([0.0, 0.0, 1.0], dtype=frames.dtype)
        assert torch.equal(frames[..., 2], z.expand_as(frames[..., 2]))
        assert torch.equal(frames[..., 2, :], z.expand_as(frames[..., 2]))


def test_axes_are_those_of_largest_spread_first():
    graph = slab(1)
    frame = provider("3D", "se3-det", frame_source=FrameSource.POSITIONS)(graph)[0, 0]
    centred = graph.positions - graph.positions.mean(0)
    spread = (centred @ frame).square().sum(0)
    assert bool((spread[:-1] > spread[1:]).all())


@pytest.mark.parametrize("augmentation", list(Augmentation))
def test_data_augmentation_turns_each_graph_by_its_own_uniform_angle(augmentation):
    config = FAENetConfig(
        frame_averaging=FrameAveraging.DATA_AUGMENTATION, augmentation=augmentation
    )
    train, evaluation = frame_providers(config)
    graph = transforms.joined([slab(1, rows=(1, 1))] * 4000)
    turns = train(graph, torch.Generator().manual_seed(0))[:, 0]
    assert bool((torch.linalg.det(turns) > 0).all())
    mean = turns.mean(0)
    if augmentation is Augmentation.PLANE:
        assert torch.equal(turns[:, 2, 2], torch.ones(4000, dtype=turns.dtype))
        mean = mean - torch.diag(torch.tensor([0.0, 0.0, 1.0], dtype=mean.dtype))
    assert float(mean.abs().max()) < 0.06  # four standard errors of a cosine
    assert torch.equal(evaluation(graph)[0, 0], torch.eye(3, dtype=turns.dtype))


# --- awkward structures: finite predictions, forces and gradients, whatever comes in


def assert_finite_with_gradients(core, graph):
    """Energy, forces, slopes through the frames, and parameter gradients are finite."""
    core.train()
    out = core(graph, generator=torch.Generator().manual_seed(0))
    (out["energy"].square().sum() + out["forces"].square().sum()).backward()
    for name, value in out.items():
        assert bool(torch.isfinite(value).all()), name
    for name, parameter in core.named_parameters():
        if parameter.grad is not None:
            assert bool(torch.isfinite(parameter.grad).all()), name
    core.zero_grad(set_to_none=True)


@pytest.fixture(scope="module")
def gradient_models():
    """Models whose forces are slopes through the frames, by frame space and method."""
    return {
        (space, method): model(
            frame_averaging=FrameAveraging(space),
            fa_method=FAMethod(method),
            eval_fa_method=FAMethod(method),
            regress_forces=ForceMode.FROM_ENERGY,
            tag_hidden_channels=0,
        )
        for space in ("2D", "3D")
        for method in ("all", "det", "se3-det", "stochastic")
    }


@pytest.mark.parametrize("kind", KINDS)
def test_awkward_clouds_give_finite_numbers_and_gradients(gradient_models, kind):
    points = cloud(kind)
    graph = structure(points, [6] * len(points))
    for core in gradient_models.values():
        assert_finite_with_gradients(core, transforms.joined([graph, graph]))


@settings(
    max_examples=60, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(
    coordinates=st.lists(
        st.tuples(*[st.integers(-4, 4).map(lambda n: 0.75 * n)] * 3), min_size=1, max_size=6
    ),
    species=st.integers(1, 118),
    space=st.sampled_from(["2D", "3D"]),
    method=st.sampled_from(["all", "det", "se3-det", "stochastic"]),
    periodic=st.booleans(),
    shear=st.floats(-30, 30),
    length=st.floats(2, 500),
)
def test_any_small_structure_is_finite(
    gradient_models, coordinates, species, space, method, periodic, shear, length
):
    """Grid coordinates: coincidences, planes, lines and equal spreads come up often."""
    points = torch.tensor(coordinates, dtype=torch.float64)
    numbers = [1 + (species + 37 * k) % 118 for k in range(len(points))]
    cell = None
    if periodic:
        cell = torch.tensor(
            [[length, 0.0, 0.0], [shear, length, 0.0], [0.0, shear, length]], dtype=torch.float64
        )
    graph = structure(points, numbers, cell, reach=(1, 1, 1))
    assert graph.tags is None
    assert_finite_with_gradients(gradient_models[space, method], graph)


@pytest.mark.parametrize("number", range(1, 119))
def test_every_element_is_finite(gradient_models, number):
    graph = structure(cloud("three atoms"), [number, 119 - number, number])
    assert_finite_with_gradients(gradient_models["2D", "det"], graph)


def test_no_atoms_at_all_in_one_structure_of_a_batch(gradient_models):
    """An empty structure has the energy of nothing, and its mates do not notice."""
    graph = structure(cloud("three atoms"), [1, 6, 8])
    empty = structure(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    for core in gradient_models.values():
        core.eval()
        generator = torch.Generator().manual_seed(0)
        out = core(transforms.joined([graph, empty]), generator=generator)
        assert bool(torch.isfinite(out["energy"]).all())


def test_frame_quality_tells_the_degenerate_from_the_rest():
    kinds = ["hexagon", "three atoms", "inverted pair", "one atom"]
    graph = transforms.joined([structure(cloud(k), [6] * len(cloud(k))) for k in kinds])
    config = FAENetConfig(frame_averaging=FrameAveraging.PLANE, fa_method=FAMethod.DET)
    quality = frame_quality(graph, config)
    assert quality.equal_eigenvalues.tolist() == [True, False, False, True]
    assert quality.ambiguous_sign.tolist() == [False, False, True, False]
    assert quality.frames.tolist() == [12, 1, 1, 4]  # the pair: higher moments decide
    assert float(quality.gap[1]) > 1e-3
    assert float(quality.margin[1]) > 1e-5 > float(quality.margin[2])
