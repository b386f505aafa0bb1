"""The tables of edge features against their plain forms."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from convolution_cases import random_edges
from ocp_faenet.nn import native
from ocp_faenet.nn.cells import (
    LEFT_OUT,
    ONE,
    REACH,
    TOLERANCE,
    CellGrid,
    chebyshev_products,
    choose_grid,
    leading,
    turn,
)
from ocp_faenet.nn.edges import EdgeEmbedding, cubic_taps

pytestmark = pytest.mark.usefixtures("same_weights")


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("degree", sorted(REACH))
def test_compiled_basis(degree):
    local = 2 * torch.rand(100, 3, generator=torch.Generator().manual_seed(0)) - 1
    compiled = chebyshev_products(local, degree)
    assert compiled.shape == (100, CellGrid(6.0, 2, degree).terms)
    exact = chebyshev_products(local.double(), degree)
    torch.testing.assert_close(compiled.double(), exact, rtol=0, atol=5e-6)
    with native.switched_off():
        plain = chebyshev_products(local, degree)
    torch.testing.assert_close(compiled, plain, rtol=0, atol=5e-6)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.5, 20.0), st.integers(4, 500), st.integers(0, 2**31))
def test_cubic_taps_reproduce_cubics(cutoff, points, seed):
    d = cutoff * torch.rand(50, generator=torch.Generator().manual_seed(seed)).double()
    d[0], d[1] = 0.0, cutoff
    taps = cubic_taps(d, cutoff, points)
    assert int(taps.rows.min()) >= 0
    assert int(taps.rows.max()) < points

    def cubic(x):
        x = x / cutoff
        return torch.stack([1 + 0 * x, x, x**2 - 3 * x**3], -1)

    grid = torch.linspace(0, cutoff, points, dtype=torch.float64)
    got = taps.gather(cubic(grid))
    torch.testing.assert_close(got, cubic(d), rtol=1e-9, atol=1e-9)


def embedding(act=F.silu, tabulate=True):
    torch.manual_seed(0)
    return EdgeEmbedding(6.0, 104, 48, act, second_layer=False, tabulate=tabulate)


def relative_error(model, edges):
    found = model(*edges).full().double()
    exact = copy.deepcopy(model).double()(*(part.double() for part in edges)).full()
    return float((found - exact).abs().max() / exact.abs().max())


def test_radial_table_is_right_to_single_precision():
    edges = random_edges(5000)
    model = embedding()
    features = model(*edges)
    assert features.radial.shape[0] == model.grid_points < 5000
    assert features.cells is None
    assert relative_error(model, edges) < 2e-6


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_tables_are_right_to_single_precision(training, frames, scale):
    edges = random_edges(20000, frames=frames)
    model = EdgeEmbedding(6.0, 104, 480, F.silu, second_layer=False)
    with torch.no_grad():
        model.directional.weight.mul_(scale)
        model.directional.bias.normal_()
    with torch.set_grad_enabled(training):
        cells = model(*edges).cells
        assert cells is not None or (training and scale > 1)
        assert sum(cells.counts) == 20000 * frames if cells else True
        assert relative_error(model, edges) < 4e-6


def test_gradients_through_cells():
    """Weights learn the same through the polynomials as without them."""
    edges = random_edges(20000)
    model = EdgeEmbedding(6.0, 20, 480, F.silu, second_layer=False)
    cotangent = torch.randn(1, 20000, 480, generator=torch.Generator().manual_seed(3))

    def gradients(model, edges, cotangent):
        features = model(*edges)
        loss = (features.full() * cotangent).sum()
        return features, torch.autograd.grad(loss, list(model.parameters()))

    features, got = gradients(model, edges, cotangent)
    assert features.cells is not None
    wide = copy.deepcopy(model).double()
    _, want = gradients(wide, [part.double() for part in edges], cotangent.double())
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=2e-5 * float(b.abs().max()))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(REACH)), st.integers(1, 9), st.floats(0.5, 12.0), st.integers(0, 999))
def test_every_degree_reaches_as_far_as_it_says(degree, side, cutoff, seed):
    """Random and axis-aligned weights at the limit of a degree, anywhere in the ball."""
    g = torch.Generator().manual_seed(seed)
    grid = CellGrid(cutoff, side, degree)
    weight = torch.randn(64, 3, generator=g, dtype=torch.float64)
    weight[:3] = torch.eye(3)
    weight *= REACH[degree] / grid.half / weight.abs().sum(1, keepdim=True)
    bias = 4 * torch.randn(64, generator=g, dtype=torch.float64)
    direction = F.normalize(torch.randn(400, 3, generator=g, dtype=torch.float64), dim=-1)
    v = direction * cutoff * torch.rand(400, 1, generator=g, dtype=torch.float64) ** (1 / 3)
    v[:8] = cutoff / 3**0.5 * torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)))
    v[8:11] = cutoff * torch.eye(3)
    coefficients = grid.coefficients(F.silu(grid.nodes() @ weight.T + bias)).squeeze(2)
    cell, local, _ = grid.place(v)
    assert float(local.abs().max()) <= 1 + 1e-9
    got = torch.einsum("mk,mkc->mc", grid.basis(local), coefficients[cell])
    assert float((got - F.silu(v @ weight.T + bias)).abs().max()) < 2 * TOLERANCE


@pytest.mark.parametrize("signs", [ONE, ((1, 1, 1), (-1, 1, 1))])
def test_leading_directions_leave_out_what_they_say(form, signs):
    """In a third of the directions; anywhere in the cells, and where coefficients need them all."""
    g = torch.Generator().manual_seed(0)
    grid = CellGrid(6.0, 6, 6, signs)
    weight = torch.empty(240, 3, dtype=torch.float64).uniform_(-0.15, 0.15, generator=g)
    coefficients = grid.coefficients(F.silu(grid.nodes() @ weight.T)).float()
    directions, few = leading(coefficients, 6)
    assert few.shape[1] == directions.shape[2] < 0.5 * grid.terms
    local = 2 * torch.rand(20 * grid.num_cells, 3, generator=g) - 1
    local[::20] = local[::20].sign()  # corners
    basis, counts = grid.basis(local), (20,) * grid.num_cells
    turned = turn(basis, directions, counts)
    cells = torch.arange(grid.num_cells).repeat_interleave(20)
    want = torch.einsum("mk,mkgc->mgc", basis.double(), coefficients.double()[cells])
    got = torch.einsum("mk,mkgc->mgc", turned.double(), few.double()[cells])
    assert 1e-9 < float((got - want).abs().max()) < 2 * LEFT_OUT
    full = torch.randn(3, 35, 1, 240, generator=g)
    directions, every = leading(full, 4)
    assert every.shape == full.shape
    torch.testing.assert_close(directions @ every.flatten(2), full.flatten(2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("part", ["weight", "bias"])
@pytest.mark.parametrize("layer", ["directional", "radial"])
@pytest.mark.parametrize("training", [True, False])
def test_weights_that_are_no_numbers_give_none(training, layer, part, value):
    """A diverged model predicts none, as without tables; it is not a failed eigenvalue problem."""
    model = EdgeEmbedding(6.0, 104, 480, F.silu, second_layer=False)
    with torch.no_grad():
        getattr(getattr(model, layer), part)[7].fill_(float(value))
    channel = 7 if layer == "directional" else 247
    with torch.set_grad_enabled(training):
        values = model(*random_edges(20000)).full()[..., channel]
    assert not values.isfinite().any()


def test_grid_is_chosen_by_work():
    assert choose_grid(6.0, 0.45, 100, 240, kept=False) is None
    small = choose_grid(6.0, 0.45, 24_000, 240, kept=False)
    large = choose_grid(6.0, 0.45, 1_000_000, 240, kept=False)
    assert large.terms < small.terms < 240
    near = {choose_grid(6.0, 0.45, m, 240, kept=True) for m in range(12_000, 30_000, 1000)}
    assert len(near) == 1
    few = choose_grid(6.0, 0.45, 3000, 240, kept=True)
    assert few.num_cells * few.terms < large.num_cells * large.terms
    assert choose_grid(6.0, 30.0, 1_000_000, 240, kept=True) is None
    for steepness in (math.nan, math.inf, 3e38):
        assert choose_grid(6.0, steepness, 24_000, 240, kept=False) is None


def test_tables_are_left_where_they_would_not_be_exact():
    vectors, d = random_edges(20000)
    model = EdgeEmbedding(6.0, 104, 480, F.silu, second_layer=False)

    def tables(model, vectors, d):
        features = model(vectors, d)
        return features.cells is not None, features.taps is not None

    assert tables(model, vectors, d) == (True, True)
    assert tables(copy.deepcopy(model).double(), vectors.double(), d.double()) == (False, False)
    assert tables(model, vectors.clone().requires_grad_(), d) == (False, False)
    assert tables(model, vectors, d.clone().requires_grad_()) == (False, False)
    assert tables(model, 1.1 * vectors, 1.1 * d) == (False, False)
    assert tables(model, vectors[:, :10], d[:10]) == (False, False)
    relu = EdgeEmbedding(6.0, 104, 480, F.relu, second_layer=False)
    assert tables(relu, vectors, d) == (False, False)


def test_radial_part_is_computed_once_for_all_frames():
    vectors, d = random_edges(50, torch.float64)
    model = embedding().double()
    frames = vectors * torch.tensor([1.0, -1.0]).view(2, 1, 1)
    shared = model(frames, d)
    assert shared.radial.shape == (50, 24)
    alone = torch.cat([model(frame[None], d).full() for frame in frames])
    torch.testing.assert_close(shared.full(), alone, rtol=1e-12, atol=1e-12)


def test_radial_table_would_be_wrong_for_kinks():
    """Negative control of the rule for activations: interpolation across kinks is off."""
    model = embedding(F.relu)
    model.smooth = True
    vectors, d = random_edges(5000)
    by_table = model(vectors, d).full().double()
    model.smooth = False
    exact = model.double()(vectors.double(), d.double()).full()
    assert (by_table - exact).abs().max() / exact.abs().max() > 1e-5
