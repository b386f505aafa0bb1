"""Energies of graphs from the embeddings of atoms."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ocp_faenet.models.config import FAENetConfig
from ocp_faenet.models.faenet import FAENetCore
from ocp_faenet.models.synthetic import oc20_like
from ocp_faenet.nn.heads import EnergyReadout
from ocp_faenet.nn.topology import Topology


def test_half_precision_sums_atoms_in_single():
    """Two thousand atoms of energy 1: a sum kept in bfloat16 stays at 256."""
    readout = EnergyReadout(8, F.silu)
    torch.nn.init.zeros_(readout.second.weight)
    torch.nn.init.ones_(readout.second.bias)
    batch = torch.zeros(2000, dtype=torch.long)
    topology = Topology(batch[:0], batch[:0], batch, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        energy = readout(torch.randn(1, 2000, 8), None, topology)
    assert energy.dtype == torch.float32
    assert energy.item() == 2000.0


def test_energies_under_autocast():
    torch.manual_seed(0)
    model = FAENetCore(FAENetConfig(hidden_channels=160, num_filters=64, num_interactions=2)).eval()
    graph = oc20_like(40, 3)
    with torch.no_grad():
        exact = model(graph)["energy"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(graph)["energy"]
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, rtol=0.05, atol=0.05)
