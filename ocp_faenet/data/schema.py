"""What the OC20 schema asks of a record, and what is wrong with one."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Fields = dict[str, Any]

#: Keys that every record has, and those that a graph on disk adds.
STRUCTURE_KEYS = ("pos", "cell", "atomic_numbers", "natoms", "tags", "fixed", "sid")
EDGE_KEYS = ("edge_index", "cell_offsets")

_PER_ATOM = {"pos": 3, "pos_relaxed": 3, "force": 3, "atomic_numbers": 0, "tags": 0, "fixed": 0}
_FINITE = ("pos", "pos_relaxed", "cell", "force", "distances", "y", "y_init", "y_relaxed")
_MAX_Z = 118
_CLOSEST = 0.3  # Å
_DISTANCE_TOLERANCE = 1e-3  # Å


class Kind(str, Enum):
    """What a file is for, by the labels of its first record."""

    IS2RE = "is2re"
    S2EF = "s2ef"
    STRUCTURES = "structures"

    @property
    def labels(self) -> tuple[str, ...]:
        """Keys that carry its labels."""
        return {
            Kind.IS2RE: ("y_init", "y_relaxed", "pos_relaxed"),
            Kind.S2EF: ("y", "force", "fid"),
            Kind.STRUCTURES: (),
        }[self]


def kind_of(fields: Fields) -> Kind:
    """Kind of the file that starts with this record."""
    if "y_relaxed" in fields:
        return Kind.IS2RE
    return Kind.S2EF if "y" in fields else Kind.STRUCTURES


def array_of(value: Any) -> NDArray[Any]:
    """A tensor, array or number as an array."""
    return np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)


def missing_keys(fields: Fields, kind: Kind) -> list[str]:
    """Keys that a record of this kind should have and has not; edges are one of their kind."""
    return [key for key in (*STRUCTURE_KEYS, *kind.labels) if key not in fields]


def tagged_as_ase(positions: Any, tags: Any) -> bool:
    """Whether the atoms of tag 0 lie on top of all others, as with ASE's tags.

    ASE's surface builders count layers from the top and give the adsorbate 0; here 0 is below the
    surface, so that the adsorbate would be taken for bulk.

    Args:
        positions: (N, 3), Å.
        tags: (N,).
    """
    heights, zero = array_of(positions)[:, 2], array_of(tags) == 0
    return bool(zero.any() and not zero.all() and heights[zero].min() > heights[~zero].max())


def faults(fields: Fields, kind: Kind) -> Iterator[str]:
    """What is wrong with a record, one sentence each; nothing for a good one."""
    absent = missing_keys(fields, kind)
    if absent:
        yield f"no {', '.join(absent)}"
    if "pos" not in fields:
        return
    arrays = {key: array_of(value) for key, value in fields.items() if _is_numeric(value)}
    shapes = list(_shape_faults(arrays))
    yield from shapes
    if shapes:
        return
    bad = [key for key in _FINITE if key in arrays and not np.isfinite(arrays[key]).all()]
    for key in bad:
        yield f"{key} holds NaN or infinity"
    yield from _value_faults(arrays)
    if not bad:
        yield from _edge_faults(arrays)


def _is_numeric(value: Any) -> bool:
    return hasattr(value, "detach") or isinstance(value, int | float | np.ndarray | np.number)


def _shape_faults(arrays: dict[str, NDArray[Any]]) -> Iterator[str]:
    n_atoms = arrays["pos"].shape[0] if arrays["pos"].ndim else 0
    if n_atoms == 0:
        yield "no atoms"
    for key, width in _PER_ATOM.items():
        wanted = (n_atoms, width) if width else (n_atoms,)
        if key in arrays and arrays[key].shape != wanted:
            yield f"{key} has shape {arrays[key].shape} instead of {wanted}"
    if "natoms" in arrays and arrays["natoms"].ravel().tolist() != [n_atoms]:
        yield f"natoms is {arrays['natoms'].ravel().tolist()}, but there are {n_atoms} positions"
    if "cell" in arrays and arrays["cell"].shape not in ((1, 3, 3), (3, 3)):
        yield f"cell has shape {arrays['cell'].shape} instead of (1, 3, 3)"
    edges = arrays.get("edge_index")
    if edges is None:
        return
    if edges.ndim != 2 or edges.shape[0] != 2:
        yield f"edge_index has shape {edges.shape} instead of (2, E)"
        return
    offsets = arrays.get("cell_offsets")
    if offsets is None:
        yield "edge_index without cell_offsets"
    elif offsets.shape != (edges.shape[1], 3):
        yield f"cell_offsets has shape {offsets.shape} for {edges.shape[1]} edges"


def _value_faults(arrays: dict[str, NDArray[Any]]) -> Iterator[str]:
    numbers = arrays.get("atomic_numbers")
    if numbers is not None:
        wrong = numbers[~((numbers >= 1) & (numbers <= _MAX_Z) & (numbers == np.floor(numbers)))]
        if len(wrong):
            yield f"atomic number {wrong[0]:g} is outside 1 to {_MAX_Z}"
    for key, allowed in (("tags", (0, 1, 2)), ("fixed", (0, 1))):
        if key in arrays and not np.isin(arrays[key], allowed).all():
            wrong = arrays[key][~np.isin(arrays[key], allowed)]
            yield f"{key} holds {wrong[0]:g}, which is none of {allowed}"
    if "cell" in arrays and abs(np.linalg.det(arrays["cell"].reshape(3, 3).astype(float))) < 1e-3:
        yield "the cell has no volume"


def _edge_faults(arrays: dict[str, NDArray[Any]]) -> Iterator[str]:
    edges = arrays.get("edge_index")
    if edges is None or "cell" not in arrays:
        return
    n_atoms, n_edges = len(arrays["pos"]), edges.shape[1]
    if n_edges == 0:
        yield "no edges"
        return
    if edges.min() < 0 or edges.max() >= n_atoms:
        yield f"edge_index runs from {edges.min()} to {edges.max()} for {n_atoms} atoms"
        return
    positions, cell = arrays["pos"].astype(float), arrays["cell"].reshape(3, 3).astype(float)
    vectors = positions[edges[0]] - positions[edges[1]] + arrays["cell_offsets"] @ cell
    lengths = np.linalg.norm(vectors, axis=1)
    if lengths.min() < _CLOSEST:
        pair = edges[:, int(lengths.argmin())].tolist()
        yield f"atoms {pair[0]} and {pair[1]} are {lengths.min():.3f} Å apart"
    if "distances" in arrays and arrays["distances"].shape == lengths.shape:
        off = float(np.abs(arrays["distances"] - lengths).max())
        if off > _DISTANCE_TOLERANCE:
            yield f"distances disagree with positions and edges by {off:.3g} Å"
