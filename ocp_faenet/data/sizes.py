"""``metadata.npz`` for data that came without: sizes of all records, which load balancing reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ocp_faenet.data.lmdb_io import LmdbError, write_metadata
from ocp_faenet.data.reader import lmdb_files, open_lmdb
from ocp_faenet.data.schema import array_of

#: Records that a worker process reads at a time.
_CHUNK = 2000


@dataclass(frozen=True)
class DataSet:
    """LMDBs that the host reads as one data set.

    Attributes:
        files: in the order in which the host strings their records together.
        metadata: where it looks for their sizes.
    """

    files: tuple[Path, ...]
    metadata: Path

    def __len__(self) -> int:
        total = 0
        for file in self.files:
            with open_lmdb(file) as records:
                total += len(records)
        return total


def data_sets(path: Path) -> list[DataSet]:
    """An LMDB, or the LMDBs of each folder below ``path``, as the host takes them.

    Raises:
        LmdbError: there is none.
    """
    files = lmdb_files(path)
    folders = sorted({file.parent for file in files})
    return [
        DataSet(tuple(file for file in files if file.parent == folder), folder / "metadata.npz")
        for folder in folders
    ]


def write_sizes(
    data: DataSet, *, workers: int = 1, progress: Callable[[int], object] = lambda done: None
) -> tuple[int, int | None]:
    """Read every record and write ``metadata.npz``.

    Args:
        data: what to read.
        workers: processes.
        progress: told how many records are done since it was told last.

    Returns:
        Atoms and edges in all; no edges where a record has none stored, which is left to
        ``natoms`` then.

    Raises:
        LmdbError: a file or a record that cannot be read.
    """
    natoms: list[int] = []
    edges: list[int | None] = []
    for atoms_here, edges_here in _in_order(list(_chunks(data)), workers):
        natoms += atoms_here
        edges += edges_here
        progress(len(atoms_here))
    known = [count for count in edges if count is not None]
    if len(known) == len(natoms):
        write_metadata(data.metadata, natoms, known)
        return sum(natoms), sum(known)
    write_metadata(data.metadata, natoms, None)
    return sum(natoms), None


def sizes_fit(data: DataSet) -> bool:
    """Whether there is a ``metadata.npz`` with one number of atoms for each record.

    Raises:
        LmdbError: the file is no such archive.
    """
    if not data.metadata.is_file():
        return False
    try:
        with np.load(data.metadata, allow_pickle=False) as stored:
            return "natoms" in stored and len(stored["natoms"]) == len(data)
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise LmdbError(f"{data.metadata}: unreadable ({error}); remove it") from error


def _chunks(data: DataSet) -> Iterator[tuple[Path, int, int]]:
    for file in data.files:
        with open_lmdb(file) as records:
            total = len(records)
        for start in range(0, total, _CHUNK):
            yield file, start, min(start + _CHUNK, total)


def _in_order(
    chunks: list[tuple[Path, int, int]], workers: int
) -> Iterator[tuple[list[int], list[int | None]]]:
    if workers == 1:
        yield from map(_read_sizes, chunks)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(_read_sizes, chunks)


def _read_sizes(chunk: tuple[Path, int, int]) -> tuple[list[int], list[int | None]]:
    """Atoms and stored edges of records ``start`` to ``stop`` of a file."""
    file, start, stop = chunk
    natoms: list[int] = []
    edges: list[int | None] = []
    with open_lmdb(file) as records:
        for index in range(start, stop):
            fields = records[index]
            if "pos" not in fields:
                raise LmdbError(f"{file}: record {index} has no 'pos'; repair or drop it")
            natoms.append(len(array_of(fields["pos"])))
            edges.append(_edge_count(fields))
    return natoms, edges


def _edge_count(fields: dict[str, Any]) -> int | None:
    return array_of(fields["edge_index"]).shape[-1] if "edge_index" in fields else None
