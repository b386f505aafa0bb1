"""Atom embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ocp_faenet.nn.activations import Activation
from ocp_faenet.nn.elements import (
    MAX_ATOMIC_NUMBER,
    NUM_GROUPS,
    NUM_PERIODS,
    element_properties,
    groups,
    periods,
)
from ocp_faenet.nn.init import xavier_linear

NUM_TAGS = 3


class PropertyEmbedding(nn.Module):
    """Physical properties of the elements: fixed, or learned from them as a start.

    Args:
        hidden_channels: 0 keeps the standardised table as it is; otherwise the table becomes
            a parameter and is projected to that many channels.
    """

    def __init__(self, hidden_channels: int) -> None:
        super().__init__()
        table = element_properties()
        learned = hidden_channels > 0
        self.table: Tensor
        if learned:
            self.table = nn.Parameter(table)
        else:
            self.register_buffer("table", table)
        self.project = xavier_linear(table.shape[1], hidden_channels) if learned else None
        self.channels = hidden_channels if learned else table.shape[1]

    def forward(self, atomic_numbers: Tensor) -> Tensor:
        """``(N,)`` to ``(N, channels)``."""
        values = self.table[atomic_numbers]
        return values if self.project is None else self.project(values)


class PeriodGroupEmbedding(nn.Module):
    """Learned embeddings of the period and the group of an element, ``2 * channels`` wide."""

    periods: Tensor
    groups: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.period_embedding = nn.Embedding(NUM_PERIODS, channels)
        self.group_embedding = nn.Embedding(NUM_GROUPS, channels)
        self.register_buffer("periods", periods(), persistent=False)
        self.register_buffer("groups", groups(), persistent=False)

    def forward(self, atomic_numbers: Tensor) -> Tensor:
        """``(N,)`` to ``(N, 2 * channels)``."""
        period = self.period_embedding(self.periods[atomic_numbers])
        group = self.group_embedding(self.groups[atomic_numbers])
        return torch.cat([period, group], dim=-1)


class AtomEmbedding(nn.Module):
    """Atom embeddings ``h_i`` from species, tag, properties, period and group (report 3.1).

    Args:
        hidden_channels: ``C``, total width; the species embedding takes what the others leave,
            one channel at least (`FAENetConfig` sees to it).
        tag_channels: width of the tag embedding, 0 for none (then tags are not needed).
        period_group_channels: width of each of the period and group embeddings, 0 for none.
        properties: add physical properties of the elements.
        property_channels: 0 keeps them fixed, otherwise they are learned and projected.
    """

    def __init__(
        self,
        hidden_channels: int,
        act: Activation,
        *,
        tag_channels: int = 0,
        period_group_channels: int = 0,
        properties: bool = True,
        property_channels: int = 0,
        second_layer: bool = False,
    ) -> None:
        super().__init__()
        self.act = act
        self.properties = PropertyEmbedding(property_channels) if properties else None
        self.period_group = (
            PeriodGroupEmbedding(period_group_channels) if period_group_channels else None
        )
        self.tag_embedding = nn.Embedding(NUM_TAGS, tag_channels) if tag_channels else None
        taken = tag_channels + 2 * period_group_channels
        taken += self.properties.channels if self.properties is not None else 0
        self.embedding = nn.Embedding(MAX_ATOMIC_NUMBER + 1, hidden_channels - taken)
        self.first = xavier_linear(hidden_channels, hidden_channels)
        self.second = xavier_linear(hidden_channels, hidden_channels) if second_layer else None

    def forward(self, atomic_numbers: Tensor, tags: Tensor | None) -> Tensor:
        """``(N,)`` atomic numbers 1 to 118 and tags 0 to 2 to ``(N, C)``."""
        parts = [self.embedding(atomic_numbers)]
        if self.tag_embedding is not None:
            parts.append(self.tag_embedding(tags))
        if self.properties is not None:
            parts.append(self.properties(atomic_numbers))
        if self.period_group is not None:
            parts.append(self.period_group(atomic_numbers))
        h = self.act(self.first(torch.cat(parts, dim=-1)))
        return h if self.second is None else self.act(self.second(h))
