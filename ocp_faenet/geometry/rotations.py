"""Random rotations and reflections, as matrices ``R`` that act on row vectors: ``x' = x @ R``."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def random_rotations(
    n: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``(n, 3, 3)`` rotations, uniform over SO(3) (unit quaternions of a 4D Gaussian)."""
    q = torch.randn(n, 4, dtype=torch.float64, generator=generator)
    w, x, y, z = (q / q.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
    ]
    return torch.stack(rows, -2).to(dtype=dtype, device=device)


def random_rotations_about_z(
    n: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``(n, 3, 3)`` rotations about the z axis, the angle uniform in [0, 2 pi)."""
    angle = 2 * math.pi * torch.rand(n, dtype=torch.float64, generator=generator)
    c, s = angle.cos(), angle.sin()
    zero, one = torch.zeros_like(c), torch.ones_like(c)
    rows = [
        torch.stack([c, s, zero], -1),
        torch.stack([-s, c, zero], -1),
        torch.stack([zero, zero, one], -1),
    ]
    return torch.stack(rows, -2).to(dtype=dtype, device=device)


def random_orthogonal(
    n: int,
    *,
    about_z: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``(n, 3, 3)`` rotations, half of them times a reflection: O(3), or O(2) about z.

    The reflection is of the first axis (x), which lies in the plane of a slab.
    """
    make = random_rotations_about_z if about_z else random_rotations
    rotations = make(n, dtype=dtype, generator=generator)
    flip = 1 - 2 * torch.randint(0, 2, (n, 1), generator=generator).to(dtype)
    scale = torch.cat([flip, torch.ones(n, 2, dtype=dtype)], -1)
    return (scale.unsqueeze(-1) * rotations).to(device)
