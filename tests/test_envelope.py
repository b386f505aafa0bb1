"""Messages that fade out at the cutoff."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ocp_faenet.models import AtomGraph, FAENetConfig, FAENetCore
from ocp_faenet.models.config import FAMethod, FrameAveraging, MPType
from ocp_faenet.nn.basis import cosine_cutoff

CUTOFF = 4.0
CONFIG = FAENetConfig(
    cutoff=CUTOFF, use_pbc=False, hidden_channels=24, num_filters=24, num_interactions=2,
    num_gaussians=8, tag_hidden_channels=0, pg_hidden_channels=4, phys_embeds=False,
    mp_type=MPType.SIMPLE, frame_averaging=FrameAveraging.SPACE, fa_method=FAMethod.ALL,
    envelope=True,
)  # fmt: skip


def energy_at(distance: float, config: FAENetConfig) -> torch.Tensor:
    """Of four atoms, the last of which is so far, Å, from the first, and farther from the rest."""
    positions = torch.tensor(
        [[0.0, 0.0, 0.0], [-1.0, 0.4, 0.1], [-0.3, -1.1, 0.5], [distance, 0.0, 0.0]],
        dtype=torch.float64,
    )
    near = (torch.cdist(positions, positions) < CUTOFF).fill_diagonal_(False)
    graph = AtomGraph.build(
        positions, torch.tensor([29, 8, 1, 6]), torch.zeros(4).long(), 1, near.nonzero().T
    )
    torch.manual_seed(0)
    return FAENetCore(config).double().eval()(graph)["energy"].squeeze().detach()


@pytest.mark.parametrize("method", [None, FAMethod.ALL, FAMethod.DET])
@pytest.mark.parametrize("second_layer", [False, True])
def test_energies_are_continuous_where_a_neighbour_leaves(method, second_layer):
    averaging = None if method is None else FrameAveraging.SPACE
    config = replace(
        CONFIG, frame_averaging=averaging, fa_method=method, second_layer_MLP=second_layer
    )
    jump = {
        envelope: abs(
            energy_at(CUTOFF - 1e-7, replace(config, envelope=envelope))
            - energy_at(CUTOFF + 1e-7, replace(config, envelope=envelope))
        )
        for envelope in (True, False)
    }
    assert jump[True] < 1e-9
    assert jump[False] > 1e-4, "the control"


def test_the_envelope_and_its_slope():
    distances = torch.tensor([0.0, 2.0, 4.0], dtype=torch.float64, requires_grad=True)
    values = cosine_cutoff(distances, CUTOFF)
    assert values.tolist() == pytest.approx([1.0, 0.5, 0.0], abs=1e-15)
    (slope,) = torch.autograd.grad(values.sum(), distances)
    assert slope.tolist() == pytest.approx([0.0, -math.pi / (2 * CUTOFF), 0.0], abs=1e-15)


@pytest.mark.parametrize("kind", [kind for kind in MPType if kind is not MPType.SIMPLE])
def test_other_forms_refuse_it(kind):
    with pytest.raises(ValueError, match=f"envelope: true with mp_type: '{kind.value}'"):
        replace(CONFIG, mp_type=kind)
