"""LMDB files as OC20 has them: pickled records under b"0", b"1", ... and b"length".

Files written here are the same bytes for the same records, and need nothing of this package to be
read: tensors are pickled as numpy arrays that PyTorch's own `default_convert` turns back (PyTorch's
own pickling writes the addresses of storages).
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
from torch.utils.data import default_convert
from torch_geometric.data import Data

_PROTOCOL = 4
_MAP_SIZE = 1 << 40  # bytes of address space; the file is only as long as its contents
_COMMIT_EVERY = 512  # records


class LmdbError(ValueError):
    """An LMDB that cannot be used; the message names the file and the remedy."""


class _RecordPickler(pickle.Pickler):
    """Pickles tensors by value, so that equal records give equal bytes."""

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, torch.Tensor):
            return NotImplemented
        array = obj.detach().cpu().contiguous().numpy()
        return default_convert, (array.astype(array.dtype.newbyteorder("="), copy=True),)


def record_bytes(record: Data) -> bytes:
    """Deterministic pickle of a record, readable by plain `pickle.loads`."""
    buffer = io.BytesIO()
    _RecordPickler(buffer, protocol=_PROTOCOL).dump(record)
    return buffer.getvalue()


def write_lmdb(path: Path, records: Iterable[Data]) -> int:
    """Write records to `path`, replacing it only when all are written.

    Args:
        path: file to make; its folder is made too.
        records: in the order of their keys.

    Returns:
        The number of records.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    count = _write(temporary, records)
    os.replace(temporary, path)
    return count


def _write(path: Path, records: Iterable[Data]) -> int:
    env = lmdb.open(str(path), subdir=False, lock=False, map_size=_MAP_SIZE, meminit=True)
    count = 0
    stream = iter(records)
    try:
        while batch := list(islice(stream, _COMMIT_EVERY)):
            with env.begin(write=True) as transaction:
                for index, record in enumerate(batch, count):
                    transaction.put(str(index).encode("ascii"), record_bytes(record))
            count += len(batch)
        with env.begin(write=True) as transaction:
            transaction.put(b"length", pickle.dumps(count, protocol=_PROTOCOL))
        env.sync(True)
    finally:
        env.close()
    return count


def write_metadata(path: Path, natoms: list[int], neighbors: list[int] | None) -> None:
    """Write `metadata.npz`, which the host's load balancing reads; without edges if `None`."""
    arrays = {"natoms": np.array(natoms)}
    if neighbors is not None:
        arrays["neighbors"] = np.array(neighbors)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as handle:
        np.savez(handle, **arrays)
    os.replace(temporary, path)
