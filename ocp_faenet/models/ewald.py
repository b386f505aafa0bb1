"""Ewald message passing on a batch of structures: shared waves and filters, blocks by layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ocp_faenet.geometry import kspace
from ocp_faenet.geometry.padding import PaddedGroup, like_sizes, pad_atoms, slot_of_atoms
from ocp_faenet.models.config import FAENetConfig
from ocp_faenet.models.ewald_config import EwaldConfig
from ocp_faenet.models.graph import AtomGraph
from ocp_faenet.models.wave_sources import SOURCES, IndexBox, Waves, k_cutoff_of
from ocp_faenet.nn.activations import Activation, activation
from ocp_faenet.nn.ewald import EwaldBlock, IndexFilter, KSpace, RadialFilter, WaveGroup


class ShortRange(nn.Module):
    """No Ewald message passing: short-range messages as they are."""

    def prepare(self, graph: AtomGraph, rotations: Tensor) -> tuple[KSpace, ...]:
        """Nothing to prepare."""
        return ()

    def forward(self, layer: int, h: Tensor, short: Tensor, spaces: tuple[KSpace, ...]) -> Tensor:
        """The short-range message."""
        return short


class EwaldMessagePassing(nn.Module):
    """Long-range messages beside the short-range ones of each layer (report, equation 19).

    Args:
        config: the ``ewald`` section.
        hidden_channels: ``C``.
        num_layers: blocks.
        act: activation of the updates.
    """

    def __init__(
        self, config: EwaldConfig, hidden_channels: int, num_layers: int, act: Activation
    ) -> None:
        super().__init__()
        self.source = SOURCES[config.form](config)
        down = config.down_projection
        self.filter: IndexFilter | RadialFilter
        if isinstance(self.source, IndexBox):
            self.filter = IndexFilter(len(self.source.indices), down)
        else:
            self.filter = RadialFilter(k_cutoff_of(config), config.num_gaussians, down)
        width = config.residual_channels or max(1, hidden_channels // 4)
        self.blocks = nn.ModuleList(
            EwaldBlock(hidden_channels, down, config.num_residual, width, act)
            for _ in range(num_layers)
        )

    def prepare(self, graph: AtomGraph, rotations: Tensor) -> tuple[KSpace, ...]:
        """What all blocks share: waves at the atoms and down-projected filters.

        One for all frames, or one for each where waves depend on the frame (see `VoxelGrid`).

        Raises:
            ValueError: a cell is missing or has no volume, or no wave vector is inside the cutoff.
        """
        with torch.autocast(graph.positions.device.type, enabled=False):
            return self._prepare(graph, rotations)

    def _prepare(self, graph: AtomGraph, rotations: Tensor) -> tuple[KSpace, ...]:
        every: list[Waves] = self.source(graph, rotations)
        vectors, scale = every[0].vectors, every[0].scale
        natoms = torch.bincount(graph.batch, minlength=graph.num_graphs).tolist()
        groups = [
            pad_atoms(natoms, group, graph.batch.device)
            for group in like_sizes(natoms, vectors.counts)
        ]
        place = slot_of_atoms(groups, graph.num_atoms)
        weights = vectors.multiplicity.unsqueeze(-1) * scale.view(-1, 1, 1)
        filters = self.filter(vectors.norms) * weights
        return tuple(
            KSpace(tuple(_wave_group(waves, filters, group) for group in groups), place)
            for waves in every
        )

    def forward(self, layer: int, h: Tensor, short: Tensor, spaces: tuple[KSpace, ...]) -> Tensor:
        """``h`` ``(F or 1, N, C)`` and the short-range message to the sum of both messages."""
        update: Tensor = self.blocks[layer](h, short, spaces)
        return update


def long_range(config: FAENetConfig) -> ShortRange | EwaldMessagePassing:
    """What goes beside the interaction blocks of a FAENet."""
    if config.ewald is None:
        return ShortRange()
    act = activation(config.act)
    return EwaldMessagePassing(config.ewald, config.hidden_channels, config.num_interactions, act)


def _wave_group(waves: Waves, filters: Tensor, group: PaddedGroup) -> WaveGroup:
    """Waves of one group of structures, zero in empty slots."""
    vectors = waves.vectors
    most = max(vectors.counts[s] for s in group.structures)
    chosen = torch.tensor(group.structures, device=group.atoms.device)
    indices, filters = (
        values[:, :most] if len(values) == 1 else values[chosen, :most]
        for values in (vectors.indices, filters)
    )
    at_atoms = kspace.plane_waves(waves.fractional[group.atoms], indices)
    at_atoms = at_atoms * group.real.unsqueeze(-1)
    if waves.damping is not None:
        at_atoms = at_atoms * waves.damping[group.atoms].unsqueeze(-1)
    filters = torch.cat([filters, filters], dim=1)
    return WaveGroup(group.atoms, at_atoms, filters, group.real.sum(1))
