"""Point charges on displaced lattices: energies whose 1/r part no cutoff reaches.

Cations and diatomic anions sit on a displaced 2 x 2 x 2 lattice, in any order, farther apart than
`REACH`; the energy is the exact Ewald sum over all charges and their images. A model that sees no
farther than that sees the bonds of the anions and nothing of where the ions are to each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ocp_faenet.data.edges import Arrays, pack_edges
from ocp_faenet.data.generate import MANIFEST, OutputError, write_folder
from ocp_faenet.data.pairs import Floats, periodic_pairs
from ocp_faenet.data.pool import Progress, replace_file

FORMAT = 2  # raised whenever a seed comes to mean other data
#: Structures of each split.
SIZES = {"train": 800, "val_id": 200}
#: Å: no two atoms of different ions are closer than this.
REACH = 3.6
#: Å between neighbouring sites, along each axis of a structure.
SPACINGS = (5.6, 6.6)
#: Å: how far a site is moved along each axis at most.
DISPLACEMENT = 0.4
#: Å: bond of an anion.
BONDS = (0.9, 1.1)
#: Element and charge (e) of the cation and of the anion's two atoms.
CATION, ANION = (11, 1.0), ((8, -1.4), (1, 0.4))

_CORNERS = np.stack(np.meshgrid(*[np.arange(2.0)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)


def ions(rng: np.random.Generator) -> tuple[Floats, Floats, list[int], list[float]]:
    """One structure: positions ``(12, 3)`` and cell ``(3, 3)``, Å, atomic numbers, charges.

    Bonds that point at each other may bring two ions within `REACH`, in three of a thousand draws:
    these are drawn again.
    """
    while True:
        positions, cell, numbers, charges = _drawn(rng)
        if len(periodic_pairs(positions, cell, REACH).centre) == 2 * numbers.count(ANION[0][0]):
            return positions, cell, numbers, charges


def _drawn(rng: np.random.Generator) -> tuple[Floats, Floats, list[int], list[float]]:
    spacings = rng.uniform(*SPACINGS, size=3)
    sites = _CORNERS * spacings + rng.uniform(-DISPLACEMENT, DISPLACEMENT, size=(8, 3))
    positions: list[Floats] = []
    numbers: list[int] = []
    charges: list[float] = []
    for place, site in enumerate(rng.permutation(8)):
        kinds = [CATION] if place < 4 else list(ANION)
        axis = rng.normal(size=3)
        bond = rng.uniform(*BONDS) * axis / np.linalg.norm(axis)
        for step, (number, charge) in enumerate(kinds):
            positions.append(sites[site] + step * bond)
            numbers.append(number)
            charges.append(charge)
    # Labels belong to the float32 numbers that are stored.
    rounded = np.array(positions, dtype=np.float32).astype(np.float64)
    cell = np.diag(2 * spacings).astype(np.float32).astype(np.float64)
    return rounded, cell, numbers, charges


def coulomb_energy(
    positions: Floats, cell: Floats, numbers: list[int], charges: list[float]
) -> float:
    """Ewald energy of periodic point charges, eV (pymatgen's sum, converged by its defaults)."""
    from pymatgen.analysis.ewald import EwaldSummation
    from pymatgen.core.structure import Structure

    species: list[Any] = list(numbers)
    structure = Structure(cell, species, positions, coords_are_cartesian=True)
    structure.add_oxidation_state_by_site(charges)
    return float(EwaldSummation(structure).total_energy)


def record(rng: np.random.Generator, sid: int) -> Arrays:
    """A structure and its energy in the IS2RE schema; nothing relaxes."""
    positions, cell, numbers, charges = ions(rng)
    energy = coulomb_energy(positions, cell, numbers, charges)
    none = np.zeros(len(numbers))
    return {
        "pos": positions,
        "pos_relaxed": positions,
        "cell": cell,
        "atomic_numbers": np.array(numbers),
        "tags": none,
        "fixed": none,
        "y_init": energy,
        "y_relaxed": energy,
        "sid": sid,
        **pack_edges(positions, cell),
    }


def generate_charges(
    out: Path, seed: int = 0, *, progress: Progress = lambda done: None
) -> dict[str, Any]:
    """Write ``is2re/{train,val_id}`` in ``out``; what is there already is left as it is.

    Args:
        out: folder of the data set.
        seed: same seed, same bytes.
        progress: told the number of new structures as they come.

    Returns:
        The manifest: ``settings`` and ``counts``.

    Raises:
        OutputError: ``out`` holds another data set.
    """
    settings = {"format": FORMAT, "set": "charges", "seed": seed, "sizes": SIZES}
    path = out / MANIFEST
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        if found["settings"] != settings:
            raise OutputError(f"{out} holds another data set (see {path}); choose another folder")
        return found
    counts = {}
    for stream, (split, size) in enumerate(SIZES.items()):

        def structures(stream: int = stream, size: int = size) -> Iterator[Arrays]:
            for index in range(size):
                rng = np.random.default_rng([seed, stream, index])
                yield record(rng, 10_000 * stream + index)
                progress(1)

        counts[f"is2re/{split}"] = write_folder(out / "is2re" / split, structures())
    manifest = {"settings": settings, "counts": counts}
    replace_file(path, (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode())
    return manifest
