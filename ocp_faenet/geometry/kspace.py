"""Wave vectors of cells and of voxel grids, and plane waves at atoms.

Sums over wave vectors here are over real filters that are equal at ``k`` and ``-k``: one of each
pair is kept, and what it stands for is its *multiplicity*, 1 for ``k = 0`` and else 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ocp_faenet.geometry.cells import FLAT


class CellError(ValueError):
    """A cell ``(3, 3)`` that a sum over wave vectors cannot be taken in."""

    def __init__(self, reason: str, cell: Tensor) -> None:
        rows = "; ".join(" ".join(f"{value:g}" for value in row) for row in cell.tolist())
        super().__init__(f"{reason} (cell {rows} Å)")
        self.cell = cell


@dataclass(frozen=True)
class WaveVectors:
    """Wave vectors of ``B`` structures, or one set that all of them share.

    Attributes:
        indices: ``(B or 1, K, 3)`` whole numbers ``n``, ``k = n @ reciprocal cell``; ``k = 0``
            comes first, rows beyond a structure's count are zero.
        norms: ``(B or 1, K)`` lengths, Å⁻¹.
        multiplicity: ``(B or 1, K)``: 1 for ``k = 0``, 2 for others, 0 in rows beyond the count.
        counts: how many each structure has, its ``k = 0`` included.
    """

    indices: Tensor
    norms: Tensor
    multiplicity: Tensor
    counts: tuple[int, ...]


def half_box(limits: Sequence[int]) -> Tensor:
    """One of each pair ``±n`` of ``{n : |n_a| <= limits_a}``, zero first: ``(K, 3)`` int64."""
    ranges = [torch.arange(-limit, limit + 1) for limit in limits]
    n = torch.cartesian_prod(*ranges)  # ascending: the second half mirrors the first
    return n[len(n) // 2 :]


def reciprocal_cells(cell: Tensor) -> Tensor:
    """Rows ``b_a`` with ``a_a . b_c = 2 pi delta_ac``: ``(B, 3, 3)`` in Å to Å⁻¹.

    Raises:
        CellError: a cell without volume.
    """
    size = torch.linalg.vector_norm(cell, dim=-1).prod(-1)
    flat = ~(torch.linalg.det(cell).abs() > FLAT * size)
    if bool(flat.any()):
        raise CellError(
            "cell has no volume, and Ewald messages need structures periodic along all axes: "
            "repair the record, or take the aperiodic form (use_pbc: false, ewald.voxel)",
            cell[flat][0],
        )
    inverse: Tensor = torch.linalg.inv(cell)
    return 2 * math.pi * inverse.mT


def same_vectors(indices: Tensor, reciprocal: Tensor, num_graphs: int) -> WaveVectors:
    """The same ``indices`` ``(K, 3)`` (of `half_box`) for each of ``num_graphs`` structures.

    Args:
        indices: one of each pair.
        reciprocal: ``(B or 1, 3, 3)`` their reciprocal cells.
        num_graphs: ``B``.
    """
    indices = indices.to(reciprocal).unsqueeze(0)
    norms = torch.linalg.vector_norm(indices @ reciprocal, dim=-1)
    return WaveVectors(indices, norms, _multiplicity(indices), (indices.shape[1],) * num_graphs)


def vectors_within(reciprocal: Tensor, cell: Tensor, cutoff: float) -> WaveVectors:
    """All ``k`` with ``|k| <= cutoff`` (Å⁻¹) of each structure; cells ``(B, 3, 3)``.

    The set does not depend on which vectors span the lattice. A coordinate of ``n`` is
    ``k . a / 2 pi``, hence at most ``cutoff |a| / 2 pi``.

    Raises:
        CellError: a structure has no wave vector but zero inside.
    """
    reach = cutoff * torch.linalg.vector_norm(cell, dim=-1).amax(0) / (2 * math.pi)
    grid = half_box([int(r * (1 + 1e-6)) for r in reach.tolist()]).to(reciprocal)  # (M, 3)
    norms = torch.linalg.vector_norm(grid @ reciprocal, dim=-1)  # (B, M)
    inside = norms <= cutoff
    counts = inside.sum(-1).tolist()
    if 1 in counts:
        bad = counts.index(1)
        raise CellError(
            f"ewald.k_cutoff: {cutoff} Å⁻¹ holds no wave vector but zero; the shortest is "
            f"{_shortest(reciprocal[bad]):.3g} Å⁻¹: raise k_cutoff above that",
            cell[bad],
        )
    most = max(counts)
    order = torch.argsort(inside.to(torch.int8), dim=-1, descending=True, stable=True)[:, :most]
    real = inside.gather(1, order)
    indices = grid[order] * real.unsqueeze(-1)
    norms = norms.gather(1, order) * real
    return WaveVectors(indices, norms, _multiplicity(indices) * real, tuple(counts))


def voxel_vectors(spacing: float, cutoff: float) -> Tensor:
    """Centres of cubic voxels of edge ``spacing`` within ``cutoff`` (Å⁻¹), in voxels.

    One of each pair, zero first: ``(K, 3)`` int64. The set is that of a cubic cell of edge
    ``2 pi / spacing``.

    Raises:
        ValueError: zero is the only one.
    """
    grid = half_box([int(cutoff / spacing * (1 + 1e-6))] * 3)
    grid = grid[torch.linalg.vector_norm(grid.double(), dim=-1) * spacing <= cutoff * (1 + 1e-6)]
    if len(grid) < 2:
        raise ValueError(
            f"ewald.k_cutoff: {cutoff} Å⁻¹ is less than a voxel of {spacing} Å⁻¹; raise "
            "k_cutoff or make ewald.voxel smaller"
        )
    return grid


def plane_waves(fractional: Tensor, indices: Tensor) -> Tensor:
    """``cos k.x`` and, after them, ``sin k.x`` of each wave vector at each atom.

    Args:
        fractional: ``(..., n, 3)`` positions in cells, ``x @ inverse cell``; whole cells change
            nothing and are taken off, so that atoms far from the cell lose no digits.
        indices: ``(..., K, 3)`` of the wave vectors.

    Returns:
        ``(..., n, 2K)``.
    """
    wrapped = fractional - fractional.detach().round()
    angles = 2 * math.pi * (wrapped @ indices.mT)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def voxel_damping(fractional: Tensor) -> Tensor:
    """Mean of ``exp(i q.x)`` over the voxel about ``q = 0``: ``prod_a sinc(x_a delta / 2)``.

    Args:
        fractional: ``(..., 3)`` positions in units of ``2 pi / delta``.
    """
    damping: Tensor = torch.sinc(fractional).prod(-1)
    return damping


def _multiplicity(indices: Tensor) -> Tensor:
    return 1.0 + (indices != 0).any(-1).to(indices.dtype)


def _shortest(reciprocal: Tensor) -> float:
    near = half_box([3, 3, 3])[1:].to(reciprocal)
    return float(torch.linalg.vector_norm(near @ reciprocal, dim=-1).min())
