"""Frames of point clouds by principal component analysis, batched over graphs.

A frame is an orthogonal matrix ``U`` whose *columns* are the axes. Canonical coordinates are
``x' = (x - t) @ U``; a vector predicted in the frame is turned back by ``v = v' @ U.T``.

Source: report, section 2.1 and equation (2); Puny et al., arXiv 2110.03336; Duval et al.,
arXiv 2305.05577. Departure: deterministic signs come from the third moment along each axis,
because signs of sums of eigenvector components depend on the pose.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ocp_faenet.geometry.segments import segment_mean, segment_sum


def centred(points: Tensor, batch: Tensor, num_graphs: int) -> Tensor:
    """``(N, 3)`` points minus the mean point of their graph."""
    means = segment_mean(points, batch, num_graphs)
    result: Tensor = points - means.index_select(0, batch)
    return result


def covariance(points: Tensor, batch: Tensor, num_graphs: int) -> Tensor:
    """``(B, 3, 3)`` sum of outer products of centred ``points`` ``(N, 3)``, in Å^2."""
    outer = (points.unsqueeze(-1) * points.unsqueeze(-2)).flatten(-2)
    return segment_sum(outer, batch, num_graphs).view(num_graphs, 3, 3)


#: Eigenvalues closer than this share of the largest count as equal: they single out no axes.
EQUAL_EIGENVALUES = 1e-3


def principal_axes_3d(cov: Tensor) -> Tensor:
    """``(B, 3, 3)`` eigenvectors as columns, largest eigenvalue first, determinant +1.

    Where eigenvalues are equal the axes are constants: they have no derivative.
    """
    values, constant = torch.linalg.eigh(cov.detach())
    vectors = constant
    if cov.requires_grad:
        gaps = (values[..., 1:] - values[..., :-1]).amin(-1)
        distinct = gaps > EQUAL_EIGENVALUES * values[..., -1]  # (B,), never for zero covariance
        distinct = distinct[..., None, None]
        harmless = torch.diag(torch.arange(1, 4).to(cov)).expand_as(cov)
        _, vectors = torch.linalg.eigh(torch.where(distinct, cov, harmless))
        vectors = torch.where(distinct, vectors, constant)
    vectors = vectors.flip(-1)
    handedness = torch.linalg.det(vectors.detach()).sign()
    last = vectors[..., 2:] * handedness[..., None, None]
    return torch.cat([vectors[..., :2], last], dim=-1)


def principal_axes_2d(cov: Tensor) -> Tensor:
    """``(B, 3, 3)`` in-plane principal axes; the third axis stays z, determinant +1.

    Closed form for the upper 2 x 2 block of ``cov``: the first axis lies at
    ``atan2(2 c_xy, c_xx - c_yy) / 2`` from x. Where the eigenvalues are equal it is x.
    """
    a, b = cov[..., 0, 0] - cov[..., 1, 1], 2 * cov[..., 0, 1]
    spread = (cov[..., 0, 0] + cov[..., 1, 1]).detach()
    distinct = torch.hypot(a.detach(), b.detach()) > EQUAL_EIGENVALUES * spread
    a, b = torch.where(distinct, a, 1.0), torch.where(distinct, b, 0.0)
    angle = 0.5 * torch.atan2(b, a)
    c, s = angle.cos(), angle.sin()
    zero, one = torch.zeros_like(c), torch.ones_like(c)
    rows = [
        torch.stack([c, -s, zero], -1),
        torch.stack([s, c, zero], -1),
        torch.stack([zero, zero, one], -1),
    ]
    return torch.stack(rows, -2)


def third_moments(points: Tensor, axes: Tensor, batch: Tensor, num_graphs: int) -> Tensor:
    """``(B, 3)`` sums of cubed coordinates of ``points`` ``(N, 3)`` along the axes, in Å^3."""
    along = torch.einsum("ni,nik->nk", points, axes[batch])
    return segment_sum(along**3, batch, num_graphs)


def sign_patterns(planar: bool, proper: bool) -> Tensor:
    """``(F, 3)`` choices of axis signs that make up a frame, entries +1 or -1.

    Args:
        planar: only the two in-plane axes may flip (F = 4); otherwise all three (F = 8).
        proper: keep only patterns of determinant +1 (the ``se3-`` forms: F = 2 or 4).
    """
    choices = [(1.0, -1.0), (1.0, -1.0), (1.0,) if planar else (1.0, -1.0)]
    patterns = torch.tensor(list(itertools.product(*choices)))
    return patterns[patterns.prod(-1) > 0] if proper else patterns


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
