"""Small data sets and damaged files for the tests of the data floor."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from ase import Atoms
from ase.calculators.emt import EMT

from ocp_faenet.data.presets import Preset

MINI = Preset("mini", train=9, val=1, train_frames=2, val_frames=2, rattled=1, dense_systems=1,
              dense_configs=6)  # fmt: skip


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def emt(numbers: Any, positions: Any, cell: Any) -> tuple[float, np.ndarray]:
    """Energy (eV) and forces (eV/Å) by ASE itself, at the values as stored."""
    atoms = Atoms(
        np.asarray(numbers).astype(int),
        np.asarray(positions, dtype=float),
        cell=np.asarray(cell, dtype=float).reshape(3, 3),
        pbc=True,
    )
    atoms.calc = EMT()
    return atoms.get_potential_energy(), atoms.get_forces()


def damaged(source: Path, target: Path, index: int, **changes: Any) -> Path:
    """A copy of an LMDB whose record `index` has other values (`None`: key removed)."""
    records = stored(source)
    record = pickle.loads(records[str(index).encode()])
    for key, value in changes.items():
        if value is None:
            delattr(record, key)
        else:
            setattr(record, key, value)
    records[str(index).encode()] = pickle.dumps(record)
    return write_raw(target, records)


def stored(path: Path) -> dict[bytes, bytes]:
    """Everything in an LMDB."""
    env = lmdb.open(str(path), subdir=False, readonly=True, lock=False)
    with env.begin() as transaction:
        content = {bytes(k): bytes(v) for k, v in transaction.cursor()}
    env.close()
    return content


def write_raw(path: Path, content: dict[bytes, bytes]) -> Path:
    """An LMDB of these entries."""
    path.parent.mkdir(parents=True, exist_ok=True)
    env = lmdb.open(str(path), subdir=False, map_size=1 << 28, lock=False)
    with env.begin(write=True) as transaction:
        for key, value in content.items():
            transaction.put(key, value)
    env.close()
    return path


def quiet() -> dict[str, str]:
    """Environment of a test's child process: one thread."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, "1")}
