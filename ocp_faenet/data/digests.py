"""What the content of data files is told by."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path


def file_digest(path: Path) -> str:
    """SHA-256 of a file, or of the ``*.lmdb`` in a folder, in the order of their names."""
    files = [path] if path.is_file() else sorted(path.glob("*.lmdb"))
    seen = [(file, file.stat()) for file in files]
    return _digest(tuple((file, now.st_size, now.st_mtime_ns) for file, now in seen))


@functools.lru_cache(maxsize=256)
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Of files as they are at these sizes and times: one that is replaced is read again."""
    digest = hashlib.sha256()
    for file, *_ in files:
        with file.open("rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()
