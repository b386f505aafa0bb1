"""EMT as the oracle of the embedded dense set: energies, relaxations, and structures for DFT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms

from ocp_faenet.data.adsorbml_anomalies import anomalies
from ocp_faenet.data.emt import EmtPotential
from ocp_faenet.data.pairs import Floats
from ocp_faenet.data.relax import relax
from ocp_faenet.data.schema import Fields, array_of
from ocp_faenet.data.simulate import FMAX, MAX_STEPS


@dataclass(frozen=True)
class Relaxed:
    """A relaxation by the oracle.

    Attributes:
        positions: (N, 3) of its last structure, Å.
        energy: adsorption energy of that in eV.
        calls: evaluations of energy and forces, the first structure's included.
        converged: whether no free atom feels more than 0.03 eV/Å there.
    """

    positions: Floats
    energy: float
    calls: int
    converged: bool


@dataclass(frozen=True)
class Followed:
    """A structure that the oracle relaxed and judged.

    Attributes:
        calls: evaluations of energy and forces, the first structure's included.
        energy: adsorption energy in eV at the end; ``None`` where that counts for nothing.
        reasons: why it does: an anomaly of AdsorbML's, or a relaxation without an end.
    """

    calls: int
    energy: float | None
    reasons: tuple[str, ...] = ()


def potential_of(record: Fields) -> EmtPotential:
    """EMT for the atoms and the cell of a record.

    Raises:
        ValueError: elements without EMT parameters: a record of other data.
    """
    cell = array_of(record["cell"]).reshape(3, 3).astype(np.float64)
    return EmtPotential(array_of(record["atomic_numbers"]).astype(np.int64), cell)


def adsorption_energy(record: Fields, positions: Floats) -> float:
    """Adsorption energy in eV with the atoms of ``record`` at ``positions`` (N, 3), Å.

    Raises:
        ValueError: a record without ``ref_energy``, or of elements that EMT does not know.
    """
    return potential_of(record)(np.asarray(positions, np.float64)).energy - reference_of(record)


def relax_from(record: Fields, positions: Floats) -> Relaxed:
    """The oracle's relaxation from ``positions`` (N, 3), Å, as the embedded data were made.

    Raises:
        ValueError: see `adsorption_energy`.
    """
    potential = potential_of(record)
    start = np.asarray(positions, dtype=np.float64)
    free = array_of(record["fixed"]) == 0
    done = relax(potential, start, free, fmax=FMAX, max_steps=MAX_STEPS)
    energy = potential(done.frames[-1]).energy - reference_of(record)
    return Relaxed(done.frames[-1], energy, done.steps + 1, done.converged)


def follow(record: Fields, positions: Floats) -> Followed:
    """Relax from ``positions`` (N, 3), Å, and judge the end against the record's own start.

    Raises:
        ValueError: see `adsorption_energy`.
    """
    done = relax_from(record, positions)
    if not done.converged:
        return Followed(done.calls, None, ("not converged",))
    reasons = anomalies_of(record, done.positions)
    return Followed(done.calls, None if reasons else done.energy, reasons)


def anomalies_of(record: Fields, final: Floats) -> tuple[str, ...]:
    """What is wrong with the adsorption at ``final`` (N, 3), Å, that began as the record has it."""
    start, tags = atoms_of(record, array_of(record["pos"])), array_of(record["tags"])
    found = anomalies(start, atoms_of(record, final), tags)
    return tuple(sorted(reason.value for reason in found))


def reference_of(record: Fields) -> float:
    """Energy of clean slab and gas reference in eV.

    Raises:
        ValueError: the record has none.
    """
    if "ref_energy" not in record:
        raise ValueError(
            f"sid {record.get('sid')}: no ref_energy; take the LMDBs of: ocp-faenet dense split"
        )
    return float(record["ref_energy"])


def atoms_of(record: Fields, positions: Floats, **info: object) -> Atoms:
    """The structure with its tags, fixed atoms and ``info``, periodic along all three vectors."""
    fixed = np.flatnonzero(array_of(record["fixed"]) == 1)
    make: Any = Atoms  # ASE has no types
    constraint: Any = FixAtoms
    atoms: Atoms = make(
        numbers=array_of(record["atomic_numbers"]).astype(int),
        positions=np.asarray(positions, dtype=np.float64),
        cell=array_of(record["cell"]).reshape(3, 3).astype(np.float64),
        tags=array_of(record["tags"]).astype(int),
        pbc=True,
        constraint=constraint(indices=fixed) if len(fixed) else None,
        info=dict(info),
    )
    return atoms
