"""The host's LMDB dataset with its files checked before a byte of data is read.

The stock loader maps the file into memory: one that was cut short in a copy kills the process
with a bus error as soon as a missing page is touched, an empty one ends in a division by zero,
and a record without a key that its neighbours have in a bare ``KeyError`` of the collater.
"""

from __future__ import annotations

import bisect
import contextlib
import logging
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lmdb
import torch
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import pyg2_data_transform
from fairchem.core.datasets import LmdbDataset
from fairchem.core.datasets._utils import rename_data_object_keys

from ocp_faenet.adapters.records import record_name

#: Formats that the stock `LmdbDataset` goes by.
LMDB_FORMATS = ("lmdb", "single_point_lmdb", "trajectory_lmdb")
#: Keys that all records of a dataset have, or none: the collater takes them from the first.
SCHEMA_KEYS = frozenset(
    {"pos", "atomic_numbers", "natoms", "cell", "tags", "fixed", "edge_index", "cell_offsets"}
)

#: Labels, likewise, besides what ``key_mapping`` makes of them.
LABELS = frozenset({"y", "y_init", "y_relaxed", "pos_relaxed", "force"})
#: Forces on atoms, before and after the usual ``key_mapping``.
FORCES = ("force", "forces")


class CorruptRecordError(ValueError):
    """A record that cannot be read, or that does not go with the others."""


@registry.register_dataset("faenet_lmdb")
@registry.register_dataset("trajectory_lmdb")
@registry.register_dataset("single_point_lmdb")
@registry.register_dataset("lmdb")
class CheckedLmdbDataset(LmdbDataset):
    """The stock dataset, same configuration, same records, clear errors.

    Takes over the stock names too: a process that uses this plugin reads through it.
    With ``skip_corrupt: true`` a loader leaves out the records that would raise; `skipped` counts
    them, and the log names each one once.

    Raises:
        ValueError: a missing, damaged, truncated or empty LMDB; a record that lacks a key of
            `SCHEMA_KEYS` or a label that the first one has, or has one that it lacks; forces that
            are not three finite numbers for each atom; a record that cannot be unpickled.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        src = config.get("src")
        for path in [src] if isinstance(src, str) else list(src or []):
            check_lmdb(path)
        super().__init__(config)
        self.skip_corrupt = bool(config.get("skip_corrupt", False))
        # Shared with the processes of a loader, so that what they skip is counted here.
        total = len(self) if self.skip_corrupt else 0
        self._corrupt = torch.zeros(total, dtype=torch.bool).share_memory_()
        mapped = [new for new in (self.key_mapping or {}).values() if isinstance(new, str)]
        self._checked = SCHEMA_KEYS | LABELS | set(mapped)
        self._schema = self._checked & set(self._first_record().keys())

    @property
    def skipped(self) -> int:
        """How many records have been left out so far."""
        return int(self._corrupt.sum())

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The records of one batch, as loaders ask for them, without those to be skipped.

        Raises:
            ValueError: see the class; all of the batch would be skipped.
        """
        if not self.skip_corrupt:
            return [self[idx] for idx in indices]
        found = [record for idx in indices if (record := self._good_record(idx)) is not None]
        if not found:
            raise ValueError(
                f"{self.path}: none of the {len(indices)} records of a batch can be read; "
                "fetch or build the file again"
            )
        return found

    def __getitem__(self, idx: int) -> Any:
        """The record at ``idx``, transformed; see the class for what is checked."""
        data = self._record(idx)
        odd = sorted(self._schema ^ (self._checked & set(data.keys())))
        if odd:
            verb = "has no" if odd[0] in self._schema else "has"
            raise CorruptRecordError(
                f"{self.path}: {record_name(data)} (index {idx}) {verb} {', '.join(odd)}, "
                "unlike the first record; repair or drop it"
            )
        for key in FORCES:
            if key in data:
                self._check_forces(data, key, idx)
        return data

    def _check_forces(self, data: Any, key: str, idx: int) -> None:
        """Three finite numbers for each atom."""
        forces = torch.as_tensor(data[key])
        name = f"{self.path}: {record_name(data)} (index {idx})"
        if "pos" in data and forces.shape != data.pos.shape:
            raise CorruptRecordError(
                f"{name}: {key} of shape {tuple(forces.shape)} for {data.pos.shape[0]} atoms; "
                "repair or drop it"
            )
        if not bool(torch.isfinite(forces).all()):
            raise CorruptRecordError(f"{name}: {key} is not finite; repair or drop it")

    def _first_record(self) -> Any:
        """The first record, or the first good one where bad ones are skipped."""
        last = len(self) if self.skip_corrupt else 1
        for idx in range(last - 1):
            with contextlib.suppress(CorruptRecordError):
                return self._record(idx)
        return self._record(last - 1)

    def _good_record(self, idx: int) -> Any:
        try:
            return self[idx]
        except CorruptRecordError as error:
            if not self._corrupt[idx]:
                self._corrupt[idx] = True
                logging.warning(f"Skipped: {error}")
            return None

    def _record(self, idx: int) -> Any:
        """What the stock `__getitem__` gives; here the file may be unlinked after opening, for
        the open map keeps its content."""
        number = int(self.indices[idx])
        data = self._read(number, idx)
        if self._folder:
            part, within = self._part(number)
            data.id = f"{part}_{within}"
        data = self.transforms(data)
        return data if self.key_mapping is None else rename_data_object_keys(data, self.key_mapping)

    def _read(self, number: int, idx: int) -> Any:
        part, within = self._part(number)
        env = self.envs[part] if self._folder else self.env
        keys = self._keys[part] if self._folder else self._keys
        try:
            return pyg2_data_transform(
                pickle.loads(env.begin().get(str(keys[within]).encode("ascii")))
            )
        except Exception as error:  # a broken pickle can raise anything
            raise CorruptRecordError(
                f"{self.path}: record at index {idx} cannot be read ({error}); fetch or build "
                "the file again, or set skip_corrupt: true in the split"
            ) from error

    def _part(self, number: int) -> tuple[int, int]:
        """File of a folder and index in it; the one file of no folder is number 0."""
        if not self._folder:
            return 0, number
        part = bisect.bisect(self._keylen_cumulative, number)
        return part, number - (self._keylen_cumulative[part - 1] if part else 0)

    @property
    def _folder(self) -> bool:
        return hasattr(self, "envs")

    def __del__(self) -> None:
        """Close what was opened; the stock one fails where opening failed."""
        for env in getattr(self, "envs", [getattr(self, "env", None)]):
            if env is not None:
                env.close()


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
