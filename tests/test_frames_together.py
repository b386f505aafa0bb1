"""Frames that differ in signs, taken together, against each of them apart."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from convolution_cases import random_edges
from ocp_faenet.geometry.frames import common_signs, sign_patterns
from ocp_faenet.models import backbone
from ocp_faenet.models.config import FAMethod
from ocp_faenet.models.faenet import FAENetCore
from ocp_faenet.models.published import IS2RE, with_method
from ocp_faenet.models.synthetic import oc20_like
from ocp_faenet.nn.edges import EdgeEmbedding
from ocp_faenet.nn.topology import Topology

pytestmark = pytest.mark.usefixtures("same_weights")


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
