"""Forces: gradients against finite differences, taken only where asked for (issue 4, point 1)."""

from __future__ import annotations

import math

import pytest
import torch
from fairchem.core.datasets import data_list_collater

import plugin_fixtures as fx
from ocp_faenet.adapters.plugin import PUBLIC
from ocp_faenet.adapters.unpack import unpack
from ocp_faenet.models.config import ForceMode
from plugin_cases import hydra_like

MODEL = {**fx.TINY, "otf_graph": True, "regress_forces": "from_energy", "energy_head": None}
FRAMES = [
    {"frame_averaging": None},
    {"frame_averaging": "2D", "eval_fa_method": "det"},
    {"frame_averaging": "2D", "eval_fa_method": "stochastic"},
    {"frame_averaging": "3D", "eval_fa_method": "all", "frame_source": "edges"},
    {"frame_averaging": "3D", "eval_fa_method": "se3-det"},
    {"frame_averaging": "2D", "eval_fa_method": "se3-stochastic", "frame_source": "lattice"},
    {"frame_averaging": "2D", "fa_method": "learned"},
]


def model(**options) -> torch.nn.Module:
    """A small FAENet in float64; the same weights for the same options."""
    torch.manual_seed(0)
    return PUBLIC["FAENet"](**{**MODEL, **options}).double()


def batch(n: int = 2):
    """Periodic slabs in float64, without stored edges."""
    found = data_list_collater([fx.slab_record(seed) for seed in range(n)], otf_graph=True)
    found.pos, found.cell = found.pos.double(), found.cell.double()
    return found


def energy(network: torch.nn.Module, data, positions: torch.Tensor) -> torch.Tensor:
    """Sum of energies at ``positions`` under the same random choices each time."""
    moved = data.clone()
    moved.pos = positions
    torch.manual_seed(11)
    with torch.no_grad():
        return network(moved)["energy"].sum()


def differences(network: torch.nn.Module, data, entries) -> torch.Tensor:
    """``-dE/dx`` of some coordinates by central differences of fourth order."""
    step, found = 2e-3, []
    for atom, axis in entries:
        values = []
        for places in (-2, -1, 1, 2):
            positions = data.pos.clone()
            positions[atom, axis] += places * step
            values.append(energy(network, data, positions))
        found.append(-(values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step))
    return torch.stack(found)


@pytest.mark.parametrize("frames", FRAMES, ids=lambda f: "-".join(map(str, f.values())))
@pytest.mark.parametrize("rewiring", [None, "remove-tag-0"])
def test_forces_from_the_energy_are_its_gradient(frames, rewiring):
    network, data = model(**frames, graph_rewiring=rewiring).eval(), batch()
    torch.manual_seed(11)
    forces = network(data)["forces"]
    top = (data.tags > 0).nonzero().view(-1)
    entries = [(int(atom), axis) for atom in (top[0], top[-1]) for axis in range(3)]
    expected = differences(network, data, entries)
    found = torch.stack([forces[atom, axis] for atom, axis in entries])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert found.abs().max() > 1e-3


def test_the_frames_are_part_of_the_gradient():
    """Negative control: with the frames held fixed, the gradient is another one."""
    network, data = model(frame_averaging="2D", eval_fa_method="det").eval(), batch()
    graph = unpack(data, network.config, torch.float64)
    frames = network.core.backbone.eval_frames(graph).detach()
    fixed = network.core(graph, rotations=frames)["forces"]
    assert (fixed - network(data)["forces"]).abs().max() > 1e-4


def test_forces_of_a_few_structures_can_be_learned():
    """Fitted in one pose, they are right in another one: decoder, frames and way back agree."""
    data = data_list_collater([fx.slab_record(seed, edges=True) for seed in range(2)])
    data.pos, data.cell = data.pos.double(), data.cell.double()
    network = model(
        regress_forces="direct", frame_averaging="2D", fa_method="all", frame_source="edges",
        hidden_channels=48, num_filters=24, num_gaussians=20, otf_graph=False,
    ).train()  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    target, steps = data.force.double(), 60
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / steps)
        loss = (network(data)["forces"] - target).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    c, s = math.cos(0.8), math.sin(0.8)
    turn = torch.tensor([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    data.pos, data.cell = data.pos @ turn, data.cell @ turn
    found = network.eval()(data)["forces"]
    assert (found - target @ turn).abs().mean() < 0.2 * target.abs().mean()
    assert (found - target).abs().mean() > 0.3 * target.abs().mean()  # control: the other pose


def saved_tensors(network: torch.nn.Module, data) -> int:
    """How many tensors a pass keeps for a backward one."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(1) or t, lambda t: t):
        network(data)
    return len(kept)


@pytest.mark.parametrize("mode", [None, "direct", "direct_with_gradient_target", "from_energy"])
def test_inference_builds_no_graph_where_none_is_asked_for(mode):
    network, data = model(regress_forces=mode, frame_averaging="2D").eval(), batch()
    with torch.no_grad():
        out = network(data)
        kept = saved_tensors(network, data)
    assert all(value.grad_fn is None and not value.requires_grad for value in out.values())
    assert (kept > 0) is (mode == "from_energy")
    assert ("forces" in out) is (mode is not None)
    assert "forces_grad_target" not in out
    assert data.pos.grad is None
    assert not data.pos.requires_grad


@pytest.mark.parametrize("frames", FRAMES, ids=lambda f: "-".join(map(str, f.values())))
@pytest.mark.parametrize("ewald", [None, {"box": [1, 1, 1]}], ids=["short", "ewald"])
@pytest.mark.parametrize("form", ["plain", "hydra"])
def test_forces_from_the_energy_in_inference_mode(form, ewald, frames):
    """Also of a batch that was made in it; and training goes on afterwards."""
    options = {**MODEL, **frames, "ewald": ewald}
    network = PUBLIC["FAENet"](**options).eval()
    if form == "hydra":
        network = hydra_like(network, **{"fa_method": None, **options}).eval()

    def predictions(data):
        torch.manual_seed(11)
        out = network(data)
        return out["energy"], out["forces"]

    data = data_list_collater([fx.slab_record(seed) for seed in range(2)], otf_graph=True)
    exact = predictions(data)
    with torch.inference_mode():
        made_there = data.clone()
        found, again = predictions(data), predictions(made_there)
    assert made_there.pos.is_inference()
    for a, b, c in zip(found, again, exact, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, c)
    network.train()
    sum(value.square().sum() for value in predictions(data)).backward()


def test_training_takes_the_gradient_to_the_order_needed():
    data = batch()
    out = model(regress_forces="from_energy").train()(data)
    assert out["forces"].requires_grad  # trained through: second order
    out = model(regress_forces="direct_with_gradient_target").train()(data)
    assert not out["forces_grad_target"].requires_grad  # a constant: first order
    assert out["forces"].requires_grad
    out = model(regress_forces="direct").train()(data)
    assert "forces_grad_target" not in out


def test_every_mode_is_one_of_the_tested():
    assert {mode.value for mode in ForceMode} == {
        "direct",
        "from_energy",
        "direct_with_gradient_target",
    }
