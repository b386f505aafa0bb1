"""Which systems an OC20 LMDB holds: ids, sizes, free atoms, relaxed energies."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from numpy.typing import NDArray


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
    for file in _files(path):
        for key, record in _records(file):
            fields = _fields(record)
            if "sid" not in fields or "atomic_numbers" not in fields:
                raise ValueError(f"{file}: record {key} has no 'sid' or no 'atomic_numbers'")
            count = len(fields["atomic_numbers"])
            fixed = fields.get("fixed")
            ids.append(_name(fields))
            natoms.append(count)
            free.append(np.ones(count, bool) if fixed is None else np.asarray(fixed) == 0)
    if not ids:
        raise ValueError(f"{path}: no record in it")
    return np.array(ids), np.array(natoms), np.concatenate(free)


def relaxed_energies(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Ids (n,) and relaxed adsorption energies (n,) in eV of every record under ``path``.

    Raises:
        ValueError: as :func:`inventory`, or a record without ``y_relaxed``.
    """
    ids: list[str] = []
    energies: list[float] = []
    for file in _files(path):
        for key, record in _records(file):
            fields = _fields(record)
            if fields.get("y_relaxed") is None:
                raise ValueError(f"{file}: record {key} has no 'y_relaxed'; this is no IS2RE split")
            ids.append(_name(fields))
            energies.append(float(_scalar(fields["y_relaxed"])))
    if not ids:
        raise ValueError(f"{path}: no record in it")
    return np.array(ids), np.array(energies)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(path.glob("*.lmdb"))
    if not files:
        raise ValueError(f"{path}: no such file, nor a folder with .lmdb files")
    return files


def _records(file: Path) -> Iterator[tuple[int, Any]]:
    try:
        env = lmdb.open(str(file), subdir=False, readonly=True, lock=False, max_readers=1)
    except lmdb.Error as error:
        raise ValueError(f"{file}: not a readable LMDB ({error})") from error
    try:
        needed = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
        if file.stat().st_size < needed:  # reading past the end would be a bus error
            raise ValueError(f"{file}: truncated, {file.stat().st_size} bytes of {needed}")
        with env.begin() as transaction:
            length = transaction.get(b"length")
            total = env.stat()["entries"] if length is None else pickle.loads(length)
            for key in range(total):
                stored = transaction.get(str(key).encode("ascii"))
                if stored is None:
                    raise ValueError(f"{file}: record {key} of {total} is missing")
                yield key, pickle.loads(stored)
    finally:
        env.close()


def _fields(record: Any) -> dict[str, Any]:
    """Content of a record, whichever PyG pickled it (before 2.0 it was the plain ``__dict__``)."""
    content = vars(record)
    store = content.get("_store")
    return dict(content) if store is None else dict(store.items())


def _name(fields: dict[str, Any]) -> str:
    sid, fid = (_scalar(fields.get(key)) for key in ("sid", "fid"))
    return str(sid) if fid is None else f"{sid}_{fid}"


def _scalar(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
