"""Slabs from their specifications, and places on them for an adsorbate."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import ase.build
import numpy as np
from ase.data import atomic_numbers, reference_states

from ocp_faenet.data.pairs import Floats, periodic_pairs
from ocp_faenet.data.systems import Catalyst, Slab, SurfaceSpec, Termination

_BUILDERS: dict[tuple[int, int, int], Any] = {
    (1, 1, 1): ase.build.fcc111,
    (1, 0, 0): ase.build.fcc100,
    (1, 1, 0): ase.build.fcc110,
    (2, 1, 1): ase.build.fcc211,
}
_VACUUM = 7.0  # Å on either side
_BULK_COORDINATION = 12
_CONTACT = 2.0  # Å between an adsorbate atom and the metal where it is put down


def _lattice_constant(metal: str) -> float:
    """Experimental lattice constant of an fcc metal in Å, as ASE's builders take it."""
    state: Any = reference_states[atomic_numbers[metal]]
    return float(state["a"])


@lru_cache(maxsize=512)
def bare_slab(host: str, termination: Termination) -> Slab:
    """The unrelaxed slab of one metal; its surface atoms are the undercoordinated upper ones."""
    atoms = _BUILDERS[termination.miller](host, termination.size, vacuum=_VACUUM)
    cell = np.asarray(atoms.cell[:]).astype(np.float32).astype(np.float64)
    positions = np.array(atoms.positions)
    nearest = _lattice_constant(host) / np.sqrt(2.0)
    pairs = periodic_pairs(positions, cell, 1.2 * nearest)
    coordination = np.bincount(pairs.centre, minlength=len(positions))
    upper = positions[:, 2] > 0.5 * (positions[:, 2].min() + positions[:, 2].max()) + 0.1
    tags = ((coordination < _BULK_COORDINATION) & upper).astype(np.int64)
    numbers = np.full(len(positions), atomic_numbers[host], dtype=np.int64)
    return Slab(numbers, positions, cell, tags, nearest)


def build_slab(spec: SurfaceSpec) -> Slab:
    """The slab of a specification, guests in place, unrelaxed."""
    bare = bare_slab(spec.catalyst.host, spec.termination)
    numbers = bare.numbers.copy()
    if spec.catalyst.guest is not None:
        surface = np.flatnonzero(bare.tags == 1)
        numbers[surface[list(spec.guests)]] = atomic_numbers[spec.catalyst.guest]
    return Slab(numbers, bare.positions, bare.cell, bare.tags, bare.nearest)


def draw_surface(
    rng: np.random.Generator, catalyst: Catalyst, termination: Termination
) -> SurfaceSpec:
    """A surface of `catalyst`; for alloys a quarter to a half of the surface atoms are guests."""
    if catalyst.guest is None:
        return SurfaceSpec(catalyst, termination, ())
    n_surface = int((bare_slab(catalyst.host, termination).tags == 1).sum())
    n_guests = max(1, round(n_surface * float(rng.choice([0.25, 0.5]))))
    guests = rng.choice(n_surface, size=n_guests, replace=False)
    return SurfaceSpec(catalyst, termination, tuple(sorted(int(g) for g in guests)))


def heuristic_sites(slab: Slab) -> list[Floats]:
    """On-top, bridge and hollow sites: three arrays (n, 2) of x, y in Å.

    Bridges are midpoints of neighbouring surface atoms; hollows are centroids of three mutual
    neighbours and midpoints of second neighbours (the fourfold sites of the 100 facet).
    """
    surface = slab.positions[slab.tags == 1]
    pairs = periodic_pairs(surface, slab.cell, 1.6 * slab.nearest)
    ends = surface[pairs.neighbour] + pairs.offsets @ slab.cell
    middles = 0.5 * (surface[pairs.centre] + ends)[:, :2]
    near = pairs.distances < 1.2 * slab.nearest
    hollows = [middles[~near]]
    for atom in range(len(surface)):
        around = ends[near & (pairs.centre == atom)]
        gaps = np.linalg.norm(around[:, None] - around[None], axis=-1)
        first, second = np.nonzero(np.triu(gaps < 1.2 * slab.nearest, k=1))
        hollows.append((surface[atom] + around[first] + around[second])[:, :2] / 3.0)
    return [surface[:, :2], middles[near], np.concatenate(hollows)]


def contact_height(slab: Slab, surface: Floats, place: Floats) -> Floats:
    """Height at which a ball of contact radius rests on the surface atoms.

    Args:
        slab: gives the cell.
        surface: (S, 3) positions of the surface atoms in Å.
        place: (n, 2) x, y in Å.

    Returns:
        (n,) z in Å; where nothing is below the ball, the height of the lowest surface atom.
    """
    plane = slab.cell[:2, :2]
    fractional = (surface[None, :, :2] - place[:, None, :]) @ np.linalg.inv(plane)
    shortest = (fractional - np.rint(fractional)) @ plane
    room = _CONTACT**2 - np.square(shortest).sum(axis=-1)  # (n, S)
    heights = surface[None, :, 2] + np.sqrt(np.maximum(room, 0.0))
    lowest = float(surface[:, 2].min())
    floor: Floats = np.where(room > 0.0, heights, lowest).max(axis=1)
    return floor


def place_adsorbate(slab: Slab, relaxed: Floats, geometry: Floats, site: Floats) -> Floats:
    """Put a molecule down so that its first atom is above `site` and none is too close.

    Args:
        slab: the slab.
        relaxed: (N, 3) its positions now, in Å.
        geometry: (n, 3) the turned molecule, its first atom at the origin.
        site: (2,) x, y in Å.

    Returns:
        (n, 3) positions in Å.
    """
    placed = geometry.copy()
    placed[:, :2] += site
    floor = contact_height(slab, relaxed[slab.tags == 1], placed[:, :2])
    placed[:, 2] += float((floor - placed[:, 2]).max())
    return placed
