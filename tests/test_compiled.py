"""``torch.compile`` and ``torch.func`` around the model: the numbers of the model by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.autograd import forward_ad

from ocp_faenet.models.config import FAENetConfig, FAMethod, ForceMode, MPType
from ocp_faenet.models.faenet import FAENetCore
from ocp_faenet.models.published import IS2RE, with_method
from ocp_faenet.models.synthetic import oc20_like

pytestmark = pytest.mark.usefixtures("same_weights")

SMALL = FAENetConfig(
    hidden_channels=64, num_filters=32, num_interactions=1, tag_hidden_channels=8,
    pg_hidden_channels=8,
)  # fmt: skip
#: At the size of IS2RE every table is used.
MODELS = {
    "tables": replace(with_method(IS2RE, FAMethod.DET), num_interactions=1),
    "from_energy": replace(SMALL, regress_forces=ForceMode.FROM_ENERGY),
}


def loss_of(out):
    """Of the energies and, where there are any, of the forces."""
    return sum(out[key].square().sum() for key in ("energy", "forces") if key in out)


def step(run, parameters, graph):
    """The loss of a training step, and its gradients."""
    loss = loss_of(run(graph))
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return loss.detach(), [g for g in found if g is not None]


@pytest.mark.parametrize("name", MODELS)
def test_compiled_models_train_and_predict(name):
    model, graph = FAENetCore(MODELS[name]), oc20_like(87, 3)
    parameters = list(model.parameters())
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    loss, gradients = step(compiled, parameters, graph)
    exact, expected = step(model, parameters, graph)
    torch.testing.assert_close(loss, exact, rtol=1e-6, atol=0)
    for a, b in zip(gradients, expected, strict=True):
        # Traced models take the plain form; the tables are right to this (docs/performance.md).
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5 * float(b.abs().max()))
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(graph)["energy"], model(graph)["energy"])


def test_gradients_by_torch_func(form):
    """Transforms take the plain form of the convolution, of which they know every derivative."""
    model, graph = FAENetCore(SMALL), oc20_like(40, 2)
    parameters = dict(model.named_parameters())

    def loss(values):
        return loss_of(torch.func.functional_call(model, values, (graph,)))

    found = torch.func.grad(loss)(parameters)
    exact = torch.autograd.grad(loss(parameters), list(parameters.values()))
    largest = max(float(b.abs().max()) for b in exact)
    for name, b in zip(parameters, exact, strict=True):
        torch.testing.assert_close(found[name], b, rtol=0, atol=1e-6 * largest)


@pytest.mark.parametrize("kind", [MPType.SIMPLE, MPType.BASE])
@pytest.mark.parametrize("by", ["forward_ad", "jvp"])
def test_forward_mode_derivatives_where_no_gradients_are_taken(kind, by, form):
    model = FAENetCore(replace(SMALL, mp_type=kind, num_filters=64)).eval()
    graph = oc20_like(30, 1)
    direction = torch.randn(graph.positions.shape, generator=torch.Generator().manual_seed(0))

    def energy(positions):
        return model(graph.with_positions(positions))["energy"].sum()

    positions = graph.positions.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(energy(positions), positions)
    with torch.no_grad():
        if by == "jvp":
            _, found = torch.func.jvp(energy, (graph.positions,), (direction,))
        else:
            with forward_ad.dual_level():
                dual = forward_ad.make_dual(graph.positions, direction)
                found = forward_ad.unpack_dual(energy(dual)).tangent
    torch.testing.assert_close(found, (gradient * direction).sum(), rtol=1e-3, atol=1e-5)
