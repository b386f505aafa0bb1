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

    def __init__(self, numbers: Ints, cell: Floats, skin: float = 0.6) -> None:
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
        pairs = _half(periodic_pairs(positions, self.cell, self._reach + self._skin))
        self._first, self._second = pairs.centre, pairs.neighbour
        self._shift = pairs.offsets @ self.cell
        self._listed_at = positions.copy()

    def __call__(self, positions: Floats) -> EmtResult:
        """Energy (eV) and forces (N, 3) (eV/Å) at `positions` (N, 3) in Å."""
        positions = np.asarray(positions, dtype=np.float64)
        self._update_list(positions)
        vectors = positions[self._second] + self._shift - positions[self._first]  # (P, 3)
        distances = np.sqrt(np.square(vectors).sum(axis=1))
        near = distances < self._reach
        i, j, vectors, r = self._first[near], self._second[near], vectors[near], distances[near]
        return self._evaluate(i, j, vectors, r)

    def _evaluate(self, i: Ints, j: Ints, vectors: Floats, r: Floats) -> EmtResult:
        s, n_atoms = self._species, len(self.numbers)
        weight = 1.0 / (1.0 + np.exp(self._slope * (r - self._middle)))
        log_slope = self._slope * (weight - 1.0)  # w'/w
        chi = s.n0[j] / s.n0[i]
        to_i = np.exp(-s.eta2[j] * (r - beta * s.s0[j])) * chi * weight  # j's share of sigma1 of i
        to_j = np.exp(-s.eta2[i] * (r - beta * s.s0[i])) / chi * weight
        sigma1 = np.bincount(i, to_i, n_atoms) + np.bincount(j, to_j, n_atoms)
        energies, slopes = self._embedding(sigma1)
        pair_i = np.exp(-s.kappa[j] * (r / beta - s.s0[j])) * chi * weight * s.half_v0_gamma2[i]
        pair_j = np.exp(-s.kappa[i] * (r / beta - s.s0[i])) / chi * weight * s.half_v0_gamma2[j]
        gradient = (  # dE/dr of every pair
            slopes[i] * to_i * (log_slope - s.eta2[j])
            + slopes[j] * to_j * (log_slope - s.eta2[i])
            + pair_i * (log_slope - s.kappa[j] / beta)
            + pair_j * (log_slope - s.kappa[i] / beta)
        )
        pull = (gradient / r)[:, None] * vectors  # force on i
        forces = np.empty((n_atoms, 3))
        for axis in range(3):
            forces[:, axis] = np.bincount(i, pull[:, axis], n_atoms)
            forces[:, axis] -= np.bincount(j, pull[:, axis], n_atoms)
        energy = energies.sum() + (pair_i + pair_j).sum() - s.e0.sum()
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


def _half(pairs: PairList) -> PairList:
    """Every unordered pair once: smaller index first, self-images by a positive first offset."""
    o = pairs.offsets
    positive = (o[:, 0] > 0) | ((o[:, 0] == 0) & ((o[:, 1] > 0) | ((o[:, 1] == 0) & (o[:, 2] > 0))))
    once = (pairs.centre < pairs.neighbour) | ((pairs.centre == pairs.neighbour) & positive)
    return PairList(
        pairs.centre[once], pairs.neighbour[once], pairs.offsets[once], pairs.distances[once]
    )
