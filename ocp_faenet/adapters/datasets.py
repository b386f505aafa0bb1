"""The host's LMDB dataset with its files checked before a byte of data is read.

The stock loader maps the file into memory: one that was cut short in a copy kills the process
with a bus error as soon as a missing page is touched, an empty one ends in a division by zero,
and a record without a key that its neighbours have in a bare ``KeyError`` of the collater.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import lmdb
from fairchem.core.common.registry import registry
from fairchem.core.datasets import LmdbDataset

from ocp_faenet.adapters.records import record_name

#: Formats that the stock `LmdbDataset` goes by.
LMDB_FORMATS = ("lmdb", "single_point_lmdb", "trajectory_lmdb")
#: Keys that all records of a dataset have, or none: the collater takes them from the first.
SCHEMA_KEYS = frozenset(
    {"pos", "atomic_numbers", "natoms", "cell", "tags", "fixed", "edge_index", "cell_offsets"}
)


@registry.register_dataset("faenet_lmdb")
@registry.register_dataset("trajectory_lmdb")
@registry.register_dataset("single_point_lmdb")
@registry.register_dataset("lmdb")
class CheckedLmdbDataset(LmdbDataset):
    """The stock dataset, same configuration, same records, clear errors.

    Takes over the stock names too: a process that uses this plugin reads through it.

    Raises:
        ValueError: a missing, damaged, truncated or empty LMDB; a record that lacks a key of
            `SCHEMA_KEYS` that the first one has, or has one that it lacks; a record that
            cannot be unpickled.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        src = config.get("src")
        for path in [src] if isinstance(src, str) else list(src or []):
            check_lmdb(path)
        super().__init__(config)
        self._schema = SCHEMA_KEYS & set(self._record(0).keys())

    def __getitem__(self, idx: int) -> Any:
        """The record at ``idx``, transformed; see the class for what is checked."""
        data = self._record(idx)
        odd = sorted(self._schema ^ (SCHEMA_KEYS & set(data.keys())))
        if odd:
            verb = "has no" if odd[0] in self._schema else "has"
            raise ValueError(
                f"{self.path}: {record_name(data)} (index {idx}) {verb} {', '.join(odd)}, "
                "unlike the first record; repair or drop it"
            )
        return data

    def _record(self, idx: int) -> Any:
        try:
            return super().__getitem__(idx)
        except (pickle.UnpicklingError, EOFError) as error:
            raise ValueError(
                f"{self.path}: record at index {idx} cannot be read ({error}); "
                "fetch or build the file again"
            ) from error

    def __del__(self) -> None:
        """Close what was opened; the stock one fails where opening failed."""
        if hasattr(self, "env") or hasattr(self, "envs"):
            super().__del__()


def check_lmdb(src: str | Path) -> int:
    """Number of records in an LMDB file, or in all ``*.lmdb`` of a folder.

    Raises:
        ValueError: nothing there, not an LMDB, truncated, or empty.
    """
    path = Path(src)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder; set the split's src to an LMDB")
    files = [path] if path.is_file() else sorted(path.glob("*.lmdb"))
    if not files:
        raise ValueError(f"{path}: no *.lmdb in this folder; set the split's src to an LMDB")
    total = sum(_count_records(file) for file in files)
    if total == 0:
        raise ValueError(f"{path}: the LMDB holds no records; an empty split cannot be used")
    return total


def _count_records(file: Path) -> int:
    try:
        env = lmdb.open(
            str(file), subdir=False, readonly=True, lock=False, readahead=False, max_readers=1
        )
    except lmdb.Error as error:
        raise ValueError(
            f"{file}: not a readable LMDB ({error}); fetch or build it again"
        ) from error
    try:
        needed = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
        size = file.stat().st_size
        if size < needed:  # must come first: reading past the end is a bus error
            raise ValueError(
                f"{file}: truncated, {size} bytes of {needed}; fetch or build it again"
            )
        return _length(file, env)
    finally:
        env.close()


def _length(file: Path, env: lmdb.Environment) -> int:
    entries = int(env.stat()["entries"])
    with env.begin() as txn:
        stored = txn.get(b"length")
    if stored is None:
        return entries
    length = int(pickle.loads(stored))
    if length > entries - 1:
        raise ValueError(
            f"{file}: 'length' says {length} records, {entries - 1} are there; "
            "the file was not written to its end, build it again"
        )
    return length
