"""Where wave vectors come from: an index box, a frequency cutoff, or a voxel grid.

Phases ``k.x`` are scalars: a cell that turns with its structure leaves them as they are. A filter
of ``|k|`` alone sees neither the choice of the cell nor its multiples; a filter for each index of a
box is one for the cell as it is given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ocp_faenet.geometry import kspace
from ocp_faenet.geometry.kspace import WaveVectors
from ocp_faenet.geometry.segments import segment_mean
from ocp_faenet.models.ewald_config import EwaldConfig, EwaldForm
from ocp_faenet.models.graph import AtomGraph

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
        self.cutoff = k_cutoff_of(config)

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
        self.cutoff = k_cutoff_of(config)
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


def differ_in_signs(rotations: Tensor) -> bool:
    """Whether all frames ``(B, F, 3, 3)`` of each structure have the same axes but for signs."""
    with torch.no_grad():
        overlap = (rotations[:, :1].mT @ rotations).abs()
        eye = torch.eye(3, dtype=overlap.dtype, device=overlap.device)
        close = torch.finfo(overlap.dtype).eps ** 0.75
        return bool(((overlap - eye).abs() < close).all())


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


def k_cutoff_of(config: EwaldConfig) -> float:
    """Å⁻¹, of a form that has one."""
    if config.k_cutoff is None:
        raise TypeError("a form without k_cutoff")
    return config.k_cutoff


def _per_volume(cutoff: float) -> float:
    """Å³: what terms are multiplied by before the division by the volume.

    A volume ``V`` has ``V cutoff^3 / 6 pi^2`` wave vectors and about ``V / ATOM_VOLUME`` atoms;
    the root of their product is the size of the sum over random phases.
    """
    return math.sqrt(6 * math.pi**2 * ATOM_VOLUME / cutoff**3)
