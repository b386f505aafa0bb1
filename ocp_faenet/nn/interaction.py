"""Interaction blocks: the five published forms of FAENet's message passing, one class each.

All compute the update of equation (6) of the report, ``MLP(sum_j h_j * f_ij)``, without the
residual (the backbone adds it). The filter network's product over ``e_ij || h_j || h_i`` is
taken as one product over edges and two over atoms, which are then gathered: the same numbers
for a fraction of the work, since atoms are far fewer than edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ocp_faenet.geometry.segments import segment_sum
from ocp_faenet.nn.activations import Activation
from ocp_faenet.nn.edges import EdgeFeatures
from ocp_faenet.nn.init import xavier_linear
from ocp_faenet.nn.norm import GraphNorm


@dataclass(frozen=True)
class Topology:
    """What message passing needs of a batch of graphs.

    Attributes:
        source: ``(E,)`` neighbour ``j`` of each edge.
        target: ``(E,)`` centre ``i`` of each edge, ascending.
        batch: ``(N,)`` graph of each atom, ascending.
        num_graphs: ``B``.
    """

    source: Tensor
    target: Tensor
    batch: Tensor
    num_graphs: int

    @property
    def num_atoms(self) -> int:
        """``N``."""
        return self.batch.shape[0]


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


def convolve(h: Tensor, filters: Tensor, topology: Topology) -> Tensor:
    """``sum_j h_j * f_ij`` for every atom: ``h`` ``(F, N, C)``, ``filters`` ``(F, E, C)``."""
    messages = h.index_select(-2, topology.source) * filters
    return segment_sum(messages, topology.target, topology.num_atoms)


class FilterNetwork(nn.Module):
    """``f_ij = act(W [e_ij || h_j || h_i] + b)``, factored (report, equation 6)."""

    def __init__(self, num_filters: int, hidden_channels: int, out: int, act: Activation) -> None:
        super().__init__()
        self.act = act
        self.num_filters = num_filters
        self.linear = xavier_linear(num_filters + 2 * hidden_channels, out)

    def forward(self, h: Tensor, edges: EdgeFeatures, topology: Topology) -> Tensor:
        """``h`` ``(F, N, hidden)`` to filters ``(F, E, out)``."""
        w_edge, w_source, w_target = self.linear.weight.split(
            [self.num_filters, h.shape[-1], h.shape[-1]], dim=1
        )
        z = edges.linear(w_edge, self.linear.bias)
        z = z + F.linear(h, w_source).index_select(-2, topology.source)
        z = z + F.linear(h, w_target).index_select(-2, topology.target)
        return self.act(z)


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
        """Graph norm and activation; nothing at all without graph norm (as published)."""
        if self.norm is None:
            return h
        return self.act(self.norm(h, topology.batch, topology.num_graphs))

    def finish(self, h: Tensor) -> Tensor:
        """The second perceptron of ``complex_mp``."""
        return h if self.extra is None else self.act(self.extra(self.dropout(h)))


class BaseInteraction(Interaction):
    """``mp_type: base``: filters from edge, source and target at full width."""

    def __init__(self, settings: InteractionSettings) -> None:
        hidden = settings.hidden_channels
        super().__init__(settings, hidden)
        self.filters = FilterNetwork(settings.num_filters, hidden, hidden, settings.act)
        self.linear = xavier_linear(hidden, hidden)

    def forward(self, h: Tensor, edges: EdgeFeatures, topology: Topology) -> Tensor:
        """``h`` ``(F, N, hidden)`` to its update of the same shape."""
        h = self.dropout(h)
        h = convolve(h, self.filters(h, edges, topology), topology)
        h = self.dropout(self.normalise(h, topology))
        return self.finish(self.act(self.linear(h)))


class SimpleInteraction(Interaction):
    """``mp_type: simple``: the edge embedding is the filter (SchNet-like)."""

    def __init__(self, settings: InteractionSettings) -> None:
        hidden = settings.hidden_channels
        super().__init__(settings, hidden)
        self.linear = xavier_linear(hidden, hidden)

    def forward(self, h: Tensor, edges: EdgeFeatures, topology: Topology) -> Tensor:
        """``h`` ``(F, N, hidden)`` to its update of the same shape."""
        h = convolve(self.dropout(h), edges.full(), topology)
        h = self.dropout(self.normalise(h, topology))
        return self.finish(self.act(self.linear(h)))


class RadialFilter(nn.Module):
    """``f_ij = act(W e_ij + b)``: filters from the edge embedding alone."""

    def __init__(self, num_filters: int, act: Activation) -> None:
        super().__init__()
        self.act = act
        self.linear = xavier_linear(num_filters, num_filters)

    def forward(self, h: Tensor, edges: EdgeFeatures, topology: Topology) -> Tensor:
        """Filters ``(F, E, num_filters)``; atoms are not used."""
        return self.act(edges.linear(self.linear.weight, self.linear.bias))


class UpDownScaleInteraction(Interaction):
    """``mp_type: updownscale``: atoms scaled down to the filter width, filters from edges."""

    def __init__(self, settings: InteractionSettings) -> None:
        super().__init__(settings, settings.num_filters)
        self.filters = self.make_filters(settings)
        self.down = xavier_linear(settings.hidden_channels, settings.num_filters)
        self.up = xavier_linear(settings.num_filters, settings.hidden_channels)

    def make_filters(self, settings: InteractionSettings) -> nn.Module:
        """The filter network of this form."""
        return RadialFilter(settings.num_filters, settings.act)

    def forward(self, h: Tensor, edges: EdgeFeatures, topology: Topology) -> Tensor:
        """``h`` ``(F, N, hidden)`` to its update of the same shape."""
        h = self.dropout(h)
        filters = self.filters(h, edges, topology)
        h = convolve(self.act(self.down(h)), filters, topology)
        h = self.dropout(self.normalise(h, topology))
        return self.finish(self.act(self.up(h)))


class UpDownScaleBaseInteraction(UpDownScaleInteraction):
    """``mp_type: updownscale_base``: as updownscale, filters from edge, source and target."""

    def make_filters(self, settings: InteractionSettings) -> nn.Module:
        """The filter network of this form."""
        return FilterNetwork(
            settings.num_filters, settings.hidden_channels, settings.num_filters, settings.act
        )


class UpDownLocalEnvInteraction(Interaction):
    """``mp_type: updown_local_env``: adds ``chi_i = sum_j e_ij``, the local environment."""

    def __init__(self, settings: InteractionSettings) -> None:
        super().__init__(settings, settings.num_filters)
        self.geometric = xavier_linear(settings.num_filters, settings.num_filters)
        self.down = xavier_linear(settings.hidden_channels, settings.num_filters)
        self.up = xavier_linear(2 * settings.num_filters, settings.hidden_channels)

    def forward(self, h: Tensor, edges: EdgeFeatures, topology: Topology) -> Tensor:
        """``h`` ``(F, N, hidden)`` to its update of the same shape."""
        h = self.act(self.down(self.dropout(h)))
        chi = segment_sum(edges.full(), topology.target, topology.num_atoms)
        filters = edges.linear(self.geometric.weight, self.geometric.bias)
        h = self.normalise(convolve(h, filters, topology), topology)
        # Before the first update h and chi may differ in the frame axis: broadcast.
        both = torch.cat(torch.broadcast_tensors(h, chi), dim=-1)
        return self.finish(self.up(self.dropout(both)))
