"""The blocked convolution and the radial table against their plain forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ocp_faenet.nn.convolution import BLOCK, Taps, convolve, convolve_plain
from ocp_faenet.nn.edges import EdgeEmbedding, cubic_taps


def problem(frames_x, frames, edges, dtype, seed=0, atoms=11, channels=6, features=5, k=3):
    """Inputs of a convolution; ``x`` and ``table`` descend from one tensor, as in the model."""
    g = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=g, dtype=dtype, requires_grad=True)

    h = random(frames_x, atoms, channels)
    mix = random(channels, channels)
    dense, weight = random(frames, edges, features), random(channels, features)
    taps = Taps(
        torch.randint(0, 2 * atoms, (edges, k), generator=g),
        torch.rand(edges, k, generator=g, dtype=dtype),
    )
    source = torch.randint(0, atoms, (edges,), generator=g)
    target = torch.sort(torch.randint(0, atoms, (edges,), generator=g))[0]
    leaves = (h, mix, dense, weight)

    def run(form):
        table = torch.cat([h @ mix, torch.tanh(h)], dim=-2)
        return form(h, dense, weight, table, taps, source, target, F.silu)

    return leaves, run


def literal(x, dense, weight, table, taps, source, target, act):
    """The equation, edge by edge."""
    frames = dense.shape[0]
    rows = []
    for f in range(frames):
        xf, tf = x[f % x.shape[0]], table[f % table.shape[0]]
        out = [torch.zeros_like(xf[0]) for _ in range(x.shape[1])]
        for e in range(dense.shape[1]):
            z = weight @ dense[f, e]
            for k in range(taps.rows.shape[1]):
                z = z + taps.weights[e, k] * tf[taps.rows[e, k]]
            out[target[e]] = out[target[e]] + xf[source[e]] * act(z)
        rows.append(torch.stack(out))
    return torch.stack(rows)


def test_plain_form_is_the_equation():
    _, run = problem(1, 2, 40, torch.float64)
    torch.testing.assert_close(run(convolve_plain), run(literal), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("edges", [1, 7, BLOCK, BLOCK + 1, 2 * BLOCK + 17])
@pytest.mark.parametrize(("frames_x", "frames"), [(1, 1), (1, 3), (3, 3)])
def test_blocks_give_the_plain_numbers_and_gradients(frames_x, frames, edges):
    leaves, run = problem(frames_x, frames, edges, torch.float64)
    plain, blocked = run(convolve_plain), run(convolve)
    torch.testing.assert_close(blocked, plain, rtol=1e-11, atol=1e-11)
    cotangent = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1)).double()
    want = torch.autograd.grad((plain * cotangent).sum(), leaves)
    got = torch.autograd.grad((blocked * cotangent).sum(), leaves)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_second_derivatives():
    leaves, run = problem(1, 2, 300, torch.float64)

    def second(form):
        first = torch.autograd.grad(run(form).square().sum(), leaves, create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)]

    for a, b in zip(second(convolve), second(convolve_plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_no_edges_give_zeros():
    leaves, run = problem(1, 2, 0, torch.float64)
    out = run(convolve)
    assert out.shape == (2, 11, 6)
    assert not out.any()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out.sum(), leaves))


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
    got = taps.gather(cubic(grid).unsqueeze(0))[0]
    torch.testing.assert_close(got, cubic(d), rtol=1e-9, atol=1e-9)


def embedding(act=F.silu, tabulate=True):
    torch.manual_seed(0)
    return EdgeEmbedding(6.0, 104, 48, act, second_layer=False, tabulate=tabulate)


def random_edges(n, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    vectors = torch.randn(1, n, 3, generator=g, dtype=dtype)
    d = 0.7 + 5.3 * torch.rand(n, generator=g, dtype=dtype)
    return vectors, d


def test_radial_table_is_right_to_single_precision():
    vectors, d = random_edges(5000)
    model = embedding()
    by_table = model(vectors, d)
    assert by_table.radial.shape[0] == model.grid_points < len(d)
    exact = model.double()(vectors.double(), d.double()).full()
    error = (by_table.full().double() - exact).abs().max() / exact.abs().max()
    assert error < 2e-6


def test_radial_table_is_left_where_it_would_not_be_exact():
    vectors, d = random_edges(5000)
    assert embedding().double()(vectors.double(), d.double()).taps is None
    assert embedding(F.relu)(vectors, d).taps is None
    assert embedding()(vectors, d.clone().requires_grad_()).taps is None
    assert embedding()(vectors[:, :10], d[:10]).taps is None


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
    vectors, d = random_edges(5000)
    model = embedding(F.relu)
    model.smooth = True
    by_table = model(vectors, d).full().double()
    exact = model.double()(vectors.double(), d.double()).full()
    assert (by_table - exact).abs().max() / exact.abs().max() > 1e-5
