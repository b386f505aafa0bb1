"""The interaction 1/r as a short- and a long-range part, and the sums of both over a crystal.

.. math:: 1/r = erfc(\\alpha r)/r + erf(\\alpha r)/r

The first is summed in real space up to a cutoff, the second, whose transform is
:math:`4\\pi/k^2\\, e^{-k^2/4\\alpha^2}`, over wave vectors up to a cutoff (report, figure 3; Ewald,
Ann. Phys. 369, 253, 1921).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ocp_faenet.geometry.kspace import plane_waves, reciprocal_cells, vectors_within

#: eV Å: the energy of two elementary charges 1 Å apart.
COULOMB = 14.399645


@dataclass(frozen=True)
class EwaldEnergy:
    """Parts of the energy of a periodic set of charges, eV.

    Attributes:
        short: sum of erfc(alpha r)/r over pairs within the real-space cutoff.
        long: sum over wave vectors within the other cutoff.
        own: what the long-range part counts of each charge with itself, negative.
    """

    short: float
    long: float
    own: float

    @property
    def total(self) -> float:
        """The energy, eV."""
        return self.short + self.long + self.own


def short_range(r: Tensor, alpha: float) -> Tensor:
    """``erfc(alpha r) / r``, Å⁻¹, of distances ``r`` in Å and ``alpha`` in Å⁻¹."""
    return torch.erfc(alpha * r) / r


def long_range(r: Tensor, alpha: float) -> Tensor:
    """``erf(alpha r) / r``, Å⁻¹; its limit at zero is ``2 alpha / sqrt(pi)``."""
    return torch.where(r > 0, torch.erf(alpha * r) / r, 2 * alpha / math.sqrt(math.pi))


def coulomb_transform(k: Tensor) -> Tensor:
    """``4 pi / k²``, Å², of wave numbers ``k`` in Å⁻¹: the transform of ``1 / r``."""
    return k.square().reciprocal() * (4 * math.pi)


def long_range_transform(k: Tensor, alpha: float) -> Tensor:
    """``4 pi / k² exp(-k² / 4 alpha²)``, Å²: the transform of `long_range`."""
    return coulomb_transform(k) * torch.exp(-k.square() / (4 * alpha**2))


def pair_distances(positions: Tensor, cell: Tensor, cutoff: float) -> tuple[Tensor, Tensor]:
    """Distances ``(P,)`` up to ``cutoff`` and the atoms ``(P, 2)`` of each, all images, both ways.

    Args:
        positions: ``(N, 3)``, Å.
        cell: ``(3, 3)``, rows are the lattice vectors, Å.
        cutoff: Å.
    """
    heights = 1 / torch.linalg.vector_norm(torch.linalg.inv(cell), dim=0)
    extent = torch.linalg.vector_norm(positions[:, None] - positions[None], dim=-1).max()
    reach = [int(n) for n in ((cutoff + extent) / heights).ceil().tolist()]
    images = torch.cartesian_prod(*(torch.arange(-n, n + 1) for n in reach)).to(cell) @ cell
    ends = positions[:, None, None] + images  # (N, 1, M, 3)
    r = torch.linalg.vector_norm(ends - positions[:, None], dim=-1)  # (N, N, M)
    found = (r > 0) & (r <= cutoff)
    return r[found], found.nonzero()[:, :2]


def ewald_energy(
    positions: Tensor,
    charges: Tensor,
    cell: Tensor,
    alpha: float,
    r_cutoff: float,
    k_cutoff: float,
) -> EwaldEnergy:
    """The energy of one cell of a neutral crystal of point charges.

    Args:
        positions: ``(N, 3)``, Å.
        charges: ``(N,)``, elementary charges, of sum zero.
        cell: ``(3, 3)``, Å.
        alpha: where the two parts are divided, Å⁻¹.
        r_cutoff: of the short-range part, Å.
        k_cutoff: of the long-range part, Å⁻¹.

    Raises:
        ValueError: charges that do not cancel, whose energy is infinite.
    """
    if abs(float(charges.sum())) > 1e-9:
        raise ValueError(f"charges: their sum is {float(charges.sum()):g}; it must be zero")
    r, pairs = pair_distances(positions, cell, r_cutoff)
    product = charges[pairs].prod(-1)
    short = 0.5 * (product * short_range(r, alpha)).sum()
    reciprocal = reciprocal_cells(cell.unsqueeze(0))
    vectors = vectors_within(reciprocal, cell.unsqueeze(0), k_cutoff)
    waves = plane_waves(positions @ torch.linalg.inv(cell), vectors.indices[0])  # (N, 2K)
    factors = (charges @ waves).view(2, -1).square().sum(0)[1:]  # without k = 0
    transform = long_range_transform(vectors.norms[0, 1:], alpha)
    volume = torch.linalg.det(cell).abs()
    long = 0.5 * (vectors.multiplicity[0, 1:] * transform * factors).sum() / volume
    own = -alpha / math.sqrt(math.pi) * charges.square().sum()
    return EwaldEnergy(*(COULOMB * float(part) for part in (short, long, own)))


def cut_energy(positions: Tensor, charges: Tensor, cell: Tensor, cutoff: float) -> float:
    """The energy of one cell, eV, if 1/r itself is cut off at ``cutoff`` Å."""
    r, pairs = pair_distances(positions, cell, cutoff)
    return COULOMB * float(0.5 * (charges[pairs].prod(-1) / r).sum())
