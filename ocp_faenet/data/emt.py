"""ASE's effective medium theory, vectorised over pairs.

`EmtPotential` computes the energy and forces of `ase.calculators.emt.EMT` (K. W. Jacobsen,
P. Stoltze and J. K. Nørskov, Surf. Sci. 366, 394 (1996)) with its parameters and cut-off, read
from ASE, for one fixed cell and list of species. It differs from ASE's in rounding alone; the
tests hold the two together. The parameters of H, C, N and O are ASE's and are not for chemistry:
the point is a potential that is smooth, cheap and consistent.
"""

from __future__ import annotations

from math import log, sqrt
from typing import NamedTuple

import numpy as np
from ase.calculators.emt import beta, parameters
from ase.data import chemical_symbols
from ase.units import Bohr

from ocp_faenet.data.pairs import Floats, Ints, PairList, periodic_pairs

_SHELL_COUNTS = np.array([12.0, 6.0, 24.0])  # first three shells of fcc
_SHELL_RADII = np.sqrt([1.0, 2.0, 3.0])


def _cutoffs() -> tuple[float, float, float]:
    """Midpoint (Å), list radius (Å) and slope (Å⁻¹) of the smoothing function."""
    nearest = beta * max(p[1] for p in parameters.values()) * Bohr
    middle = nearest * 0.5 * (sqrt(3.0) + 2.0)
    slope = log(1.0 / 1e-4 - 1.0) / (2.0 * nearest - middle)
    return middle, middle + 0.5, slope


class EmtResult(NamedTuple):
    """Energy in eV (zero: bulk metals) and forces (N, 3) in eV/Å."""

    energy: float
    forces: Floats


class _Species:
    """EMT parameters of every atom, in eV and Å; each attribute has shape (N,)."""

    def __init__(self, numbers: Ints) -> None:
        symbols = [chemical_symbols[int(z)] for z in numbers]
        unknown = sorted({s for s in symbols if s not in parameters})
        if unknown:
            known = ", ".join(sorted(parameters))
            raise ValueError(f"EMT has no parameters for {', '.join(unknown)}; it knows {known}")
        table = np.array([parameters[s] for s in symbols], dtype=np.float64).reshape(-1, 7)
        self.e0 = table[:, 0]
        self.s0 = table[:, 1] * Bohr
        self.v0 = table[:, 2]
        self.eta2 = table[:, 3] / Bohr
        self.kappa = table[:, 4] / Bohr
        self.lam = table[:, 5] / Bohr
        self.n0 = table[:, 6] / Bohr**3
        middle, _, slope = _cutoffs()
        radii = beta * self.s0[:, None] * _SHELL_RADII  # (N, 3)
        share = _SHELL_COUNTS / (12.0 * (1.0 + np.exp(slope * (radii - middle))))
        excess = radii - beta * self.s0[:, None]
        gamma1 = (share * np.exp(-self.eta2[:, None] * excess)).sum(axis=1)
        gamma2 = (share * np.exp(-self.kappa[:, None] / beta * excess)).sum(axis=1)
        self.inv12gamma1 = 1.0 / (12.0 * gamma1)
        self.half_v0_gamma2 = -0.5 * self.v0 / gamma2


class EmtPotential:
    """Energy and forces of atoms in one periodic cell.

    Args:
        numbers: (N,) atomic numbers among EMT's H C N O Al Ni Cu Pd Ag Pt Au.
        cell: (3, 3) lattice vectors as rows in Å, periodic along all three.
        skin: in Å; the pair list is kept until an atom has moved half of it.

    Raises:
        ValueError: for an element without EMT parameters.
    """

    def __init__(self, numbers: Ints, cell: Floats, skin: float = 0.9) -> None:
        self.numbers = np.asarray(numbers, dtype=np.int64)
        self.cell = np.asarray(cell, dtype=np.float64).reshape(3, 3)
        self._species = _Species(self.numbers)
        self._middle, self._reach, self._slope = _cutoffs()
        self._skin = skin
        self._listed_at: Floats | None = None

    def _update_list(self, positions: Floats) -> None:
        if self._listed_at is not None:
            moved = np.square(positions - self._listed_at).sum(axis=1).max()
            if moved <= (0.5 * self._skin) ** 2:
                return
        pairs = half_pairs(periodic_pairs(positions, self.cell, self._reach + self._skin))
        i, j, s = pairs.centre, pairs.neighbour, self._species
        self._first, self._second, self._both = i, j, np.concatenate([i, j])
        self._shift = pairs.offsets @ self.cell
        chi = s.n0[j] / s.n0[i]
        # Decay rates (4, P) in Å⁻¹ and prefactors (4, P) of the four exponentials of a pair:
        # j's share of sigma1 of i, i's share of j's, and the two terms of the pair energy in eV.
        self._rates = np.stack([s.eta2[j], s.eta2[i], s.kappa[j] / beta, s.kappa[i] / beta])
        lengths = np.stack([s.s0[j], s.s0[i], s.s0[j], s.s0[i]]) * beta
        scales = [chi, 1.0 / chi, chi * s.half_v0_gamma2[i], s.half_v0_gamma2[j] / chi]
        self._factors = np.stack(scales) * np.exp(self._rates * lengths)
        self._listed_at = positions.copy()

    def __call__(self, positions: Floats) -> EmtResult:
        """Energy (eV) and forces (N, 3) (eV/Å) at `positions` (N, 3) in Å."""
        positions = np.asarray(positions, dtype=np.float64)
        self._update_list(positions)
        vectors = positions[self._second] + self._shift - positions[self._first]  # (P, 3)
        r = np.sqrt(np.square(vectors).sum(axis=1))
        n_atoms, n_pairs = len(self.numbers), len(r)
        weight = 1.0 / (1.0 + np.exp(self._slope * (r - self._middle)))
        weight[r >= self._reach] = 0.0
        terms = self._factors * np.exp(-self._rates * r) * weight  # (4, P)
        sigma1 = np.bincount(self._both, terms[:2].ravel(), n_atoms).astype(np.float64)
        energies, slopes = self._embedding(sigma1)
        energy = energies.sum() + terms[2:].sum() - self._species.e0.sum()
        by_distance = terms * (self._slope * (weight - 1.0) - self._rates)  # d(term)/dr
        by_distance[:2] *= slopes[self._both].reshape(2, n_pairs)
        pull = (by_distance.sum(axis=0) / r)[:, None] * vectors  # force on the first atom
        both = np.concatenate([pull, -pull])
        forces = np.empty((n_atoms, 3))
        for axis in range(3):
            forces[:, axis] = np.bincount(self._both, both[:, axis], n_atoms)
        return EmtResult(float(energy), forces)

    def _embedding(self, sigma1: Floats) -> tuple[Floats, Floats]:
        """Cohesive and one-body terms (N,) and their derivatives by sigma1; zero for lone atoms."""
        s = self._species
        lone = sigma1 == 0.0
        sigma = np.where(lone, 1.0, sigma1)
        ds = -np.log(sigma * s.inv12gamma1) / (beta * s.eta2)
        x = s.lam * ds
        decay = np.exp(-x)
        repulsion = 6.0 * s.v0 * np.exp(-s.kappa * ds)
        energies = s.e0 * (1.0 + x) * decay + repulsion
        by_ds = -s.e0 * s.lam * x * decay - s.kappa * repulsion
        slopes = by_ds / (-beta * s.eta2 * sigma)
        return np.where(lone, 0.0, energies), np.where(lone, 0.0, slopes)


def half_pairs(pairs: PairList) -> PairList:
    """Every unordered pair once: smaller index first, self-images by a positive first offset."""
    o = pairs.offsets
    positive = (o[:, 0] > 0) | ((o[:, 0] == 0) & ((o[:, 1] > 0) | ((o[:, 1] == 0) & (o[:, 2] > 0))))
    once = (pairs.centre < pairs.neighbour) | ((pairs.centre == pairs.neighbour) & positive)
    return PairList(
        pairs.centre[once], pairs.neighbour[once], pairs.offsets[once], pairs.distances[once]
    )
