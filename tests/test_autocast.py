"""Passes under autocast: what they leave behind, and what must stay in full precision."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from ocp_faenet.models.config import FAENetConfig, FAMethod
from ocp_faenet.models.faenet import FAENetCore
from ocp_faenet.models.published import IS2RE, S2EF, with_method
from ocp_faenet.models.synthetic import oc20_like

pytestmark = pytest.mark.usefixtures("same_weights")

#: Sizes at which every table is used, and at which they are left to themselves.
SIZES = {
    "is2re": replace(with_method(IS2RE, FAMethod.ALL), num_interactions=2),
    "s2ef": replace(S2EF, num_interactions=2),
    "small": FAENetConfig(hidden_channels=160, num_filters=64, num_interactions=2),
}


def half():
    """bfloat16, as a trainer with ``amp`` takes it."""
    return torch.autocast("cpu", dtype=torch.bfloat16)


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_passes_with_and_without_autocast_leave_each_other_alone(size):
    """Values that are kept between passes are the same in either order."""
    model, graph = FAENetCore(SIZES[size]).eval(), oc20_like(40, 2)
    other = copy.deepcopy(model)
    plain = model(graph)["energy"]
    with half():
        rounded, first = model(graph)["energy"], other(graph)["energy"]
    assert torch.equal(rounded, first)
    assert not torch.equal(rounded, plain)
    torch.testing.assert_close(rounded, plain, rtol=0.05, atol=0.05)
    assert torch.equal(model(graph)["energy"], plain)
    assert torch.equal(other(graph)["energy"], plain)
