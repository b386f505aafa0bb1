"""Frames of point clouds by principal component analysis, batched over graphs.

A frame is an orthogonal matrix ``U`` whose *columns* are the axes. Canonical coordinates are
``x' = (x - t) @ U``; a vector predicted in the frame is turned back by ``v = v' @ U.T``.

Source: report, section 2.1 and equation (2); Puny et al., arXiv 2110.03336; Duval et al.,
arXiv 2305.05577. Departure: deterministic signs come from the third moment along each axis,
because signs of sums of eigenvector components depend on the pose.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

#: Eigenvalues closer than this share of the largest count as equal. Axes of closer ones would
#: turn by more than 1e-4 with the rounding of float32 positions, and by 1e-12 in float64.
EQUAL_EIGENVALUES = 1e-3


#: Å: a cloud of less extent has none.
POINT = 1e-6


class Shape(IntEnum):
    """Which principal axes a cloud has."""

    DISTINCT = 0
    ABOUT_FIRST = 1  #: the second and third axis are arbitrary
    ABOUT_LAST = 2  #: the first and second axis are arbitrary
    ISOTROPIC = 3  #: all are


@dataclass(frozen=True)
class PrincipalAxes:
    """Principal axes of ``B`` clouds.

    Attributes:
        axes: ``(B, 3, 3)``, columns, largest spread first, determinant +1; those that the cloud
            leaves arbitrary are constants, without derivative.
        shape: ``(B,)`` int64, `Shape`.
        gap: ``(B,)`` smallest difference of neighbouring eigenvalues over the largest.
        spread: ``(B,)`` Å, root of the sum of eigenvalues; 1 for a cloud without extent.
    """

    axes: Tensor
    shape: Tensor
    gap: Tensor
    spread: Tensor


def principal_axes_3d(cov: Tensor) -> PrincipalAxes:
    """Eigenvectors of the second moments ``cov`` ``(B, 3, 3)``, Å^2."""
    values, constant = torch.linalg.eigh(cov.detach())
    values, constant = values.flip(-1), constant.flip(-1)
    extended = values.sum(-1) > POINT**2
    gaps = (values[..., :-1] - values[..., 1:]) / _or_one(values[..., :1], extended.unsqueeze(-1))
    gaps = gaps * extended.unsqueeze(-1)  # (B, 2)
    apart = gaps > EQUAL_EIGENVALUES
    shape = torch.full_like(apart[..., 0], int(Shape.ISOTROPIC), dtype=torch.int64)
    shape[apart[..., 0]] = int(Shape.ABOUT_FIRST)
    shape[apart[..., 1]] = int(Shape.ABOUT_LAST)
    distinct = apart.all(-1)
    shape[distinct] = int(Shape.DISTINCT)
    vectors = constant
    if cov.requires_grad:
        harmless = torch.diag(torch.arange(1, 4).to(cov)).expand_as(cov)
        chosen = distinct[..., None, None]
        _, vectors = torch.linalg.eigh(torch.where(chosen, cov, harmless))
        vectors = torch.where(chosen, vectors.flip(-1), constant)
    handedness = torch.linalg.det(vectors.detach()).sign()
    last = vectors[..., 2:] * handedness[..., None, None]
    axes = torch.cat([vectors[..., :2], last], dim=-1)
    return PrincipalAxes(axes, shape, gaps.amin(-1), _or_one(values.sum(-1), extended).sqrt())


def principal_axes_2d(cov: Tensor) -> PrincipalAxes:
    """Principal axes in the plane; the third axis stays z.

    Closed form for the upper 2 x 2 block of ``cov``: the first axis lies at
    ``atan2(2 c_xy, c_xx - c_yy) / 2`` from x.
    """
    a, b = cov[..., 0, 0] - cov[..., 1, 1], 2 * cov[..., 0, 1]
    total = (cov[..., 0, 0] + cov[..., 1, 1]).detach()
    difference = torch.hypot(a.detach(), b.detach())
    extended = total > POINT**2
    gap = extended * difference / _or_one((total + difference) / 2, extended)
    distinct = gap > EQUAL_EIGENVALUES
    shape = torch.where(distinct, int(Shape.DISTINCT), int(Shape.ABOUT_LAST))
    angle = 0.5 * torch.atan2(torch.where(distinct, b, 0.0), torch.where(distinct, a, 1.0))
    c, s = angle.cos(), angle.sin()
    zero, one = torch.zeros_like(c), torch.ones_like(c)
    rows = [
        torch.stack([c, -s, zero], -1),
        torch.stack([s, c, zero], -1),
        torch.stack([zero, zero, one], -1),
    ]
    return PrincipalAxes(torch.stack(rows, -2), shape, gap, _or_one(total, extended).sqrt())


def lone_axis(cov: Tensor, axes: Tensor, about: int) -> Tensor:
    """Column ``about`` of ``axes`` with its derivative, the only one that is well defined.

    First-order perturbation of the eigenvector ``u``: ``du = sum_k v_k (v_k . dC u) / (l_u - l_k)``
    over the other two, whose own mixing does not enter. The value is unchanged.

    Args:
        cov: ``(3, 3)``, with gradient.
        axes: ``(3, 3)`` its eigenvectors, constants.
    """
    u = axes[:, about]
    constant = cov.detach()
    level = u @ constant @ u
    for k in range(3):
        if k != about:
            v = axes[:, k]
            u = u + v * (v @ (cov - constant) @ axes[:, about]) / (level - v @ constant @ v)
    return u


def _or_one(values: Tensor, use: Tensor) -> Tensor:
    return torch.where(use, values, 1.0)


def sign_patterns(planar: bool, proper: bool) -> Tensor:
    """``(F, 3)`` choices of axis signs that make up a frame, entries +1 or -1.

    Args:
        planar: only the two in-plane axes may flip (F = 4); otherwise all three (F = 8).
        proper: keep only patterns of determinant +1 (the ``se3-`` forms: F = 2 or 4).
    """
    choices = [(1.0, -1.0), (1.0, -1.0), (1.0,) if planar else (1.0, -1.0)]
    patterns = torch.tensor(list(itertools.product(*choices)))
    return patterns[patterns.prod(-1) > 0] if proper else patterns


def common_signs(rotations: Tensor) -> tuple[tuple[int, int, int], ...] | None:
    """Signs of the axes of each frame against the first, if nothing else differs.

    Args:
        rotations: ``(B, F, 3, 3)``, columns the axes.

    Returns:
        ``F`` sign patterns, the first of ones, the same for all structures and a group under
        multiplication; ``None`` where frames differ in more than that by a single bit, where
        there is but one, or where a gradient flows into each of them.
    """
    if rotations.shape[1] < 2 or rotations.requires_grad:
        return None
    overlap = (rotations[:, :1] * rotations).sum((0, 2))  # (F, 3)
    signs = torch.where(overlap < 0, -1, 1)
    if not torch.equal(rotations[:, :1] * signs.unsqueeze(1), rotations):
        return None
    x, y, z = signs.unbind(-1)
    patterns = tuple(zip(x.tolist(), y.tolist(), z.tolist(), strict=True))
    products = {(a * d, b * e, c * f) for a, b, c in patterns for d, e, f in patterns}
    return patterns if products == set(patterns) and len(products) == len(patterns) else None


def third_moment_signs(moments: Tensor, planar: bool, proper: bool) -> Tensor:
    """``(B, 3)`` signs that make the third moment along each axis positive.

    With ``proper`` the last free axis (in the plane: the second) takes the sign that keeps the
    determinant +1, whatever its own moment. A moment of exactly zero takes +1.
    """
    signs = torch.where(moments >= 0, 1.0, -1.0).to(moments.dtype)
    last = 1 if planar else 2
    if planar:
        signs = torch.cat([signs[:, :2], torch.ones_like(signs[:, 2:])], -1)
    if proper:
        others = signs[:, :last].prod(-1, keepdim=True)
        signs = torch.cat([signs[:, :last], others, signs[:, last + 1 :]], -1)
    return signs
