"""EMT, pair lists, minimiser and outcome of a relaxation, each against something independent."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, fcc100, fcc111
from ase.constraints import FixAtoms
from ase.neighborlist import neighbor_list
from ase.optimize import BFGS

from data_cases import emt
from ocp_faenet.data.anomalies import Outcome, classify
from ocp_faenet.data.edges import stored_edges
from ocp_faenet.data.emt import EmtPotential
from ocp_faenet.data.pairs import periodic_pairs
from ocp_faenet.data.relax import relax

ELEMENTS = (1, 6, 7, 8, 13, 28, 29, 46, 47, 78, 79)


def crowd(seed: int) -> Atoms:
    """All EMT elements at random in a skewed cell, some atoms outside it, none too close."""
    rng = np.random.default_rng(seed)
    cell = np.array([[5.0, 0.3, 0.0], [1.1, 6.0, -0.4], [0.2, 0.5, 7.5]])
    points: list[np.ndarray] = []
    while len(points) < 9:
        trial = rng.uniform(size=3)
        gaps = (np.array([*points, trial + 9.5]) - trial + 0.5) % 1.0 - 0.5
        if np.linalg.norm(gaps @ cell, axis=1).min() > 1.6 or not points:
            points.append(trial)
    turns = rng.integers(-2, 3, size=(9, 3))
    atoms = Atoms(rng.choice(ELEMENTS, size=9), cell=cell, pbc=True)
    atoms.set_scaled_positions(np.array(points))
    atoms.positions += turns @ cell
    return atoms


@pytest.mark.parametrize("seed", range(6))
def test_energy_and_forces_are_ases(seed):
    atoms = crowd(seed)
    energy, forces = emt(atoms.numbers, atoms.positions, atoms.cell[:])
    ours = EmtPotential(atoms.numbers, atoms.cell[:])(atoms.positions)
    assert ours.energy == pytest.approx(energy, abs=1e-9)
    np.testing.assert_allclose(ours.forces, forces, atol=1e-9)


def test_lone_atoms_and_small_cells_are_ases():
    for atoms in (
        Atoms("HCu", [[1, 1, 1], [11, 11, 11]], cell=[20, 20, 20], pbc=True),
        Atoms("Pt", cell=[2.6, 2.7, 2.8], pbc=True),
    ):
        energy, forces = emt(atoms.numbers, atoms.positions, atoms.cell[:])
        ours = EmtPotential(atoms.numbers, atoms.cell[:])(atoms.positions)
        assert ours.energy == pytest.approx(energy, abs=1e-9)
        np.testing.assert_allclose(ours.forces, forces, atol=1e-9)


def test_pair_list_is_renewed_when_atoms_move():
    atoms = crowd(0)
    potential = EmtPotential(atoms.numbers, atoms.cell[:])
    rng = np.random.default_rng(1)
    for _ in range(6):
        energy, forces = emt(atoms.numbers, atoms.positions, atoms.cell[:])
        ours = potential(atoms.positions)
        assert ours.energy == pytest.approx(energy, abs=1e-9)
        np.testing.assert_allclose(ours.forces, forces, atol=1e-8)
        atoms.positions += rng.normal(0, 0.25, size=atoms.positions.shape)


def test_forces_are_the_slope_of_the_energy():
    atoms = crowd(2)
    potential = EmtPotential(atoms.numbers, atoms.cell[:])
    forces = potential(atoms.positions).forces
    for atom, axis in ((0, 0), (4, 1), (8, 2)):
        step = np.zeros_like(atoms.positions)
        step[atom, axis] = 1e-4
        up, down = potential(atoms.positions + step), potential(atoms.positions - step)
        assert (down.energy - up.energy) / 2e-4 == pytest.approx(forces[atom, axis], abs=1e-5)


def test_unknown_element_is_named():
    with pytest.raises(ValueError, match="no parameters for Fe"):
        EmtPotential(np.array([26, 29]), np.eye(3) * 8)


@pytest.mark.parametrize("cutoff", [2.0, 6.0])
def test_pairs_are_ases(cutoff):
    atoms = crowd(3)
    pairs = periodic_pairs(atoms.positions, atoms.cell[:], cutoff)
    i, j, d, shift = neighbor_list("ijdS", atoms, cutoff)
    ours = np.column_stack([pairs.centre, pairs.neighbour, pairs.offsets])
    theirs = np.column_stack([i, j, shift])
    assert sorted(map(tuple, ours)) == sorted(map(tuple, theirs))
    np.testing.assert_allclose(np.sort(pairs.distances), np.sort(d), atol=1e-12)


def test_stored_edges_are_the_fifty_nearest():
    slab = fcc111("Cu", (3, 3, 4), vacuum=7.0)
    add_adsorbate(slab, "O", 1.2, "fcc")
    slab.pbc = True
    edges = stored_edges(slab.positions, slab.cell[:])
    counts = np.bincount(edges.centre)
    assert counts.max() == 50
    full = periodic_pairs(slab.positions, slab.cell[:], 6.0)
    for atom in range(len(slab)):
        kept = edges.distances[edges.centre == atom]
        every = np.sort(full.distances[full.centre == atom])
        np.testing.assert_allclose(kept, every[: len(kept)])
        assert len(kept) == min(50, len(every))


def test_minimum_is_the_one_that_ase_finds():
    slab = fcc100("Pd", (2, 2, 3), vacuum=7.0)
    add_adsorbate(slab, "N", 1.3, "hollow")
    slab.pbc = True
    free = slab.get_tags() < 2
    potential = EmtPotential(slab.numbers, slab.cell[:])
    ours = relax(potential, slab.positions, free, fmax=0.005, max_steps=200)
    assert ours.converged
    assert np.linalg.norm(potential(ours.frames[-1]).forces[free], axis=1).max() < 0.005
    assert np.array_equal(ours.frames[-1][~free], slab.positions[~free])
    from ase.calculators.emt import EMT

    slab.set_constraint(FixAtoms(mask=~free))
    slab.calc = EMT()
    BFGS(slab, logfile=None).run(fmax=0.005)
    found = potential(ours.frames[-1]).energy
    assert found == pytest.approx(slab.get_potential_energy(), abs=1e-3)


def test_relaxation_gives_up_as_told():
    slab = fcc111("Cu", (2, 2, 3), vacuum=7.0)
    slab.positions[-1, 2] += 0.4
    slab.pbc = True
    potential = EmtPotential(slab.numbers, slab.cell[:])
    everything = np.ones(len(slab), dtype=bool)
    short = relax(potential, slab.positions, everything, fmax=0.001, max_steps=2)
    assert not short.converged
    assert short.steps == 2
    stopped = relax(
        potential, slab.positions, everything, fmax=0.001, max_steps=50, hopeless=lambda now: True
    )
    assert not stopped.converged
    assert stopped.steps == 0


OUTCOMES = {
    Outcome.VALID: ((0.0, 0.0, 0.0), (0.3, 0.0, 1.1)),
    Outcome.DISSOCIATED: ((0.0, 0.0, 0.0), (2.6, 0.0, 0.0)),
    Outcome.DESORBED: ((0.0, 0.0, 2.5), (0.0, 0.0, 3.6)),
    Outcome.INTERCALATED: ((0.0, 0.0, -3.2), (0.0, 0.0, -2.1)),
    Outcome.MIGRATED: ((1.4, 0.0, 0.0), (1.4, 0.0, 1.1)),
}


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_outcomes(outcome):
    slab = fcc111("Cu", (3, 3, 4), vacuum=8.0)
    tags = np.concatenate([(slab.get_tags() == 1).astype(int), [2, 2]])
    numbers = np.concatenate([slab.numbers, [6, 8]])
    site = slab.positions[slab.get_tags() == 1][:3].mean(axis=0)
    site[2] += 1.4
    start = np.concatenate([slab.positions, site + np.array(OUTCOMES[Outcome.VALID])])
    final = np.concatenate([slab.positions, site + np.array(OUTCOMES[outcome])])
    assert classify(numbers, tags, slab.cell[:], start, final, slab.positions) is outcome


def test_changed_surface_is_noticed():
    slab = fcc111("Cu", (2, 2, 3), vacuum=8.0)
    tags = np.concatenate([(slab.get_tags() == 1).astype(int), [2]])
    numbers = np.concatenate([slab.numbers, [8]])
    final = np.concatenate([slab.positions, slab.positions[-1:] + np.array([0.0, 0.0, 1.8])])
    final[8] += [0.0, 1.5, 0.0]
    outcome = classify(numbers, tags, slab.cell[:], final, final, slab.positions)
    assert outcome is Outcome.SURFACE_CHANGED
