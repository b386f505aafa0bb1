"""Output heads: energies of graphs and vectors of atoms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ocp_faenet.geometry.segments import segment_sum, widened
from ocp_faenet.nn.activations import Activation
from ocp_faenet.nn.topology import Topology


class AtomWeights(nn.Module):
    """Learned weight ``alpha(h_i)`` of each atom in the energy (report, equation 7)."""

    def __init__(self, hidden_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_channels, 1)

    def forward(self, h: Tensor) -> Tensor:
        """``(F, N, C)`` to ``(F, N, 1)``."""
        alpha: Tensor = self.linear(h)
        return alpha


class EnergyReadout(nn.Module):
    """``sum_i alpha_i MLP(h_i)`` over the atoms of a graph (report, equation 7).

    Args:
        hidden_channels: ``C``.
        out_dim: number of graph properties predicted.
        weights_from_final: ``alpha`` from the embeddings that are read out
            (``weighted-av-final-embeds``); otherwise it is given or absent.
        dropout: rate before each layer.
    """

    def __init__(
        self,
        hidden_channels: int,
        act: Activation,
        *,
        out_dim: int = 1,
        weights_from_final: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.act = act
        self.dropout = nn.Dropout(dropout)
        self.first = nn.Linear(hidden_channels, hidden_channels // 2)
        self.second = nn.Linear(hidden_channels // 2, out_dim)
        self.weights = AtomWeights(hidden_channels) if weights_from_final else None

    def forward(self, h: Tensor, alpha: Tensor | None, topology: Topology) -> Tensor:
        """``h`` ``(F, N, C)``, ``alpha`` ``(F, N, 1)`` or ``None``, to ``(F, B, out_dim)``.

        Under autocast atoms are summed in single precision.
        """
        if self.weights is not None:
            alpha = self.weights(h)
        y = self.second(self.dropout(self.act(self.first(self.dropout(h)))))
        if alpha is not None:
            y = y * alpha
        return segment_sum(widened(y), topology.batch, topology.num_graphs)


class LastOnly(nn.Module):
    """``skip_co: null``: the energy of the last layer alone."""

    def forward(self, energies: Sequence[Tensor]) -> Tensor:
        """Energies ``(F, B, out_dim)`` of each layer, to the last of them."""
        return energies[-1]


class AddLayers(nn.Module):
    """``skip_co: add``: the sum of the energies of all layers."""

    def forward(self, energies: Sequence[Tensor]) -> Tensor:
        """Energies ``(F, B, out_dim)`` of each layer, to their sum."""
        return torch.stack(torch.broadcast_tensors(*energies)).sum(0)


class MixLayers(nn.Module):
    """``skip_co: concat``: a learned linear mix of the energies of all layers."""

    def __init__(self, num_layers: int, out_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_layers * out_dim, out_dim)

    def forward(self, energies: Sequence[Tensor]) -> Tensor:
        """Energies ``(F, B, out_dim)`` of each layer, to their mix, in their own precision."""
        read = torch.cat(torch.broadcast_tensors(*energies), dim=-1)
        with torch.autocast(read.device.type, enabled=False):
            mixed: Tensor = self.linear(read)
        return mixed
