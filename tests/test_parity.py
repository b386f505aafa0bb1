"""FAENet against the ``faenet`` 0.1.3 package with identical weights.

Departures of ours are turned off (graph norm per graph) or left out (elements that the reference
cannot hold). Errors are relative to the largest reference value of the batch.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import reference_cases as rc
from ocp_faenet.models.convert import LONGER, convert_state_dict

pytest.importorskip("faenet")


@pytest.fixture(scope="module")
def reference_model():
    with rc.reference_models() as make:
        yield make


def error(ours: Tensor, reference: Tensor) -> float:
    assert ours.shape == reference.shape
    assert ours.dtype == reference.dtype
    assert reference.abs().max() > 1e-3
    return float((ours - reference).abs().max() / reference.abs().max())


def errors(make, change: dict, dtype: torch.dtype, seed: int, training: bool) -> dict[str, float]:
    """Of predictions, and of what batch norm has seen, by name."""
    options = rc.SMALL | change
    s = rc.structures((9, 4, 14), dtype, seed)
    reference = make(options, dtype, seed).train(training)
    ours = rc.ours_like(reference, options, dtype).train(training)
    with torch.no_grad(), rc.in_dtype(dtype):
        expected = reference(rc.reference_data(s), mode="inference")
    with torch.no_grad():
        found = ours(rc.our_graph(s))
    seen = {key: error(found[key], expected[key]) for key in ("energy", "forces", "hidden_state")}
    for name, value in convert_state_dict(reference.state_dict(), ours.config).items():
        if "running" in name:  # batch norm saw the same rows
            seen[name] = error(ours.state_dict()[name], value)
    return seen


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("dtype", rc.TOLERANCE, ids=["float32", "float64"])
@pytest.mark.parametrize("change", rc.singles(), ids=rc.label)
def test_each_option_alone(reference_model, change, dtype, training):
    seen = errors(reference_model, change, dtype, 0, training)
    assert all(value < rc.TOLERANCE[dtype] for value in seen.values()), seen


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("dtype", rc.TOLERANCE, ids=["float32", "float64"])
@pytest.mark.parametrize("seed", range(30))
def test_random_combinations(reference_model, seed, dtype, training):
    seen = errors(reference_model, rc.combinations(30)[seed], dtype, seed, training)
    assert all(value < rc.TOLERANCE[dtype] for value in seen.values()), seen


def in_training(reference_model, options, dtype):
    """Both models with the same weights, and what they say of the same structures."""
    s = rc.structures((9, 4, 14), dtype)
    reference = reference_model(options, dtype).train()
    ours = rc.ours_like(reference, options, dtype).train()
    with rc.in_dtype(dtype):
        expected = reference(rc.reference_data(s), mode="train")
    return reference, ours, expected, ours(rc.our_graph(s))


@pytest.mark.parametrize("mode", ["from_energy", "direct_with_gradient_target"])
@pytest.mark.parametrize("dtype", rc.TOLERANCE, ids=["float32", "float64"])
def test_energy_gradients(reference_model, mode, dtype):
    options = rc.SMALL | {"regress_forces": mode, "mp_type": "updownscale_base", "graph_norm": True}
    _, _, expected, found = in_training(reference_model, options, dtype)
    keys = ["energy", "forces"] + ["forces_grad_target"] * (mode != "from_energy")
    for key in keys:
        assert error(found[key], expected[key]) < rc.TOLERANCE[dtype], key


@pytest.mark.parametrize("space", ["2D", "3D"])
@pytest.mark.parametrize("method", ["all", "se3-all"])
@pytest.mark.parametrize("dtype", rc.TOLERANCE, ids=["float32", "float64"])
@pytest.mark.parametrize("size", [5, 14])
def test_frame_averaging(reference_model, space, method, dtype, size):
    """All frames: the same set, so the same averages, whatever the signs of eigenvectors."""
    from faenet.fa_forward import model_forward
    from faenet.transforms import FrameAveraging

    options = rc.SMALL | {"mp_type": "updownscale_base", "graph_norm": True, "skip_co": "concat"}
    s = rc.structures((size,), dtype, seed=size)
    reference = reference_model(options, dtype).eval()
    frames = {"frame_averaging": space, "fa_method": method, "frame_source": "positions"}
    ours = rc.ours_like(reference, options, dtype, **frames, eval_fa_method=method).eval()
    with torch.no_grad(), rc.in_dtype(dtype):
        data = FrameAveraging(space, method)(rc.reference_data(s))
        expected = model_forward(data, reference, space, mode="inference")
    with torch.no_grad():
        found = ours(rc.our_graph(s))
        plain = rc.ours_like(reference, options, dtype).eval()(rc.our_graph(s))
    for key in ("energy", "forces"):
        value = found[key].view_as(expected[key])
        assert error(value, expected[key]) < rc.TOLERANCE[dtype], key
        assert error(plain[key].view_as(value), expected[key]) > 1e-3  # frames do matter


@pytest.mark.parametrize("mp_type", rc.CHOICES["mp_type"])
@pytest.mark.parametrize("mode", ["direct", "from_energy"])
def test_gradients_of_weights(reference_model, mode, mp_type):
    """One training step pulls the same way: through the convolution's own backward pass too."""
    options = rc.SMALL | {"regress_forces": mode, "mp_type": mp_type, "graph_norm": True}
    options |= {"phys_hidden_channels": 5, "energy_head": "weighted-av-initial-embeds"}
    dtype = torch.float64
    reference, ours, expected, found = in_training(reference_model, options, dtype)
    for out in (expected, found):
        (out["energy"].square().sum() + out["forces"].square().sum()).backward()
    slopes = reference.state_dict()
    slopes |= {k: torch.zeros_like(p) for k, p in reference.named_parameters()}
    slopes |= {k: p.grad for k, p in reference.named_parameters() if p.grad is not None}
    slopes = convert_state_dict(slopes, ours.config)
    scale = max(float(p.grad.abs().max()) for p in ours.parameters() if p.grad is not None)
    for name, p in ours.named_parameters():
        rows, _ = LONGER.get(name, (len(p), None))  # not those that only we have
        grad = torch.zeros_like(p) if p.grad is None else p.grad
        assert float((grad - slopes[name])[:rows].abs().max()) < 1e-10 * scale, name
