"""Shortest displacements under periodic boundary conditions."""

from __future__ import annotations

import torch
from torch import Tensor

from ocp_faenet.geometry.lattice import reduced_cells


@torch.no_grad()
def minimum_image(displacements: Tensor, cell: Tensor | None, batch: Tensor) -> Tensor:
    """The shortest of all displacements that differ by lattice vectors.

    Exact for any cell: each is brought into the Minkowski-reduced cell, in which the shortest
    image is at most one lattice vector along each axis away.

    Args:
        displacements: ``(N, 3)``, Å.
        cell: ``(B, 3, 3)``, rows are lattice vectors, Å; zero rows do not repeat. ``None``: as is.
        batch: ``(N,)`` the cell of each displacement.

    Returns:
        ``(N, 3)``, Å, in the dtype of ``displacements``; those that are shortest already are
        returned bit for bit.
    """
    if cell is None or len(displacements) == 0:
        return displacements
    if bool(_surely_shortest(displacements, cell, batch)):
        return displacements
    lattice = reduced_cells(cell.double().cpu()).to(displacements.device)
    d = displacements.double()
    whole = torch.einsum("ni,nij->nj", d, torch.linalg.pinv(lattice)[batch]).round()
    near = d - torch.einsum("ni,nij->nj", whole, lattice[batch])
    steps = torch.cartesian_prod(*[torch.arange(-1.0, 2.0, dtype=d.dtype)] * 3).to(d.device)
    images = near.unsqueeze(1) + torch.einsum("sa,bai->bsi", steps, lattice)[batch]  # (N, 27, 3)
    shortest = images[torch.arange(len(d), device=d.device), images.square().sum(-1).argmin(-1)]
    improved = shortest.norm(dim=-1) < d.norm(dim=-1) * (1 - 1e-9)
    return torch.where(improved.unsqueeze(-1), shortest.to(displacements.dtype), displacements)


def _surely_shortest(displacements: Tensor, cell: Tensor, batch: Tensor) -> Tensor:
    """Whether none exceeds half the distance of the closest lattice planes, and hence half of any
    lattice vector; no search is needed then.
    """
    heights = 1.0 / torch.linalg.pinv(cell.double()).norm(dim=-2)  # (B, 3), Å; inf for zero rows
    reach = 0.5 * heights.amin(-1)[batch]
    sure: Tensor = (displacements.norm(dim=-1) <= reach).all()
    return sure
