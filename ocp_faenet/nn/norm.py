"""Graph normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ocp_faenet.geometry.segments import segment_mean, widened
from ocp_faenet.nn.topology import Topology


class GraphNorm(nn.Module):
    """Normalise every channel over the atoms of a graph (GraphNorm, arXiv 2009.03294, eq. 7).

    .. math:: y = \\gamma (x - \\alpha \\mu) / \\sqrt{\\sigma^2 + \\epsilon} + \\beta

    with learned ``alpha``, ``beta``, ``gamma``, mean ``mu``, and ``sigma^2`` the mean of
    ``(x - alpha mu)^2``.

    Args:
        channels: ``C``.
        per_graph: statistics over each graph (default), so that a prediction never depends on
            its batch-mates. ``False`` takes them over the whole mini-batch: the form of
            ``faenet`` 0.1.3, kept for parity with its weights alone.
    """

    def __init__(self, channels: int, *, per_graph: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.per_graph = per_graph
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.mean_scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, topology: Topology) -> Tensor:
        """``x`` ``(F, N, C)``, to the same shape; half precision has its statistics in single."""
        wide = widened(x)
        found = self._over_graphs(wide, topology) if self.per_graph else self._over_batch(wide)
        return found.to(x.dtype)

    def _over_graphs(self, x: Tensor, topology: Topology) -> Tensor:
        batch, graphs, sizes = topology.batch, topology.num_graphs, topology.sizes
        mean = segment_mean(x, batch, graphs, sizes)  # (F, B, C)
        centred = x - (mean * self.mean_scale).index_select(-2, batch)
        variance = segment_mean(centred**2, batch, graphs, sizes)
        scale = self.weight / (variance + self.eps).sqrt()  # (F, B, C)
        return centred * scale.index_select(-2, batch) + self.bias

    def _over_batch(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-2, keepdim=True) * self.mean_scale
        variance = (centred**2).mean(-2, keepdim=True)
        scale: Tensor = self.weight / (variance + self.eps).sqrt()
        return centred * scale + self.bias
