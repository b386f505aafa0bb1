"""The convolution's fast forms against their plain ones, alone and in whole models."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ocp_faenet.models.config import FAMethod
from ocp_faenet.models.faenet import FAENetCore
from ocp_faenet.models.graph import AtomGraph
from ocp_faenet.models.published import IS2RE, S2EF, with_method
from ocp_faenet.models.synthetic import oc20_like
from ocp_faenet.nn import native
from ocp_faenet.nn.cells import (
    turn,
)
from ocp_faenet.nn.convolution import convolve, convolve_plain
from ocp_faenet.nn.messages import BLOCK, Messages, Operands, Taps

pytestmark = pytest.mark.usefixtures("same_weights")


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
    messages = Messages(source, target % atoms, target, 3 * atoms, tuple(counts), radial, together)
    which = messages.pair_rows if atom_rows == 2 else messages.first_row
    leaves = (h, mix, features, matrices)

    def run(form, act=F.silu):
        table = torch.stack([h @ mix, torch.tanh(h)], dim=1).flatten(0, 1)
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
def test_compiled_pass_at_the_ends_of_the_range():
    """Filters of any size: no overflow in the exponential, and nothing hidden in a NaN."""
    z = torch.tensor([-1e4, -100, -88, -87, -20, -1e-3, 0, 1e-30, 5, 87, 88, 1e4, float("nan")])
    z = torch.cat([z, torch.linspace(-30, 30, 51)])[:64].unsqueeze(0)
    zero = torch.zeros(1, dtype=torch.int64)
    messages = Messages(zero, zero, zero, 1, (1,))
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


def test_turned_rows_are_products(form):
    """Cells without rows, with one, and sizes that fill no vector."""
    g = torch.Generator().manual_seed(0)
    counts = (0, 1, 7, 0, 150, 3)
    rows, matrices = torch.randn(161, 20, generator=g), torch.randn(6, 20, 13, generator=g)
    cells = torch.arange(6).repeat_interleave(torch.tensor(counts))
    want = torch.einsum("mk,mkc->mc", rows.double(), matrices.double()[cells])
    torch.testing.assert_close(turn(rows, matrices, counts).double(), want, rtol=0, atol=1e-5)


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
