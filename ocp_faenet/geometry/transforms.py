"""Changes of pose, periodic image and cell that leave a structure what it is."""

from __future__ import annotations

import torch
from torch import Tensor


def turn(vectors: Tensor, matrices: Tensor, segment: Tensor) -> Tensor:
    """``x' = x @ R`` with the matrix of each row's structure.

    Args:
        vectors: ``(N, 3)``.
        matrices: ``(B, 3, 3)``.
        segment: ``(N,)`` structure of each row.
    """
    return torch.einsum("ni,nij->nj", vectors, matrices.index_select(0, segment))


def wrapping_shifts(positions: Tensor, cell: Tensor, batch: Tensor) -> Tensor:
    """``(N, 3)`` whole numbers ``n`` such that ``x + n @ cell`` lies inside the cell.

    Args:
        positions: ``(N, 3)``, Å.
        cell: ``(B, 3, 3)``, rows are lattice vectors, Å, periodic along all of them.
        batch: ``(N,)``.

    Raises:
        ValueError: a cell without volume.
    """
    volume = torch.linalg.det(cell)
    if bool((volume == 0).any()):
        bad = int((volume == 0).nonzero()[0])
        raise ValueError(f"cell of structure {bad} has no volume: {cell[bad].tolist()}")
    fractional = turn(positions, torch.linalg.inv(cell), batch)
    return -torch.floor(fractional)


def offsets_after_shift(cell_offsets: Tensor, edge_index: Tensor, shifts: Tensor) -> Tensor:
    """``(E, 3)`` offsets that keep every edge vector when atoms move by ``shifts`` ``(N, 3)``.

    With ``x' = x + n @ cell`` the image of the source becomes ``o' = o + n_i - n_j``.
    """
    source, target = edge_index
    shifts = shifts.to(cell_offsets.dtype)
    return cell_offsets + shifts.index_select(0, target) - shifts.index_select(0, source)


def offsets_in_cell(cell_offsets: Tensor, change: Tensor, edge_graph: Tensor) -> Tensor:
    """``(E, 3)`` offsets in the lattice vectors ``cell' = change @ cell``.

    Args:
        cell_offsets: ``(E, 3)`` in the old vectors.
        change: ``(B, 3, 3)`` whole numbers of determinant 1 or -1.
        edge_graph: ``(E,)``.

    Raises:
        ValueError: a change that is not a basis of the same lattice.
    """
    change = change.to(torch.float64)
    determinant = torch.linalg.det(change)
    if not bool(((determinant.abs() - 1).abs() < 1e-6).all()):
        raise ValueError(
            f"change: determinants {determinant.tolist()}; the same lattice needs 1 or -1"
        )
    inverse = torch.linalg.inv(change).round()
    return turn(cell_offsets.to(torch.float64), inverse, edge_graph).to(cell_offsets.dtype)


def random_cell_changes(
    n: int, *, in_plane: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """``(n, 3, 3)`` whole-number matrices of determinant 1: other vectors of the same lattice.

    Args:
        in_plane: leave the third vector as it is (slabs).
    """
    eye = torch.eye(3, dtype=torch.float64).expand(n, 3, 3)
    upper = torch.randint(-2, 3, (n, 3, 3), generator=generator).to(torch.float64)
    lower = torch.randint(-2, 3, (n, 3, 3), generator=generator).to(torch.float64)
    if in_plane:
        plane = torch.zeros(3, 3, dtype=torch.float64)
        plane[:2, :2] = 1
        upper, lower = upper * plane, lower * plane
    return (upper.triu(1) + eye) @ (lower.tril(-1) + eye)
