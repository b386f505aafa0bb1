"""Energies that adsorption energies are measured from.

As in OC20 (Chanussot et al., ACS Catal. 11, 6059 (2021)), the gas reference is a sum over the
adsorbate's atoms, each fixed by a small molecule: hydrogen by H2 / 2, oxygen by H2O - H2, carbon by
CO - O, nitrogen by N2 / 2; here the molecules are relaxed by EMT. It is thus defined for adsorbates
that no training set holds, and energies of different adsorbates can be compared.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ocp_faenet.data.emt import EmtPotential
from ocp_faenet.data.pairs import Floats
from ocp_faenet.data.relax import relax
from ocp_faenet.data.systems import Adsorbate

_BOX = 24.0  # Å
_FMAX = 0.005  # eV/Å
_MOLECULES = {
    "H2": ((1, 1), ((0.0, 0.0, 0.0), (0.0, 0.0, 0.76))),
    "H2O": ((8, 1, 1), ((0.0, 0.0, 0.0), (0.86, 0.0, 0.68), (-0.86, 0.0, 0.68))),
    "CO": ((6, 8), ((0.0, 0.0, 0.0), (0.0, 0.0, 1.06))),
    "N2": ((7, 7), ((0.0, 0.0, 0.0), (0.0, 0.0, 1.0))),
}


@lru_cache(maxsize=64)
def gas_molecule(adsorbate: Adsorbate) -> tuple[float, Floats]:
    """Relax a lone molecule: its energy in eV, its positions (n, 3) with the first atom at 0.

    Raises:
        RuntimeError: when the relaxation does not converge (a fault of the catalogue).
    """
    potential = EmtPotential(np.array(adsorbate.numbers), np.eye(3) * _BOX)
    start = adsorbate.positions + 0.5 * _BOX
    free = np.ones(len(start), dtype=np.bool_)
    result = relax(potential, start, free, fmax=_FMAX, max_steps=500)
    if not result.converged:
        raise RuntimeError(f"gas-phase {adsorbate.name} does not relax; mend its start geometry")
    final = result.frames[-1]
    return potential(final).energy, final - final[0]


@lru_cache(maxsize=1)
def atom_references() -> dict[int, float]:
    """Reference energy in eV of one atom of H, C, N and O, by atomic number."""
    energy = {
        name: gas_molecule(Adsorbate(name, numbers, offsets))[0]
        for name, (numbers, offsets) in _MOLECULES.items()
    }
    hydrogen = 0.5 * energy["H2"]
    oxygen = energy["H2O"] - energy["H2"]
    return {1: hydrogen, 6: energy["CO"] - oxygen, 7: 0.5 * energy["N2"], 8: oxygen}


def gas_reference(adsorbate: Adsorbate) -> float:
    """Gas reference energy of an adsorbate in eV."""
    table = atom_references()
    return sum(table[z] for z in adsorbate.numbers)
