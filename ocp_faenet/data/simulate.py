"""One adsorbate on one slab: draw, place, relax, label.

Everything here is a pure function of its arguments and its random generator, so that a data set
does not depend on who computed which part of it. Labels are taken at the stored positions, rounded
to float32 first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ocp_faenet.data.anomalies import Outcome, classify, is_whole
from ocp_faenet.data.emt import EmtPotential
from ocp_faenet.data.pairs import Floats, Ints
from ocp_faenet.data.reference import gas_molecule, gas_reference
from ocp_faenet.data.relax import relax
from ocp_faenet.data.slabs import build_slab, draw_surface, heuristic_sites, place_adsorbate
from ocp_faenet.data.systems import (
    TERMINATIONS,
    Adsorbate,
    Slab,
    Split,
    SurfaceSpec,
    adsorbates_of,
    catalysts_of,
)

FMAX = 0.03  # eV/Å
MAX_STEPS = 200
_APART = 1.0  # Å beyond the covalent radii: such a molecule is not followed any further
_MAX_FORCE = 10.0  # eV/Å; a start with more than this is not relaxed
_JITTER = 0.1  # Å, spread of the adsorbate around a site


@dataclass(frozen=True)
class System:
    """An adsorbate and a surface."""

    adsorbate: Adsorbate
    surface: SurfaceSpec


@dataclass(frozen=True)
class Relaxed:
    """A relaxation of one placement.

    Energies are adsorption energies in eV; positions (N, 3) in Å are float32-exact.
    """

    system: System
    outcome: Outcome
    steps: int
    site: Floats  # (3,) where the first atom was put down, in Å
    numbers: Ints
    tags: Ints
    cell: Floats
    frames: Floats  # (S, N, 3) every step, the first and last float32-exact
    reference: float  # relaxed clean slab + gas reference, in eV
    y_init: float
    y_relaxed: float
    force_init: Floats


def round32(positions: Floats) -> Floats:
    """The nearest float32 values, as float64."""
    return positions.astype(np.float32).astype(np.float64)


@lru_cache(maxsize=256)
def _relaxed_slab(spec: SurfaceSpec) -> tuple[Slab, Floats, float]:
    """Slab, its relaxed positions (float32-exact) and its energy in eV."""
    slab = build_slab(spec)
    potential = EmtPotential(slab.numbers, slab.cell)
    result = relax(
        potential, round32(slab.positions), slab.tags == 1, fmax=FMAX / 3, max_steps=MAX_STEPS
    )
    positions = round32(result.frames[-1])
    return slab, positions, potential(positions).energy


def draw_adsorbate(rng: np.random.Generator, split: Split) -> Adsorbate:
    """One of the adsorbates of a split, each as likely."""
    adsorbates = adsorbates_of(split)
    return adsorbates[int(rng.integers(len(adsorbates)))]


def draw_system(rng: np.random.Generator, split: Split, adsorbate: Adsorbate) -> System:
    """An adsorbate on a random surface of a split; small cells are more likely."""
    catalysts = catalysts_of(split)
    weights = np.array([w for _, w in TERMINATIONS])
    termination = TERMINATIONS[int(rng.choice(len(weights), p=weights / weights.sum()))][0]
    catalyst = catalysts[int(rng.integers(len(catalysts)))]
    return System(adsorbate, draw_surface(rng, catalyst, termination))


def heuristic_placement(rng: np.random.Generator, system: System) -> Floats:
    """First atom down, near an on-top, bridge or hollow site: (n, 3) in Å."""
    slab, relaxed, _ = _relaxed_slab(system.surface)
    kinds = heuristic_sites(slab)
    sites = kinds[int(rng.integers(len(kinds)))]
    site = sites[int(rng.integers(len(sites)))] + rng.normal(0.0, _JITTER, size=2)
    spin, azimuth = rng.uniform(0.0, 360.0, size=2)
    tilt = rng.uniform(*system.adsorbate.tilts)
    turn = Rotation.from_euler("zxz", [spin, tilt, azimuth], degrees=True)
    geometry = turn.apply(gas_molecule(system.adsorbate)[1])
    return place_adsorbate(slab, relaxed, geometry, site)


def random_placement(rng: np.random.Generator, system: System) -> Floats:
    """Anywhere on the surface, turned at random: (n, 3) in Å."""
    slab, relaxed, _ = _relaxed_slab(system.surface)
    site = rng.uniform(size=2) @ slab.cell[:2, :2]
    quaternion = rng.normal(size=4)
    geometry = Rotation.from_quat(quaternion).apply(gas_molecule(system.adsorbate)[1])
    return place_adsorbate(slab, relaxed, geometry, site)


def relax_placement(system: System, placed: Floats) -> Relaxed:
    """Relax an adsorbate from `placed` (n, 3) on the relaxed slab, subsurface atoms fixed."""
    slab, clean, slab_energy = _relaxed_slab(system.surface)
    numbers = np.concatenate([slab.numbers, np.array(system.adsorbate.numbers)])
    tags = np.concatenate([slab.tags, np.full(len(placed), 2)])
    potential = EmtPotential(numbers, slab.cell)
    start = round32(np.concatenate([clean, placed]))
    first = potential(start)
    crowded = bool(np.abs(first.forces).max() > _MAX_FORCE)
    result = relax(
        potential,
        start,
        tags > 0,
        fmax=FMAX,
        max_steps=0 if crowded else MAX_STEPS,
        hopeless=lambda now: not is_whole(numbers[tags == 2], now[tags == 2], _APART),
    )
    frames = result.frames
    frames[-1] = round32(frames[-1])
    reference = slab_energy + gas_reference(system.adsorbate)
    outcome = classify(numbers, tags, slab.cell, start, frames[-1], clean)
    if crowded:
        outcome = Outcome.CROWDED
    elif not result.converged and outcome is not Outcome.DISSOCIATED:
        outcome = Outcome.UNCONVERGED
    return Relaxed(
        system=system,
        outcome=outcome,
        steps=result.steps,
        site=start[len(clean)],
        numbers=numbers,
        tags=tags,
        cell=slab.cell,
        frames=frames,
        reference=reference,
        y_init=first.energy - reference,
        y_relaxed=potential(frames[-1]).energy - reference,
        force_init=first.forces,
    )


def rattle(rng: np.random.Generator, positions: Floats, free: NDArray[np.bool_]) -> Floats:
    """Displace free atoms by 0.02 to 0.12 Å (standard deviation): (N, 3), float32-exact."""
    moved = positions.copy()
    moved[free] += rng.normal(0.0, rng.uniform(0.02, 0.12), size=(int(free.sum()), 3))
    return round32(moved)
