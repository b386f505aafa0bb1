"""Graph norm: the compiled form against the plain one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ocp_faenet.nn.interaction import Interaction, InteractionSettings
from ocp_faenet.nn.norm import GraphNorm
from ocp_faenet.nn.topology import Topology

pytestmark = pytest.mark.usefixtures("same_weights")


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("channels", "per_graph"), [(48, True), (42, True), (48, False)])
def test_compiled_norm(channels, per_graph, threads):
    """Graphs of any size, or none; what vectors do not fill, or batches mix, is left alone."""
    sizes = InteractionSettings(8, 8, F.silu, norm_per_graph=per_graph)
    made = Interaction(sizes, channels)
    for parameter in made.parameters():
        nn.init.normal_(parameter, 1.0, 0.3)
    batch = torch.tensor([0, 2, 3, 4]).repeat_interleave(torch.tensor([7, 1, 200, 20]))
    topology = Topology(batch[:0], batch[:0], batch, 6)
    x = 3.0 + torch.randn(2, len(batch), channels)
    exact = copy.deepcopy(made).double().normalise(x.double(), topology)
    trained = made.normalise(x, topology)  # takes derivatives: x must stay as it is
    assert trained.requires_grad
    torch.testing.assert_close(trained.double(), exact, rtol=1e-5, atol=1e-5)
    before, threads_before = x.clone(), torch.get_num_threads()
    with torch.no_grad():
        torch.set_num_threads(threads)
        found = made.normalise(x, topology)
        torch.set_num_threads(threads_before)
    compiled = channels == 48 and per_graph
    assert (found is x) == compiled
    assert compiled or torch.equal(x, before)
    torch.testing.assert_close(found.double(), exact.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("per_graph", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_of_half_precision(dtype, per_graph):
    """Two thousand atoms around 1: sums that are kept in bfloat16 stay at 256, a mean of 0.13."""
    norm = GraphNorm(8, per_graph=per_graph)
    batch = torch.zeros(2000, dtype=torch.long)
    topology = Topology(batch[:0], batch[:0], batch, 1)
    x = (1 + 0.3 * torch.randn(1, 2000, 8)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = norm(x, topology)
    assert found.dtype == dtype
    exact = norm.double()(x.double(), topology)
    torch.testing.assert_close(found.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-3)


def test_atoms_are_counted_once():
    """The counts of a topology are those of its graphs, empty ones too."""
    batch = torch.tensor([0, 0, 2])
    topology = Topology(batch[:0], batch[:0], batch, 4)
    assert topology.sizes.tolist() == [2, 0, 1, 0]
    assert topology.ends.tolist() == [2, 2, 3, 3]
    assert topology.sizes is topology.sizes
