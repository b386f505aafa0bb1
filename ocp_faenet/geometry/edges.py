"""Vectors along the edges of a periodic graph."""

from __future__ import annotations

import torch
from torch import Tensor


def edge_vectors(
    positions: Tensor,
    edge_index: Tensor,
    cell: Tensor | None = None,
    cell_offsets: Tensor | None = None,
    edge_graph: Tensor | None = None,
) -> Tensor:
    """Vector from the target ``i`` to the source ``j`` of each edge, ``r_j - r_i + n C``.

    Differentiable with respect to ``positions`` and ``cell``; the sign and the meaning of the
    offsets are those of the host's ``get_pbc_distances``.

    Args:
        positions: (N, 3) in Å.
        edge_index: (2, E), row 0 the source ``j``, row 1 the target ``i``.
        cell: (B, 3, 3) in Å with rows as cell vectors, or ``None``: no periodic image.
        cell_offsets: (E, 3), the image of the source in cell vectors.
        edge_graph: (E,), the structure of each edge; may be left out for a single cell.

    Returns:
        (E, 3) in Å, in the dtype of ``positions``.

    Raises:
        ValueError: only one of ``cell`` and ``cell_offsets`` is given, or ``edge_graph`` is
            missing where there are several cells.
    """
    source, target = edge_index.unbind(0)
    vectors = positions.index_select(0, source) - positions.index_select(0, target)
    if cell is None and cell_offsets is None:
        return vectors
    if cell is None or cell_offsets is None:
        missing = "cell" if cell is None else "cell_offsets"
        raise ValueError(f"{missing} is None: cell and cell_offsets go together, pass both or none")
    cell = cell.to(positions.dtype)
    offsets = cell_offsets.to(positions.dtype)
    if edge_graph is None:
        if cell.shape[0] != 1:
            raise ValueError(
                f"edge_graph is None with {cell.shape[0]} cells: pass the structure of each edge"
            )
        return vectors + offsets @ cell[0]
    flat = cell.reshape(-1, 9).index_select(0, edge_graph).view(-1, 3, 3)  # (E, 3, 3)
    return vectors + torch.einsum("ea,eab->eb", offsets, flat)
