"""Radial basis."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class GaussianSmearing(nn.Module):
    """Distances on a grid of Gaussians, ``exp(-(d - mu_k)^2 / (2 delta^2))``.

    The centres ``mu_k`` are evenly spread over [0, cutoff] and ``delta`` is their spacing
    (SchNet, arXiv 1706.08566, section 3; unchanged in FAENet).

    Args:
        cutoff: largest centre, Å.
        num_gaussians: number of centres ``G``, at least 2.
    """

    offset: Tensor

    def __init__(self, cutoff: float, num_gaussians: int) -> None:
        super().__init__()
        self.register_buffer("offset", torch.linspace(0.0, cutoff, num_gaussians))
        # The spacing of the float32 grid, as published: weights trained elsewhere expect it.
        self.coeff = -0.5 / float(self.offset[1] - self.offset[0]) ** 2

    def forward(self, distances: Tensor) -> Tensor:
        """``(E,)`` distances in Å to ``(E, G)``."""
        return torch.exp(self.coeff * (distances.unsqueeze(-1) - self.offset) ** 2)


def cosine_cutoff(distances: Tensor, cutoff: float) -> Tensor:
    """``(cos(pi d / c) + 1) / 2``: 1 at no distance, 0 with no slope at the cutoff.

    Behler and Parrinello (Phys. Rev. Lett. 98, 146401), equation 3.

    Args:
        distances: any shape, Å, none beyond the cutoff.
        cutoff: Å.
    """
    return (torch.cos(distances * (math.pi / cutoff)) + 1) / 2
