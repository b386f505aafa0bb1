"""Which systems an OC20 LMDB holds: ids, sizes, free atoms, relaxed energies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocp_faenet.data.reader import lmdb_files, open_lmdb


def inventory(path: Path) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Ids, atom counts and free atoms of every record under ``path``.

    Args:
        path: an ``.lmdb`` file, or a folder of them (read in the order of their names).

    Returns:
        ``ids`` (n,) strings, ``sid`` or ``sid_fid`` as ``fairchem --mode predict`` writes them;
        ``natoms`` (n,); ``free`` (sum of natoms,), true for atoms that are not fixed.

    Raises:
        ValueError: nothing there, an unreadable file, or a record without what is asked of it.
    """
    ids: list[str] = []
    natoms: list[int] = []
    free: list[NDArray[Any]] = []
    for which, fields in _records(path):
        if "sid" not in fields or "atomic_numbers" not in fields:
            raise ValueError(f"{which} has no 'sid' or no 'atomic_numbers'")
        count = len(fields["atomic_numbers"])
        fixed = fields.get("fixed")
        ids.append(_name(fields))
        natoms.append(count)
        free.append(np.ones(count, bool) if fixed is None else np.asarray(fixed) == 0)
    return np.array(ids), np.array(natoms), np.concatenate(free)


def relaxed_energies(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Ids (n,) and relaxed adsorption energies (n,) in eV of every record under ``path``.

    Raises:
        ValueError: as :func:`inventory`, or a record without ``y_relaxed``.
    """
    ids: list[str] = []
    energies: list[float] = []
    for which, fields in _records(path):
        if fields.get("y_relaxed") is None:
            raise ValueError(f"{which} has no 'y_relaxed'; this is no IS2RE split")
        ids.append(_name(fields))
        energies.append(float(_scalar(fields["y_relaxed"])))
    return np.array(ids), np.array(energies)


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every record of the files under ``path``, with words that name it."""
    for file in lmdb_files(path):
        with open_lmdb(file) as records:
            for key, fields in enumerate(records):
                yield f"{file}: record {key}", fields


def _name(fields: dict[str, Any]) -> str:
    sid, fid = (_scalar(fields.get(key)) for key in ("sid", "fid"))
    return str(sid) if fid is None else f"{sid}_{fid}"


def _scalar(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
