"""The catalogue: adsorbates, catalysts, facets, and what each split may draw from.

Adsorbates are those that EMT's toy parameters for H, C, N and O keep bound and mostly whole.
Catalysts are fcc metals and surface alloys: a host with some of its surface atoms replaced by a
guest. `val_id` draws from the lists of `train`; the out-of-domain splits draw adsorbates, catalysts
or both from lists that `train` never sees. Every element of them occurs in `train`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from ocp_faenet.data.pairs import Floats, Ints


class Split(str, Enum):
    """Splits, named as OC20 names its folders."""

    TRAIN = "train"
    VAL_ID = "val_id"
    VAL_OOD_ADS = "val_ood_ads"
    VAL_OOD_CAT = "val_ood_cat"
    VAL_OOD_BOTH = "val_ood_both"

    @property
    def new_adsorbates(self) -> bool:
        """Whether its adsorbates are held out from training."""
        return self in (Split.VAL_OOD_ADS, Split.VAL_OOD_BOTH)

    @property
    def new_catalysts(self) -> bool:
        """Whether its catalysts are held out from training."""
        return self in (Split.VAL_OOD_CAT, Split.VAL_OOD_BOTH)


@dataclass(frozen=True)
class Adsorbate:
    """A molecule: its first atom binds, the others start above it.

    `offsets` (n, 3) in Å are a start; the gas-phase geometry is relaxed from them. `tilts` are the
    least and largest tilt in degrees of a heuristic placement: molecules of heavy atoms lie down on
    EMT metals, hydrides stay whole when upright.
    """

    name: str
    numbers: tuple[int, ...]
    offsets: tuple[tuple[float, float, float], ...]
    tilts: tuple[float, float] = (0.0, 30.0)

    @property
    def positions(self) -> Floats:
        """Start geometry (n, 3) in Å."""
        return np.array(self.offsets, dtype=np.float64)


@dataclass(frozen=True)
class Catalyst:
    """A metal, or a host whose surface holds some atoms of a guest."""

    host: str
    guest: str | None = None

    @property
    def name(self) -> str:
        """Formula-like name, such as `Cu` or `CuPd`."""
        return self.host + (self.guest or "")

    @property
    def bulk_id(self) -> str:
        """What stands where OC20 has a Materials Project identifier."""
        return f"emt-{self.name}"


@dataclass(frozen=True)
class Termination:
    """A facet of fcc with the size of its cell: ASE's `size`."""

    miller: tuple[int, int, int]
    size: tuple[int, int, int]


_Z = {"H": 1, "C": 6, "N": 7, "O": 8}


def _rod(name: str, bond: float) -> Adsorbate:
    """Atoms of single-letter symbols in a row, the first one lowest."""
    numbers = tuple(_Z[s] for s in name)
    tilts = (0.0, 10.0) if "H" in name else (25.0, 45.0)
    offsets = tuple((0.0, 0.0, bond * k) for k in range(len(numbers)))
    return Adsorbate(name, numbers, offsets, tilts)


_BENT = ((0.0, 0.0, 0.0), (0.86, 0.0, 0.72), (-0.86, 0.0, 0.72))

TRAIN_ADSORBATES = (
    _rod("H", 0.0),
    _rod("C", 0.0),
    _rod("N", 0.0),
    _rod("O", 0.0),
    _rod("OH", 1.03),
    _rod("CH", 1.07),
    _rod("CO", 1.06),
    _rod("NO", 1.06),
    _rod("CN", 0.98),
    _rod("OO", 1.10),
    Adsorbate("CH2", (6, 1, 1), _BENT),
    Adsorbate("CHO", (6, 1, 8), ((0.0, 0.0, 0.0), (0.86, 0.0, 0.72), (-0.9, 0.0, 0.6))),
)
HELD_OUT_ADSORBATES = (
    _rod("NH", 1.06),
    _rod("NN", 1.00),
    _rod("CC", 1.10),
    _rod("CCH", 1.10),
)


def _catalysts(*names: str) -> tuple[Catalyst, ...]:
    return tuple(Catalyst(*name.split("-")) for name in names)


TRAIN_CATALYSTS = _catalysts(
    *("Al", "Ni", "Cu", "Ag", "Pt", "Au"),
    *("Al-Cu", "Ni-Cu", "Ni-Pd", "Cu-Ni", "Cu-Pd", "Cu-Ag"),
    *("Ag-Pd", "Ag-Cu", "Pt-Pd", "Pt-Ni", "Au-Ag", "Au-Pt"),
)
HELD_OUT_CATALYSTS = _catalysts(
    *("Pd", "Pd-Cu", "Pd-Ag", "Pd-Pt"),
    *("Al-Ni", "Ni-Pt", "Cu-Au", "Ag-Au", "Pt-Au", "Au-Cu"),
)

#: Facets and cells with their weights: 12 to 80 slab atoms, mostly small ones.
TERMINATIONS: tuple[tuple[Termination, float], ...] = (
    (Termination((1, 1, 1), (2, 2, 3)), 5.0),
    (Termination((1, 1, 1), (3, 2, 3)), 4.0),
    (Termination((1, 1, 1), (3, 3, 3)), 2.0),
    (Termination((1, 1, 1), (4, 4, 4)), 0.5),
    (Termination((1, 0, 0), (2, 2, 3)), 5.0),
    (Termination((1, 0, 0), (3, 2, 3)), 4.0),
    (Termination((1, 0, 0), (3, 3, 4)), 1.5),
    (Termination((1, 0, 0), (4, 4, 5)), 0.25),
    (Termination((1, 1, 0), (2, 2, 4)), 4.0),
    (Termination((1, 1, 0), (2, 3, 5)), 1.5),
    (Termination((2, 1, 1), (3, 2, 3)), 3.0),
    (Termination((2, 1, 1), (3, 3, 4)), 1.0),
)


def adsorbates_of(split: Split) -> tuple[Adsorbate, ...]:
    """Adsorbates that a split draws from."""
    return HELD_OUT_ADSORBATES if split.new_adsorbates else TRAIN_ADSORBATES


def catalysts_of(split: Split) -> tuple[Catalyst, ...]:
    """Catalysts that a split draws from."""
    return HELD_OUT_CATALYSTS if split.new_catalysts else TRAIN_CATALYSTS


@dataclass(frozen=True)
class SurfaceSpec:
    """One slab: catalyst, termination, and which surface atoms are the guest's."""

    catalyst: Catalyst
    termination: Termination
    guests: tuple[int, ...]  # indices into the surface atoms, sorted


@dataclass(frozen=True)
class Slab:
    """A clean slab as cut from the bulk.

    numbers (N,), positions (N, 3) in Å, cell (3, 3) in Å (float32-exact), tags (N,): 1 surface,
    0 below; nearest: nearest-neighbour distance of the host in Å.
    """

    numbers: Ints
    positions: Floats
    cell: Floats
    tags: Ints
    nearest: float
