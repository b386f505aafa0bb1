"""Which relaxations are no adsorption: the criteria of AdsorbML, on one unwrapped structure.

After Lan et al., npj Comput. Mater. 9, 172 (2023): dissociated, desorbed, intercalated, surface
changed. Bonds are judged by ASE's covalent radii; two atoms of a molecule are bound within the sum
of radii plus 0.6 Å, a molecule and a surface within 1.5 times the sum.
"""

from __future__ import annotations

from enum import Enum

import numpy as np
from ase.data import covalent_radii

from ocp_faenet.data.pairs import Floats, Ints

_BOND_SLACK = 0.6  # Å
_DESORPTION_FACTOR = 1.5
_MIGRATION = 1.0  # Å along the surface, of the binding atom away from its start
_SURFACE_SHIFT = 1.3  # Å, of any surface atom away from the relaxed clean slab


class Outcome(str, Enum):
    """How a relaxation ended.

    IS2RE and S2EF take `VALID` ones alone; the dense set takes `MIGRATED` ones too, as OC20-Dense
    does: there an adsorbate may end on another site than the one it was put on.
    """

    VALID = "valid"
    MIGRATED = "migrated"
    CROWDED = "crowded"
    UNCONVERGED = "unconverged"
    DISSOCIATED = "dissociated"
    DESORBED = "desorbed"
    INTERCALATED = "intercalated"
    SURFACE_CHANGED = "surface_changed"


def is_whole(numbers: Ints, positions: Floats, slack: float = _BOND_SLACK) -> bool:
    """Whether the atoms of a molecule hang together.

    Args:
        numbers: (n,) atomic numbers.
        positions: (n, 3) in Å, unwrapped.
        slack: what a bond may be longer than the sum of covalent radii, in Å.
    """
    radii = covalent_radii[numbers]
    bound = np.linalg.norm(positions[:, None] - positions[None], axis=-1) < (
        radii[:, None] + radii[None] + slack
    )
    reached = np.zeros(len(numbers), dtype=bool)
    reached[0] = True
    for _ in range(len(numbers)):
        reached = bound[reached].any(axis=0)
    return bool(reached.all())


def _to_slab(molecule: Floats, slab: Floats, cell: Floats) -> Floats:
    """Distances (n, N) in Å between adsorbate and slab atoms, nearest image in the plane."""
    delta = slab[None] - molecule[:, None]
    plane = cell[:2, :2]
    turns = np.rint(delta[..., :2] @ np.linalg.inv(plane))
    delta[..., :2] -= turns @ plane
    return np.asarray(np.linalg.norm(delta, axis=-1))


def classify(
    numbers: Ints, tags: Ints, cell: Floats, start: Floats, final: Floats, clean: Floats
) -> Outcome:
    """Judge a converged relaxation.

    Args:
        numbers: (N,) atomic numbers, slab first.
        tags: (N,) 0 below, 1 surface, 2 adsorbate.
        cell: (3, 3) in Å, the third vector normal to the surface.
        start, final: (N, 3) initial and relaxed positions in Å, unwrapped.
        clean: (M, 3) positions of the relaxed clean slab in Å.
    """
    ads, slab = tags == 2, tags != 2
    if not is_whole(numbers[ads], final[ads]):
        return Outcome.DISSOCIATED
    distances = _to_slab(final[ads], final[slab], cell)
    sums = covalent_radii[numbers[ads]][:, None] + covalent_radii[numbers[slab]][None]
    if not (distances < _DESORPTION_FACTOR * sums).any():
        return Outcome.DESORBED
    is_surface = tags[slab] == 1
    below = distances[:, ~is_surface].min(axis=1, initial=np.inf)
    if (below < distances[:, is_surface].min(axis=1) + 0.1).any():
        return Outcome.INTERCALATED
    shift = np.linalg.norm(final[slab] - clean, axis=1)
    if shift.max() > _SURFACE_SHIFT:
        return Outcome.SURFACE_CHANGED
    slide = float(np.linalg.norm((final[ads] - start[ads])[0, :2]))
    return Outcome.MIGRATED if slide > _MIGRATION else Outcome.VALID
