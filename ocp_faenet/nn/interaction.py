"""Interaction blocks: the five published forms of FAENet's message passing, one class each.

All compute the update of equation (6) of the report, ``MLP(sum_j h_j * f_ij)``, without the
residual, which the backbone adds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ocp_faenet.geometry.segments import segment_sum
from ocp_faenet.nn import native
from ocp_faenet.nn.activations import Activation
from ocp_faenet.nn.convolution import convolve
from ocp_faenet.nn.edge_features import EdgeFeatures
from ocp_faenet.nn.init import xavier_linear
from ocp_faenet.nn.kept import Kept
from ocp_faenet.nn.messages import Messages, Operands
from ocp_faenet.nn.norm import GraphNorm
from ocp_faenet.nn.topology import Topology


@dataclass(frozen=True)
class InteractionSettings:
    """Sizes and choices that all interaction blocks share."""

    hidden_channels: int
    num_filters: int
    act: Activation
    graph_norm: bool = True
    norm_per_graph: bool = True
    complex_mp: bool = False
    dropout: float = 0.0


class EdgeConvolution(nn.Module):
    """``sum_j x_j * act(W e_ij + b)``, over all neighbours ``j`` of each atom ``i``.

    Args:
        num_filters: channels of ``e_ij``.
        channels: ``C``, channels of what is convolved.
        act: activation of the filters, ``None`` for linear ones.
    """

    def __init__(
        self, num_filters: int, channels: int, act: Activation | None, *, atom_channels: int = 0
    ) -> None:
        super().__init__()
        self.act = act
        self.num_filters = num_filters
        self.linear = xavier_linear(num_filters + atom_channels, channels)
        self.kept_radial, self.kept_directional = Kept(), Kept()

    def forward(self, x: Tensor, h: Tensor, edges: EdgeFeatures, topology: Topology) -> Tensor:
        """``x`` ``(F, N, C)`` is convolved; ``h`` ``(F, N, hidden)`` may steer the filters."""
        messages = self._messages(x, edges, topology)
        bias: Tensor = self.linear.bias
        return self._convolve(x, bias.unsqueeze(0), messages.first_row, edges, messages)

    @staticmethod
    def _messages(x: Tensor, edges: EdgeFeatures, topology: Topology) -> Messages:
        own, shared = edges.on(topology).laid
        return own if x.shape[0] == edges.num_frames else shared

    def _convolve(
        self, x: Tensor, atoms: Tensor, atom_rows: Tensor, edges: EdgeFeatures, messages: Messages
    ) -> Tensor:
        split = edges.directional_channels
        radial_weight = self.linear.weight[:, split : self.num_filters]
        radial = self._projected_radial(edges, radial_weight)
        matrices = edges.projected(self.linear.weight[:, :split], self.kept_directional)
        operands = Operands(
            x.flatten(0, 1), edges.factors, matrices, atoms, atom_rows, radial, messages
        )
        out = convolve(operands, self.act)
        return out.view(edges.num_frames, -1, out.shape[-1])

    def _projected_radial(self, edges: EdgeFeatures, weight: Tensor) -> Tensor | None:
        """``weight`` ``(C, C2)`` times each row of the radial channels: ``(R, C)``."""
        table = edges.radial
        if table is None:
            return None
        if not edges.tabulated:
            return F.linear(table, weight)
        return self.kept_radial.get((weight,), (table,), lambda: F.linear(table, weight))


class AtomEdgeConvolution(EdgeConvolution):
    """``sum_j x_j * act(W [e_ij || h_j || h_i] + b)`` (report, equation 6).

    The product over the concatenation is taken as one over edges and two over atoms, whose
    results are looked up: the same numbers for a fraction of the work.
    """

    def __init__(
        self, num_filters: int, hidden_channels: int, channels: int, act: Activation
    ) -> None:
        super().__init__(num_filters, channels, act, atom_channels=2 * hidden_channels)

    def forward(self, x: Tensor, h: Tensor, edges: EdgeFeatures, topology: Topology) -> Tensor:
        """``x`` ``(F, N, C)`` is convolved, ``h`` ``(F, N, hidden)`` steers the filters."""
        messages = self._messages(x, edges, topology)
        hidden = h.shape[-1]
        weight: Tensor = self.linear.weight[:, self.num_filters :]
        w_source, w_target = weight.split([hidden, hidden], dim=1)
        h = h.flatten(0, 1)
        # One product for both; its rows are those of the table, which need not be joined.
        bias = F.pad(self.linear.bias, (0, len(weight)))
        table = F.linear(h, torch.cat([w_source, w_target]), bias)  # (F N, 2 C)
        table = table.view(-1, len(weight))
        return self._convolve(x, table, messages.pair_rows, edges, messages)


class Interaction(nn.Module):
    """Shared end of all blocks: graph norm, activation, optional second perceptron."""

    def __init__(self, settings: InteractionSettings, norm_channels: int) -> None:
        super().__init__()
        self.act = settings.act
        self.dropout = nn.Dropout(settings.dropout)
        self.norm = (
            GraphNorm(norm_channels, per_graph=settings.norm_per_graph)
            if settings.graph_norm
            else None
        )
        hidden = settings.hidden_channels
        self.extra = xavier_linear(hidden, hidden) if settings.complex_mp else None

    def normalise(self, h: Tensor, topology: Topology) -> Tensor:
        """Graph norm and activation; nothing at all without graph norm (as published).

        ``h`` is made for this alone: in inference it may be overwritten.
        """
        if self.norm is None:
            return h
        fits = self.act is F.silu and h.device.type == "cpu" and not torch.is_grad_enabled()
        if fits and native.norm_and_silu(h, self.norm, topology):
            return h
        return self.act(self.norm(h, topology))

    def finish(self, h: Tensor) -> Tensor:
        """The second perceptron of ``complex_mp``."""
        return h if self.extra is None else self.act(self.extra(self.dropout(h)))


class BaseInteraction(Interaction):
    """``mp_type: base``: filters from edge, source and target at full width."""

    def __init__(self, settings: InteractionSettings) -> None:
        hidden = settings.hidden_channels
        super().__init__(settings, hidden)
        self.convolution = AtomEdgeConvolution(settings.num_filters, hidden, hidden, settings.act)
        self.linear = xavier_linear(hidden, hidden)

    def forward(self, h: Tensor, edges: EdgeFeatures, topology: Topology) -> Tensor:
        """``h`` ``(F, N, hidden)`` to its update of the same shape."""
        h = self.dropout(h)
        h = self.normalise(self.convolution(h, h, edges, topology), topology)
        return self.finish(self.act(self.linear(self.dropout(h))))


class SimpleInteraction(Interaction):
    """``mp_type: simple``: the edge embedding is the filter (SchNet-like)."""

    def __init__(self, settings: InteractionSettings) -> None:
        hidden = settings.hidden_channels
        super().__init__(settings, hidden)
        self.linear = xavier_linear(hidden, hidden)

    def forward(self, h: Tensor, edges: EdgeFeatures, topology: Topology) -> Tensor:
        """``h`` ``(F, N, hidden)`` to its update of the same shape."""
        messages = self.dropout(h).index_select(-2, topology.source) * edges.full()
        h = self.normalise(segment_sum(messages, topology.target, topology.num_atoms), topology)
        return self.finish(self.act(self.linear(self.dropout(h))))


class UpDownScaleInteraction(Interaction):
    """``mp_type: updownscale``: atoms scaled down to the filter width, filters from edges."""

    def __init__(self, settings: InteractionSettings) -> None:
        super().__init__(settings, settings.num_filters)
        self.convolution = self.make_convolution(settings)
        self.down = xavier_linear(settings.hidden_channels, settings.num_filters)
        self.up = xavier_linear(settings.num_filters, settings.hidden_channels)

    def make_convolution(self, settings: InteractionSettings) -> EdgeConvolution:
        """The convolution of this form."""
        return EdgeConvolution(settings.num_filters, settings.num_filters, settings.act)

    def forward(self, h: Tensor, edges: EdgeFeatures, topology: Topology) -> Tensor:
        """``h`` ``(F, N, hidden)`` to its update of the same shape."""
        h = self.dropout(h)
        h = self.convolution(self.act(self.down(h)), h, edges, topology)
        h = self.dropout(self.normalise(h, topology))
        return self.finish(self.act(self.up(h)))


class UpDownScaleBaseInteraction(UpDownScaleInteraction):
    """``mp_type: updownscale_base``: as updownscale, filters from edge, source and target."""

    def make_convolution(self, settings: InteractionSettings) -> EdgeConvolution:
        """The convolution of this form."""
        filters = settings.num_filters
        return AtomEdgeConvolution(filters, settings.hidden_channels, filters, settings.act)


class UpDownLocalEnvInteraction(Interaction):
    """``mp_type: updown_local_env``: adds ``chi_i = sum_j e_ij``, the local environment."""

    def __init__(self, settings: InteractionSettings) -> None:
        super().__init__(settings, settings.num_filters)
        self.convolution = EdgeConvolution(settings.num_filters, settings.num_filters, None)
        self.down = xavier_linear(settings.hidden_channels, settings.num_filters)
        self.up = xavier_linear(2 * settings.num_filters, settings.hidden_channels)

    def forward(self, h: Tensor, edges: EdgeFeatures, topology: Topology) -> Tensor:
        """``h`` ``(F, N, hidden)`` to its update of the same shape."""
        h = self.act(self.down(self.dropout(h)))
        chi = segment_sum(edges.full(), topology.target, topology.num_atoms)
        h = self.normalise(self.convolution(h, h, edges, topology), topology)
        # Before the first update h and chi may differ in the frame axis: broadcast.
        both = torch.cat(torch.broadcast_tensors(h, chi), dim=-1)
        return self.finish(self.up(self.dropout(both)))
