"""Frames from vectors that need not be orthogonal."""

from __future__ import annotations

import torch
from torch import Tensor

#: Vectors whose independent parts are shorter than this make no frame of their own. Frames are
#: made of vectors of length about 1; rounding errors grow by no more than the inverse of this.
INDEPENDENT = 1e-3


def gram_schmidt(vectors: Tensor, fallback: Tensor, *, planar: bool, proper: bool) -> Tensor:
    """Orthonormal columns from the columns of ``vectors``, in order (report, section 2.3).

    A frame is ``U = [u_1 u_2 u_3]`` with ``x' = x @ U``: rotated vectors ``v R`` give ``R^T U``,
    and the same ``x'``.

    Args:
        vectors: ``(..., 3, 3)``, columns.
        fallback: ``(..., 3, 3)`` orthonormal, taken whole where the vectors are (nearly) dependent.
        planar: use the horizontal parts of the first two; the third column is z.
        proper: the last free column is the cross product of the others, which does not flip
            with a reflection; otherwise it is made from its own vector, which does.
    """
    if planar:
        vectors = _horizontal(vectors)
    last = 1 if planar else 2
    with torch.no_grad():
        usable = _independence(vectors, last - 1 if proper else last) > INDEPENDENT
    vectors = torch.where(usable[..., None, None], vectors, fallback)
    columns: list[Tensor] = []
    for k in range(last if proper else last + 1):
        columns.append(_unit(_remove(vectors[..., k], columns)))
    if planar:
        up = torch.zeros_like(columns[0])
        up[..., 2] = 1.0
        second = torch.linalg.cross(up, columns[0]) if proper else columns[1]
        return torch.stack([columns[0], second, up], dim=-1)
    third = torch.linalg.cross(columns[0], columns[1]) if proper else columns[2]
    return torch.stack([columns[0], columns[1], third], dim=-1)


def _horizontal(vectors: Tensor) -> Tensor:
    mask = torch.ones(3, 1, dtype=vectors.dtype, device=vectors.device)
    mask[2] = 0.0
    return vectors * mask


def _remove(vector: Tensor, columns: list[Tensor]) -> Tensor:
    """``vector`` minus its parts along ``columns``, twice: the second pass mends rounding."""
    for _ in range(2):
        for column in columns:
            vector = vector - (vector * column).sum(-1, keepdim=True) * column
    return vector


def _unit(vector: Tensor) -> Tensor:
    unit: Tensor = vector / vector.norm(dim=-1, keepdim=True)
    return unit


def _independence(vectors: Tensor, last: int) -> Tensor:
    """``(...)`` shortest part of the first ``last + 1`` columns that the ones before leave."""
    columns: list[Tensor] = []
    shortest = torch.full_like(vectors[..., 0, 0], torch.inf)
    for k in range(last + 1):
        rest = _remove(vectors[..., k], columns)
        length = rest.norm(dim=-1, keepdim=True)
        shortest = torch.minimum(shortest, length.squeeze(-1))
        columns.append(rest / torch.where(length > 0, length, 1.0))
    return shortest
