"""Relaxations that are no adsorption, as AdsorbML's scripts find them, with ASE's neighbour lists.

Lan et al., npj Comput. Mater. 9, 172 (2023), and the detector that `process_mlrs.py` calls, both
multipliers at 1.5. Two atoms are connected when any two of their images are closer than the sum of
their covalent radii, times a multiplier, plus 0.6 Å: ASE's list, which the detector takes at its
defaults, adds a skin of 0.3 Å to each radius. (`anomalies.classify` is what the embedded data were
made with; it looks at unwrapped positions.)
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np
from ase import Atoms
from ase.neighborlist import natural_cutoffs, neighbor_list
from numpy.typing import NDArray

#: Of the covalent radii, for a surface that changes and for an adsorbate that leaves.
MULTIPLIER = 1.5
_SKIN = 0.3  # Å, of each radius


class Anomaly(str, Enum):
    """Why a relaxed structure does not count."""

    DISSOCIATED = "dissociated"
    DESORBED = "desorbed"
    INTERCALATED = "intercalated"
    SURFACE_CHANGED = "surface changed"


def connections(atoms: Atoms, multiplier: float = 1.0) -> NDArray[np.bool_]:
    """(N, N) whether two atoms are connected."""
    covalent: Any = natural_cutoffs  # ASE has no types
    pairs: Any = neighbor_list
    radii = [radius + _SKIN for radius in covalent(atoms, mult=multiplier)]
    first, second = pairs("ij", atoms, radii, self_interaction=False)
    found = np.zeros((len(atoms), len(atoms)), dtype=bool)
    found[first, second] = True
    return found


def anomalies(
    initial: Atoms, final: Atoms, tags: NDArray[Any], clean: Atoms | None = None
) -> frozenset[Anomaly]:
    """Everything that is wrong with a relaxation; empty for an adsorption.

    - dissociated: the adsorbate's atoms are connected otherwise than initially;
    - desorbed: none of them is connected to the slab, at 1.5 times the radii;
    - intercalated: one is connected to an atom below the surface (tag 0);
    - surface changed: the slab has a connection that the clean one has not even at 1.5 times the
      radii, or the other way round.

    Args:
        initial, final: the structure before and after, periodic as it is.
        tags: (N,) 0 below, 1 surface, 2 adsorbate.
        clean: the relaxed slab without adsorbate, its atoms in the same order; the slab of
            ``initial`` if not given.

    Raises:
        ValueError: no adsorbate or no slab, or numbers of atoms that contradict each other.
    """
    adsorbate, slab = np.flatnonzero(tags == 2), np.flatnonzero(tags != 2)
    if not len(adsorbate) or not len(slab):
        raise ValueError("tags: atoms of the adsorbate (2) and of the slab (0, 1) are needed")
    clean = initial[slab] if clean is None else clean
    if not len(initial) == len(final) == len(tags) or len(clean) != len(slab):
        raise ValueError(
            f"{len(initial)} atoms before, {len(final)} after, {len(tags)} tags; "
            f"{len(slab)} of the slab, {len(clean)} clean"
        )
    found = set()
    if (connections(initial[adsorbate]) != connections(final[adsorbate])).any():
        found.add(Anomaly.DISSOCIATED)
    if not connections(final, MULTIPLIER)[np.ix_(adsorbate, slab)].any():
        found.add(Anomaly.DESORBED)
    if connections(final)[np.ix_(adsorbate, np.flatnonzero(tags == 0))].any():
        found.add(Anomaly.INTERCALATED)
    now = final[slab]
    new = connections(now) & ~connections(clean, MULTIPLIER)
    lost = connections(clean) & ~connections(now, MULTIPLIER)
    if new.any() or lost.any():
        found.add(Anomaly.SURFACE_CHANGED)
    return frozenset(found)
