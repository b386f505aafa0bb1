"""The convolution's fast forms and the tables of edge features against their plain forms."""

from __future__ import annotations

import copy
import itertools
import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from ocp_faenet.geometry.frames import common_signs, sign_patterns
from ocp_faenet.models import backbone
from ocp_faenet.models.config import FAMethod
from ocp_faenet.models.faenet import FAENetCore
from ocp_faenet.models.graph import AtomGraph
from ocp_faenet.models.published import IS2RE, S2EF, with_method
from ocp_faenet.models.synthetic import oc20_like
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
from ocp_faenet.nn.convolution import convolve, convolve_plain
from ocp_faenet.nn.edges import EdgeEmbedding, cubic_taps
from ocp_faenet.nn.kept import Kept
from ocp_faenet.nn.messages import BLOCK, Messages, Operands, Taps
from ocp_faenet.nn.topology import Topology

FORMS = [False, True] if native.library() is not None else [False]


@pytest.fixture(params=FORMS, ids=lambda compiled: "compiled" if compiled else "torch")
def form(request, monkeypatch):
    """`convolve` with and without the compiled kernels."""
    if not request.param:
        monkeypatch.setattr(native, "library", lambda: None)
    return convolve


@pytest.fixture(autouse=True)
def same_weights():
    """How steep weights are decides on tables: the same ones in whatever order tests run."""
    torch.manual_seed(1)


def problem(
    counts, dtype, *, taps=3, atom_rows=2, seed=0, atoms=11, channels=32, terms=5, together=1
):
    """Inputs of a convolution; ``x`` and both tables descend from one tensor, as in the model."""
    g = torch.Generator().manual_seed(seed)
    edges = sum(counts)
    m = edges * together

    def random(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()

    def rows(n, *shape):
        return torch.randint(0, n, shape, generator=g)

    h, mix, features = random(atoms, channels), random(channels, channels), random(edges, terms)
    matrices = random(len(counts), terms, together * channels)
    weights = torch.rand(edges, taps, generator=g, dtype=torch.float64).to(dtype)
    radial = Taps(rows(2 * atoms, edges, taps), weights) if taps else None
    source, target = rows(atoms, m), rows(3 * atoms, m)
    messages = Messages(
        source, target % atoms, target, atoms, 3 * atoms, tuple(counts), radial, together
    )
    which = messages.pair_rows if atom_rows == 2 else messages.first_row
    leaves = (h, mix, features, matrices)

    def run(form, act=F.silu):
        table = torch.cat([h @ mix, torch.tanh(h)])
        radial_table = None if radial is None else table.square()
        operands = Operands(h, features, matrices, table, which, radial_table, messages)
        return form(operands, act)

    return leaves, run


def literal(operands, act):
    """The equation, message by message."""
    x, features, matrices, atoms, atom_rows, radial, messages = operands
    out = [torch.zeros_like(x[0]) for _ in range(messages.num_targets)]
    cells = [cell for cell, count in enumerate(messages.counts) for _ in range(count)]
    every, width = messages.together, x.shape[1]
    for m in range(len(cells) * every):
        e, g = divmod(m, every)
        columns = slice(g * width, (g + 1) * width)
        z = features[e] @ matrices[cells[e]][:, columns] + atoms[atom_rows[m]].sum(0)
        if radial is not None:
            taps = messages.radial
            for k in range(taps.rows.shape[1]):
                z = z + taps.weights[e, k] * radial[taps.rows[e, k]]
        out[messages.target[m]] = out[messages.target[m]] + x[messages.source[m]] * act(z)
    return torch.stack(out)


@pytest.mark.parametrize("counts", [(40,), (3, 0, 20, 1)])
@pytest.mark.parametrize("together", [1, 4])
def test_plain_form_is_the_equation(counts, together):
    _, run = problem(counts, torch.float64, together=together)
    torch.testing.assert_close(run(convolve_plain), run(literal), rtol=1e-12, atol=1e-12)


def errors(leaves, run, form):
    """Against the plain form: of the values and of each gradient, over the largest of each."""

    def values(form):
        out = run(form)
        g = torch.Generator().manual_seed(1)
        loss = (out * torch.randn(out.shape, generator=g).to(out)).sum()
        slopes = torch.autograd.grad(loss, leaves, allow_unused=True)
        return [out.detach(), *(torch.zeros(1) if s is None else s for s in slopes)]

    pairs = zip(values(form), values(convolve_plain), strict=True)
    return [float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs]


@pytest.mark.parametrize(
    "counts",
    [(1,), (7,), (BLOCK,), (2 * BLOCK + 17,), (BLOCK - 1, 0, 3, 2 * BLOCK, 1), (0, 5, 4, 97, 0)],
)
@pytest.mark.parametrize(("taps", "atom_rows", "together"), [(3, 2, 1), (0, 1, 1), (3, 2, 4)])
def test_blocks_give_the_plain_numbers_and_gradients(counts, taps, atom_rows, together):
    leaves, run = problem(counts, torch.float64, taps=taps, atom_rows=atom_rows, together=together)
    assert all(error < 1e-10 for error in errors(leaves, run, convolve))


@pytest.mark.parametrize("counts", [(1,), (2 * BLOCK + 17,), (0, 5, 4, 97, 0, 300)])
@pytest.mark.parametrize(("taps", "atom_rows"), [(0, 1), (1, 1), (4, 1), (0, 2), (1, 2), (4, 2)])
@pytest.mark.parametrize("channels", [32, 40])
def test_single_precision(form, counts, taps, atom_rows, channels):
    """What the compiled pass takes, to single precision, with odd numbers of channels too."""
    leaves, run = problem(counts, torch.float32, taps=taps, atom_rows=atom_rows, channels=channels)
    assert all(error < 2e-5 for error in errors(leaves, run, form))


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
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


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
def test_compiled_pass_at_the_ends_of_the_range():
    """Filters of any size: no overflow in the exponential, and nothing hidden in a NaN."""
    z = torch.tensor([-1e4, -100, -88, -87, -20, -1e-3, 0, 1e-30, 5, 87, 88, 1e4, float("nan")])
    z = torch.cat([z, torch.linspace(-30, 30, 51)])[:64].unsqueeze(0)
    zero = torch.zeros(1, dtype=torch.int64)
    messages = Messages(zero, zero, zero, 1, 1, (1,))
    args = (torch.ones(1, 64), torch.ones(1, 1), z[None], torch.zeros(1, 64), zero[None], None)
    out = convolve(Operands(*args, messages), F.silu)
    torch.testing.assert_close(out, F.silu(z), rtol=5e-7, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize("counts", [(1,), (BLOCK + 17,), (0, 5, 4, 97, 0, 300)])
@pytest.mark.parametrize(("taps", "together"), [(0, 2), (1, 4), (4, 4), (4, 200)])
def test_messages_that_share_their_features(form, counts, taps, together):
    """Frames together: more of them than a piece or block holds rows for, too."""
    if together == 200:
        counts = counts[:4]
    leaves, run = problem(counts, torch.float32, taps=taps, together=together)
    assert all(error < 2e-5 for error in errors(leaves, run, form))


def test_second_derivatives():
    leaves, run = problem((200, 0, 100), torch.float64)

    def second(form):
        first = torch.autograd.grad(run(form).square().sum(), leaves, create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)]

    for a, b in zip(second(convolve), second(convolve_plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_no_edges_give_zeros():
    leaves, run = problem((0,), torch.float64)
    out = run(convolve)
    assert out.shape == (33, 32)
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
    got = taps.gather(cubic(grid))
    torch.testing.assert_close(got, cubic(d), rtol=1e-9, atol=1e-9)


def embedding(act=F.silu, tabulate=True):
    torch.manual_seed(0)
    return EdgeEmbedding(6.0, 104, 48, act, second_layer=False, tabulate=tabulate)


def random_edges(n, dtype=torch.float32, frames=1):
    g = torch.Generator().manual_seed(0)
    d = 0.7 + 5.3 * torch.rand(n, generator=g, dtype=torch.float64)
    vectors = F.normalize(torch.randn(frames, n, 3, generator=g, dtype=torch.float64), dim=-1)
    return (vectors * d.unsqueeze(-1)).to(dtype), d.to(dtype)


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


@torch.no_grad()
def test_weights_that_are_no_numbers_give_none():
    """A diverged model predicts NaN, as without tables; it is not a failed eigenvalue problem."""
    model = EdgeEmbedding(6.0, 104, 480, F.silu, second_layer=False)
    model.directional.bias[7] = float("nan")
    values = model(*random_edges(20000)).full()
    assert values[..., 7].isnan().all()


def test_turned_rows_are_products(form):
    """Cells without rows, with one, and sizes that fill no vector."""
    g = torch.Generator().manual_seed(0)
    counts = (0, 1, 7, 0, 150, 3)
    rows, matrices = torch.randn(161, 20, generator=g), torch.randn(6, 20, 13, generator=g)
    cells = torch.arange(6).repeat_interleave(torch.tensor(counts))
    want = torch.einsum("mk,mkc->mc", rows.double(), matrices.double()[cells])
    torch.testing.assert_close(turn(rows, matrices, counts).double(), want, rtol=0, atol=1e-5)


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


#: Groups of signs: about z, about z without mirrors, all mirrors, rotations alone.
GROUPS = {
    "2D": sign_patterns(planar=True, proper=False),
    "2D, proper": sign_patterns(planar=True, proper=True),
    "3D": sign_patterns(planar=False, proper=False),
    "3D, proper": sign_patterns(planar=False, proper=True),
}


def signed_edges(group):
    """Edges in one frame and in all that differ from it in signs; some on planes of symmetry."""
    vectors, d = random_edges(24_000 // len(GROUPS[group]))
    vectors[0, :600, :2] *= torch.randint(0, 2, (600, 2)) * torch.tensor([1.0, -1.0])
    d = vectors[0].norm(dim=-1)
    signs = tuple(tuple(row) for row in GROUPS[group].int().tolist())
    return vectors * GROUPS[group].unsqueeze(1), d, signs


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("training", [True, False])
def test_frames_that_differ_in_signs_share_their_basis(group, training):
    vectors, d, signs = signed_edges(group)
    model = EdgeEmbedding(6.0, 104, 480, F.silu, second_layer=False)
    with torch.no_grad():
        model.directional.bias.normal_()
    with torch.set_grad_enabled(training):
        features = model(vectors, d, signs)
        assert features.cells.together == len(signs)
        assert features.factors.shape[0] == sum(features.cells.counts) == len(d)
        assert torch.equal(features.cells.order.sort()[0], torch.arange(len(signs) * len(d)))
        exact = copy.deepcopy(model).double()(vectors.double(), d.double()).full()
        error = (features.full() - exact).abs().max() / exact.abs().max()
        assert float(error) < 4e-6
        if training:
            cotangent = torch.randn(exact.shape, generator=torch.Generator().manual_seed(3))
            weights = (model.directional.weight, model.directional.bias)
            got = torch.autograd.grad((features.full() * cotangent).sum(), weights)
            apart = model(vectors, d).full()
            want = torch.autograd.grad((apart * cotangent).sum(), weights)
            for a, b in zip(got, want, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=5e-5 * float(b.abs().max()))


def test_signs_are_seen_only_where_nothing_else_differs():
    axes = torch.linalg.qr(torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0)))[0]
    patterns = GROUPS["2D"]
    frames = axes.unsqueeze(1) * patterns.unsqueeze(-2)
    found = common_signs(frames)
    assert torch.equal(torch.tensor(found), patterns.long())
    turned = common_signs(frames[:, [2, 0, 3, 1]])  # against another first frame
    assert turned[0] == (1, 1, 1)
    assert set(turned) == set(found)
    assert common_signs(frames[:, :1]) is None
    assert common_signs(frames[:, :3]) is None  # no group
    assert common_signs(frames[:, [0, 1, 1, 0]]) is None
    assert common_signs(frames.clone().requires_grad_()) is None
    one_bit = frames.clone()
    one_bit[1, 2, 0, 0] = torch.nextafter(one_bit[1, 2, 0, 0], torch.ones(()))
    assert common_signs(one_bit) is None
    other = frames.clone()
    other[1] = other[1, [0, 2, 1, 3]]  # a structure whose frames come in another order
    assert common_signs(other) is None
    assert common_signs(torch.full((2, 4, 3, 3), float("nan"))) is None


@pytest.mark.parametrize("training", [True, False])
def test_frames_together_are_frames_apart(form, training, monkeypatch):
    """Energies, and gradients of a training step, with the four frames together and apart."""
    torch.manual_seed(0)
    small = replace(with_method(IS2RE, FAMethod.ALL), num_interactions=2, hidden_channels=256)
    model = FAENetCore(small).train(training)
    graph = oc20_like(87, 3)
    seen, original = [], EdgeEmbedding.forward
    monkeypatch.setattr(
        EdgeEmbedding, "forward", lambda *args: seen.append(original(*args)) or seen[-1]
    )

    def run():
        with torch.set_grad_enabled(training):
            energy = model(graph)["energy"]
            if not training:
                return energy, []
            grads = torch.autograd.grad(energy.sum(), list(model.parameters()), allow_unused=True)
        return energy, [g for g in grads if g is not None]

    together = run()
    monkeypatch.setattr(backbone, "common_signs", lambda rotations: None)
    apart = run()
    assert [features.cells.together for features in seen] == [4, 1]
    torch.testing.assert_close(together[0], apart[0], rtol=1e-5, atol=1e-6)
    for a, b in zip(together[1], apart[1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * float(b.abs().max()) + 1e-9)


def test_messages_in_cells_lead_where_edges_lead():
    """Every edge in every frame is there once, with its own ends and distance."""
    n, frames = 30, 3
    vectors, d = random_edges(9000, frames=frames)
    target = torch.sort(torch.arange(9000) % n)[0]
    topology = Topology(torch.arange(9000) * 7 % n, target, torch.zeros(n, dtype=torch.int64), 1)
    model = EdgeEmbedding(6.0, 104, 480, F.silu, second_layer=False)
    features = model(vectors, d).on(topology)
    own, shared = features.laid
    assert features.on(topology) is features
    order = features.cells.order
    assert torch.equal(order.sort()[0], torch.arange(frames * 9000))
    frame, edge = order // 9000, order % 9000
    assert torch.equal(own.source, topology.source[edge] + n * frame)
    assert torch.equal(own.centre, target[edge] + n * frame)
    assert torch.equal(own.centre, own.target)
    assert torch.equal(shared.source, topology.source[edge])
    assert torch.equal(shared.centre, target[edge])
    assert torch.equal(shared.target, own.target)
    assert torch.equal(own.radial.rows, features.taps.rows[edge])


@pytest.mark.parametrize("group", GROUPS)
def test_messages_of_frames_together_lead_where_edges_lead(group):
    vectors, d, signs = signed_edges(group)
    n, frames, e = 30, len(signs), len(d)
    target = torch.sort(torch.arange(e) % n)[0]
    topology = Topology(torch.arange(e) * 7 % n, target, torch.zeros(n, dtype=torch.int64), 1)
    model = EdgeEmbedding(6.0, 104, 480, F.silu, second_layer=False)
    with torch.no_grad():
        features = model(vectors, d, signs)
    own, shared = features.on(topology).laid
    frame, edge = features.cells.order // e, features.cells.order % e
    assert own.together == shared.together == frames
    assert torch.equal(edge.view(-1, frames), edge[::frames, None].expand(-1, frames))
    assert torch.equal(own.source, topology.source[edge] + n * frame)
    assert torch.equal(own.target, target[edge] + n * frame)
    assert torch.equal(shared.source, topology.source[edge])
    assert torch.equal(own.radial.rows, features.taps.rows[edge[::frames]])


@pytest.mark.parametrize("config", [with_method(IS2RE, FAMethod.ALL), with_method(S2EF, None)])
def test_whole_model_in_single_precision(form, config):
    """Published sizes: all tables and passes together against plain double precision."""
    # The four frames differ in signs, so the first of these takes them together.
    torch.manual_seed(0)
    model = FAENetCore(config).eval()
    graph = oc20_like(45, 2)
    with torch.no_grad():
        fast = model(graph)
        kept = model(graph)
    assert model.backbone.edge_embedding.kept_cells._state is not None
    wide = AtomGraph.build(
        graph.positions.double(), graph.atomic_numbers, graph.batch, 2, graph.edge_index,
        cell=graph.cell.double(), cell_offsets=graph.cell_offsets.double(), tags=graph.tags,
    )  # fmt: skip
    with torch.no_grad():
        exact = model.double()(wide)
    assert fast.keys() == exact.keys()
    for key, value in exact.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(fast[key].double(), value, rtol=0, atol=1e-5 * scale)
        assert torch.equal(kept[key], fast[key])


class TestKept:
    """Values are kept while parameters stay the same, and never longer."""

    def make(self):
        linear, kept, calls = nn.Linear(3, 2), Kept(), []

        def value(constant="a"):
            def make():
                calls.append(1)
                return 2 * linear.weight

            return kept.get((linear.weight,), (constant,), make)

        return linear, kept, calls, value

    def test_kept(self):
        _, _, calls, value = self.make()
        with torch.no_grad():
            assert value() is value()
            assert len(calls) == 1
            assert value("b") is not value("a")

    @pytest.mark.parametrize("how", ["in place", "through .data", "loaded", "one bit"])
    def test_made_anew_however_a_parameter_changes(self, how):
        linear, _, _, value = self.make()
        with torch.no_grad():
            value()
            if how == "in place":
                linear.weight.add_(1)
            elif how == "through .data":
                linear.weight.data.copy_(torch.ones(2, 3))
            elif how == "loaded":
                linear.load_state_dict({k: v + 1 for k, v in linear.state_dict().items()})
            else:
                linear.weight.data[1, 2].copy_(torch.nextafter(linear.weight[1, 2], torch.ones(())))
            assert torch.equal(value(), 2 * linear.weight)

    def test_nothing_is_kept_with_gradients(self):
        _, _, calls, value = self.make()
        assert value().requires_grad
        value()
        assert len(calls) == 2

    def test_copies_start_empty(self):
        _, kept, _, value = self.make()
        with torch.no_grad():
            value()
        assert copy.deepcopy(kept)._state is None
        assert pickle.loads(pickle.dumps(kept))._state is None


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
