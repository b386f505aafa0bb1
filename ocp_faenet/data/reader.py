"""Reading LMDBs in the OC20 layout, with errors that name the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb

from ocp_faenet.data.lmdb_io import LmdbError
from ocp_faenet.data.records import fields_of
from ocp_faenet.data.unpickle import restricted_loads


class LmdbRecords:
    """Read-only view of one LMDB file: `len`, indexing and iteration over records.

    A record is a dictionary by key, whatever PyG version pickled it. Use it in a `with` statement,
    or call `close`.

    Raises:
        LmdbError: the file is missing, no LMDB, truncated or empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise LmdbError(f"{path}: no such file")
        try:
            self._env = lmdb.open(
                str(path), subdir=False, readonly=True, lock=False, readahead=False, max_readers=1
            )
        except lmdb.Error as error:
            raise LmdbError(f"{path}: not a readable LMDB ({error})") from error
        try:
            self._refuse_truncated()
            self._count = self._stored_length()
        except Exception:
            self._env.close()
            raise

    def _refuse_truncated(self) -> None:
        """Reading past the end of a mapped file would kill the process."""
        needed = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
        size = self.path.stat().st_size
        if size < needed:
            raise LmdbError(f"{self.path}: truncated, {size} bytes of {needed}; copy it again")

    def _stored_length(self) -> int:
        with self._env.begin() as transaction:
            stored = transaction.get(b"length")
            count = transaction.stat()["entries"]
        if stored is not None:
            try:
                count = int(restricted_loads(stored))
            except (TypeError, ValueError) as error:
                raise LmdbError(f"{self.path}: 'length' is unreadable ({error})") from error
        if count == 0:
            raise LmdbError(f"{self.path}: no record in it")
        return int(count)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record `index`.

        Raises:
            IndexError: beyond the last record.
            LmdbError: the record is missing or unreadable.
        """
        if not 0 <= index < self._count:
            raise IndexError(f"record {index} of {self._count}")
        with self._env.begin() as transaction:
            stored = transaction.get(str(index).encode("ascii"))
        if stored is None:
            raise LmdbError(f"{self.path}: record {index} of {self._count} is missing")
        try:
            return fields_of(restricted_loads(stored))
        except (TypeError, ValueError) as error:
            raise LmdbError(f"{self.path}: record {index} is unreadable: {error}") from error

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(self._count))

    def __enter__(self) -> LmdbRecords:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the file."""
        self._env.close()


def open_lmdb(path: Path | str) -> LmdbRecords:
    """Open one LMDB file for reading; see `LmdbRecords`."""
    return LmdbRecords(Path(path))


def lmdb_files(path: Path) -> list[Path]:
    """The LMDB itself, or all `*.lmdb` below a folder, sorted.

    Raises:
        LmdbError: when there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise LmdbError(f"{path}: no such file or folder")
    found = sorted(file for file in path.rglob("*.lmdb") if file.is_file())
    if not found:
        raise LmdbError(f"{path}: no .lmdb file in this folder")
    return found
