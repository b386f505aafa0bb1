"""Ewald message passing on a batch of structures: wave vectors by form, blocks by layer.

Phases ``k.x`` are scalars: a cell that turns with its structure leaves them as they are. They are
made once from the positions of the structures and shared by all frames and blocks. A filter of
``|k|`` alone sees neither the choice of the cell nor its multiples; a filter for each index of a
box is one for the cell as it is given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ocp_faenet.geometry import kspace
from ocp_faenet.geometry.kspace import WaveVectors
from ocp_faenet.geometry.padding import PaddedGroup, like_sizes, pad_atoms, slot_of_atoms
from ocp_faenet.geometry.segments import segment_mean
from ocp_faenet.models.config import FAENetConfig
from ocp_faenet.models.ewald_config import EwaldConfig, EwaldForm
from ocp_faenet.models.graph import AtomGraph
from ocp_faenet.nn.activations import Activation, activation
from ocp_faenet.nn.ewald import EwaldBlock, IndexFilter, KSpace, RadialFilter, WaveGroup

#: Å³, about the volume of an atom in a solid: makes messages of about the embeddings' size.
ATOM_VOLUME = 20.0


@dataclass(frozen=True)
class Waves:
    """Wave vectors of a batch and where its atoms are to them.

    Attributes:
        vectors: see `WaveVectors`.
        fractional: ``(N, 3)`` positions in cells.
        scale: ``(B or 1,)`` factor of every term of the sum.
        damping: ``(N,)`` factor of the waves at each atom, or ``None``.
    """

    vectors: WaveVectors
    fractional: Tensor
    scale: Tensor
    damping: Tensor | None = None


class IndexBox(nn.Module):
    """``box: [n1, n2, n3]``: ``k = sum_a l_a b_a`` with ``|l_a| <= n_a``.

    Terms are divided by the root of the number of atoms times wave vectors: the variance of a sum
    of random phases.
    """

    indices: Tensor

    def __init__(self, config: EwaldConfig) -> None:
        super().__init__()
        self.register_buffer("indices", kspace.half_box(config.box or ()), persistent=False)

    def forward(self, graph: AtomGraph, rotations: Tensor) -> list[Waves]:
        """Waves of the cells as they are given, the same in every frame."""
        reciprocal = kspace.reciprocal_cells(_cells(graph))
        vectors = kspace.same_vectors(self.indices, reciprocal, graph.num_graphs)
        natoms = torch.bincount(graph.batch, minlength=graph.num_graphs).clamp(min=1)
        scale = ((2 * len(self.indices) - 1) * natoms.to(reciprocal)).rsqrt()
        return [Waves(vectors, _fractional(graph, reciprocal), scale)]


class FrequencyCutoff(nn.Module):
    """``k_cutoff``: all ``k`` of the reciprocal lattice with ``|k| <= k_cutoff``.

    Terms are divided by the volume, as in Ewald sums: a multiple of the cell gives the same
    message, and so does, in the limit, more vacuum above a slab.
    """

    def __init__(self, config: EwaldConfig) -> None:
        super().__init__()
        self.cutoff = _k_cutoff(config)

    def forward(self, graph: AtomGraph, rotations: Tensor) -> list[Waves]:
        """Waves of the lattices, whichever vectors span them, the same in every frame."""
        cell = _cells(graph)
        reciprocal = kspace.reciprocal_cells(cell)
        vectors = kspace.vectors_within(reciprocal, cell, self.cutoff)
        scale = _per_volume(self.cutoff) / torch.linalg.det(cell).abs()
        return [Waves(vectors, _fractional(graph, reciprocal), scale)]


class VoxelGrid(nn.Module):
    """``k_cutoff`` and ``voxel``: the Fourier integral of a free structure over cubic voxels.

    Waves are averaged over their voxel, which damps them by ``prod_a sinc(x_a voxel / 2)``; ``x``
    is measured from the centroid in the frame of the structure. The grid and a filter of ``|k|``
    are the same under any signs of the axes, so one set of waves does for frames that differ in
    signs alone.
    """

    indices: Tensor

    def __init__(self, config: EwaldConfig) -> None:
        super().__init__()
        self.spacing = config.voxel or 0.0
        self.cutoff = _k_cutoff(config)
        vectors = kspace.voxel_vectors(self.spacing, self.cutoff)
        self.register_buffer("indices", vectors, persistent=False)

    def forward(self, graph: AtomGraph, rotations: Tensor) -> list[Waves]:
        """Waves of free structures; ``rotations`` ``(B, F, 3, 3)`` are their frames."""
        x = graph.positions
        reciprocal = self.spacing * torch.eye(3, dtype=x.dtype, device=x.device).unsqueeze(0)
        vectors = kspace.same_vectors(self.indices, reciprocal, graph.num_graphs)
        scale = x.new_full((1,), _per_volume(self.cutoff) * (self.spacing / (2 * math.pi)) ** 3)
        x = x - segment_mean(x, graph.batch, graph.num_graphs)[graph.batch]
        frames = rotations.to(x).unbind(1)
        if differ_in_signs(rotations):
            frames = frames[:1]
        every = []
        for frame in frames:
            turned = torch.einsum("nj,njk->nk", x, frame[graph.batch])
            fractional = turned * (self.spacing / (2 * math.pi))
            every.append(Waves(vectors, fractional, scale, kspace.voxel_damping(fractional)))
        return every


SOURCES: dict[EwaldForm, type[IndexBox] | type[FrequencyCutoff] | type[VoxelGrid]] = {
    EwaldForm.BOX: IndexBox,
    EwaldForm.CUTOFF: FrequencyCutoff,
    EwaldForm.VOXELS: VoxelGrid,
}


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
            self.filter = RadialFilter(_k_cutoff(config), config.num_gaussians, down)
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


def differ_in_signs(rotations: Tensor) -> bool:
    """Whether all frames ``(B, F, 3, 3)`` of each structure have the same axes but for signs."""
    with torch.no_grad():
        overlap = (rotations[:, :1].mT @ rotations).abs()
        eye = torch.eye(3, dtype=overlap.dtype, device=overlap.device)
        close = torch.finfo(overlap.dtype).eps ** 0.75
        return bool(((overlap - eye).abs() < close).all())


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
    return WaveGroup(group.atoms, at_atoms, torch.cat([filters, filters], dim=1))


def _cells(graph: AtomGraph) -> Tensor:
    if graph.cell is None:
        raise ValueError(
            "cell: Ewald messages of periodic structures need one; give cells, or take the "
            "aperiodic form (use_pbc: false, ewald.voxel)"
        )
    return graph.cell.to(graph.positions.dtype)


def _fractional(graph: AtomGraph, reciprocal: Tensor) -> Tensor:
    """``(N, 3)`` positions in cells."""
    inverse = reciprocal.mT / (2 * math.pi)
    return torch.einsum("nj,njk->nk", graph.positions, inverse[graph.batch])


def _k_cutoff(config: EwaldConfig) -> float:
    if config.k_cutoff is None:
        raise TypeError("a form without k_cutoff")
    return config.k_cutoff


def _per_volume(cutoff: float) -> float:
    """Å³: what terms are multiplied by before the division by the volume.

    A volume ``V`` has ``V cutoff^3 / 6 pi^2`` wave vectors and about ``V / ATOM_VOLUME`` atoms;
    the root of their product is the size of the sum over random phases.
    """
    return math.sqrt(6 * math.pi**2 * ATOM_VOLUME / cutoff**3)
