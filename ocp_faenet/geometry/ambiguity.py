"""Frames of structures whose principal axes or signs are ambiguous.

Policy. (1) Every frame that the structure cannot tell apart so far is a candidate: sign patterns
of its principal axes; where two axes share an eigenvalue, directions of the outermost vectors in
their plane; where all three do, pairs of outermost vectors. (2) Higher moments choose among them,
in order, each keeping the candidates within `TIE` of the best. (3) What stays tied is a symmetry of
these moments, in practice one of the structure itself, and the prediction is averaged over it.
Candidates and moments turn with the structure, so the result is exact. It is not continuous where
an ambiguity sets in: no choice of finitely many frames is (Dym et al., arXiv 2402.16077).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocp_faenet.geometry.clouds import Cloud
from ocp_faenet.geometry.frames import POINT, sign_patterns

#: Moments, in units of the cloud's spread, that differ by less tie: above float32 noise.
TIE = 1e-5
#: Directions (unit vectors) closer than this are one.
SAME_DIRECTION = 1e-4

#: Wave vectors, in units of the inverse spread, and phases of the last resort among moments:
#: cosines hold moments of all orders, even and odd.
_WAVES = torch.tensor(
    [
        [0.755, 0.570, 0.325],
        [0.510, -1.140, 0.650],
        [-1.265, 0.710, 0.975],
        [1.020, 1.280, -0.700],
        [-0.775, -1.850, -0.375],
        [1.530, -0.580, 1.950],
    ],
    dtype=torch.float64,
)
_PHASES = torch.tensor([0.9, 2.1, 3.3, 4.5, 5.7, 0.6], dtype=torch.float64)


def tied_frames(cloud: Cloud, candidates: Tensor, spread: float) -> Tensor:
    """The candidates with the largest moments, all that tie.

    Args:
        cloud: of a single structure.
        candidates: ``(C, 3, 3)``, columns are axes; carries gradients.
        spread: Å, the length unit of waves.

    Returns:
        ``(T, 3, 3)`` with ``1 <= T <= C``, in the order of ``candidates``.
    """
    kept = torch.arange(len(candidates), device=candidates.device)
    for moments in (_third_moments, _wave_moments):
        if len(kept) == 1:
            break
        values = moments(cloud, candidates[kept].detach(), spread)  # (C', K)
        tied = torch.ones_like(kept, dtype=torch.bool)
        for column in values.unbind(-1):
            tied &= column >= column[tied].max() - TIE
        kept = kept[tied]
    return candidates[kept]


@torch.no_grad()
def _third_moments(cloud: Cloud, candidates: Tensor, spread: float) -> Tensor:
    """``(C, 3)`` along each axis, in units of the largest they could be."""
    along = torch.einsum("pi,cik->cpk", cloud.vectors, candidates)
    unit = cloud.cubed_unit().sum()
    return torch.einsum("p,cpk->ck", cloud.odd, along**3) / (unit if unit > 0 else 1.0)


@torch.no_grad()
def _wave_moments(cloud: Cloud, candidates: Tensor, spread: float) -> Tensor:
    """``(C, 6)`` means of cosines, in [-1, 1]."""
    along = torch.einsum("pi,cik->cpk", cloud.vectors, candidates) / spread
    waves = (along @ _WAVES.to(along).T + _PHASES.to(along)).cos()  # (C, P, 6)
    unit = cloud.mark.sum()
    return torch.einsum("p,cpk->ck", cloud.mark, waves) / (unit if unit > 0 else 1.0)


def axial_candidates(
    cloud: Cloud, axes: Tensor, about: int, *, both_ends: bool, proper: bool
) -> Tensor:
    """Frames of a cloud that is isotropic around one axis.

    The other axes are the directions, square to it, of the outermost vectors. A cloud that
    lies on the axis has none: then any will do, with both signs of each.

    Args:
        cloud: of a single structure.
        axes: ``(3, 3)``, columns; column ``about`` is the axis, the others are replaced.
        both_ends: the axis may point either way (in the plane: z may not).
        proper: determinant +1 alone.

    Returns:
        ``(C, 3, 3)``.
    """
    axis = axes[:, about]
    flat = cloud.vectors - (cloud.vectors @ axis).unsqueeze(-1) * axis
    first = _outermost(flat, cloud.even)  # (M, 3)
    free = first is None
    if first is None:
        first = axes[:, (about + 1) % 3].detach().unsqueeze(0)
    second = torch.linalg.cross(axis.expand_as(first), first)
    columns = [first, first, first]
    columns[about] = axis.expand_as(first)
    columns[(about + 1) % 3] = first
    columns[(about + 2) % 3] = second
    flips = [False, False, False]
    flips[about] = both_ends
    flips[(about + 1) % 3] = free
    flips[(about + 2) % 3] = True
    return _with_flips(torch.stack(columns, dim=-1), flips, proper)


def isotropic_candidates(cloud: Cloud, *, proper: bool) -> Tensor:
    """Frames of a cloud with three equal eigenvalues: ``(C, 3, 3)``.

    First axes are the directions of the outermost vectors; for each, second axes those of the
    vectors farthest from it. A cloud without extent takes the coordinate axes with all signs.
    """
    first = _outermost(cloud.vectors, cloud.even)
    if first is None:
        eye = torch.eye(3, dtype=cloud.vectors.dtype, device=cloud.vectors.device)
        return _with_flips(eye.unsqueeze(0), [True, True, True], proper)
    frames = []
    for axis in first:
        flat = cloud.vectors - (cloud.vectors @ axis).unsqueeze(-1) * axis
        second = _outermost(flat, cloud.even)
        if second is None:
            raise RuntimeError("an isotropic cloud cannot lie on a line")
        third = torch.linalg.cross(axis.expand_as(second), second)
        frames.append(torch.stack([axis.expand_as(second), second, third], dim=-1))
    return _with_flips(torch.cat(frames), [False, False, True], proper)


def _outermost(vectors: Tensor, weights: Tensor) -> Tensor | None:
    """``(M, 3)`` directions of the vectors with the largest ``w |v|^2``, each direction once."""
    with torch.no_grad():
        scores = weights * vectors.square().sum(-1)
        if len(scores) == 0 or float(scores.max()) <= POINT**2 * float(weights.max()):
            return None
        top = scores >= (1 - TIE) * scores.max()
    units = vectors[top]
    units = units / units.norm(dim=-1, keepdim=True)
    near = torch.cdist(units.detach(), units.detach()) < SAME_DIRECTION  # (M', M')
    means = near.to(units.dtype) @ units
    representative = near.to(torch.uint8).argmax(-1).unique()
    means = means[representative]
    directions: Tensor = means / means.norm(dim=-1, keepdim=True)
    return directions


def _with_flips(frames: Tensor, flips: list[bool], proper: bool) -> Tensor:
    """Right-handed ``frames`` ``(M, 3, 3)`` with every sign of the columns that may flip."""
    patterns = sign_patterns(planar=False, proper=proper).to(frames)
    fixed = torch.tensor([not flip for flip in flips], device=frames.device)
    patterns = patterns[(patterns[:, fixed] > 0).all(-1)]
    return (frames.unsqueeze(1) * patterns.unsqueeze(-2)).flatten(0, 1)
