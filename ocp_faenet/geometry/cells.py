"""Cells of a batch: which axes repeat, and how far apart their lattice planes are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Periodicity = bool | Sequence[bool] | Tensor

#: Volume over the product of the edge lengths under which a cell counts as flat.
FLAT = 1e-8


@dataclass(frozen=True)
class Lattices:
    """Cells of ``B`` structures with every axis that does not repeat made harmless.

    The row of an axis that does not repeat is replaced by a unit vector orthogonal to all rows
    that do: ``matrix`` is then always invertible, and ``|frac_a| * spacing_a`` is a lower bound of
    a vector's length along every axis.
    """

    matrix: Tensor  # (B, 3, 3) float64, Å, rows are the cell vectors
    inverse: Tensor  # (B, 3, 3) float64, Å⁻¹: frac = positions @ inverse
    spacing: Tensor  # (B, 3) float64, Å between neighbouring lattice planes of each axis
    periodic: Tensor  # (B, 3) bool


def resolve_periodicity(pbc: Periodicity | None, cell: Tensor | None, num_graphs: int) -> Tensor:
    """Periodic axes of each structure, (B, 3) bool on the CPU.

    Args:
        pbc: one flag for all, three flags for the axes of all structures, (B, 3), or ``None``:
            periodic along all axes wherever a cell is given that is not all zero.
        cell: (B, 3, 3) in Å, or ``None``.
        num_graphs: ``B``.

    Raises:
        ValueError: a shape does not fit, or an axis is periodic and there is no cell.
    """
    if pbc is None:
        if cell is None:
            return torch.zeros(num_graphs, 3, dtype=torch.bool)
        return cell.detach().cpu().ne(0).flatten(1).any(1)[:, None].repeat(1, 3)
    flags = torch.as_tensor(pbc).cpu().bool()
    if flags.ndim > 2 or (flags.ndim > 0 and flags.shape not in ((3,), (num_graphs, 3))):
        raise ValueError(
            f"pbc has shape {tuple(flags.shape)}: give one flag, (3,) or ({num_graphs}, 3)"
        )
    if cell is None and bool(flags.any()):
        raise ValueError("pbc is on and no cell is given: pass cell (B, 3, 3) or pbc=False")
    return flags.expand(num_graphs, 3).clone()


def build_lattices(cell: Tensor | None, periodic: Tensor) -> Lattices:
    """Complete the cells of a batch and measure them, in float64 on the CPU.

    Args:
        cell: (B, 3, 3) in Å, or ``None`` where nothing repeats.
        periodic: (B, 3) bool on the CPU.

    Raises:
        ValueError: a cell is not finite, or its periodic vectors span no volume (area, length).
    """
    num_graphs = periodic.shape[0]
    if cell is None:
        cell = torch.zeros(num_graphs, 3, 3)
    rows = cell.detach().to("cpu", torch.float64)  # (B, 3, 3)
    rows = torch.where(periodic[:, :, None], rows, 0.0)
    _check_finite(rows)
    # Right singular vectors of zero singular values are orthogonal to all periodic rows.
    _, strengths, directions = torch.linalg.svd(rows)
    _check_volume(rows, strengths, periodic)
    rank = periodic.sum(1, keepdim=True)  # (B, 1)
    spare = rank + (~periodic).cumsum(1) - 1  # (B, 3): which direction fills this axis
    filling = directions.gather(1, spare.clamp(max=2)[:, :, None].expand(-1, -1, 3))
    matrix = torch.where(periodic[:, :, None], rows, filling)
    inverse = torch.linalg.inv(matrix)
    spacing = 1.0 / torch.linalg.vector_norm(inverse, dim=1)  # (B, 3): columns are the normals
    return Lattices(matrix, inverse, spacing, periodic)


def _check_finite(rows: Tensor) -> None:
    bad = (~torch.isfinite(rows)).flatten(1).any(1).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"the cell of structure {bad[0]} is not finite ({rows[bad[0]].tolist()}): "
            "repair the record, or turn pbc off for it"
        )


def _check_volume(rows: Tensor, strengths: Tensor, periodic: Tensor) -> None:
    rank = periodic.sum(1)
    used = torch.arange(3) < rank[:, None]
    volume = torch.where(used, strengths, 1.0).prod(1)  # (B,) Å^rank
    lengths = torch.linalg.vector_norm(rows, dim=2)
    size = torch.where(periodic, lengths, 1.0).prod(1)
    bad = (~(volume > FLAT * size)).nonzero().flatten().tolist()
    if bad:
        axes = [name for name, on in zip("abc", periodic[bad[0]].tolist(), strict=True) if on]
        raise ValueError(
            f"the cell of structure {bad[0]} has no volume along its periodic axes "
            f"{', '.join(axes)} ({rows[bad[0]].tolist()}): give a cell that spans them, "
            "or turn pbc off for the axes that do not repeat"
        )
