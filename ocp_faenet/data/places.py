"""Where the LMDB of a split is: in an embedded set, or where fairchem's download script puts it."""

from __future__ import annotations

from pathlib import Path

#: Sizes of OC20's training sets, each a folder of its own; validation splits are below ``all``.
SIZES = ("10k", "100k", "200k", "2M", "20M", "all")


def find_lmdb(data: Path, task: str, split: str, size: str | None = None) -> Path:
    """The LMDB file of a split, or a folder of several, as OC20's S2EF has them.

    ``data/TASK/SPLIT/data.lmdb`` (embedded sets), else ``data/TASK/SIZE/SPLIT/data.lmdb`` or the
    folder ``data/TASK/SIZE/SPLIT``, the first that is there of `SIZES`, smallest first.

    Args:
        data: data set.
        task: folder of the task below it, ``is2re`` or ``s2ef``.
        split: ``train``, ``val_id``, ...
        size: of OC20's training sets, to be taken before others.

    Returns:
        A path; that of an embedded set where none exists, for whoever opens it to complain.
    """
    embedded = data / task / split
    sizes = [*([] if size is None else [size]), *SIZES]
    for folder in [embedded, *(data / task / each / split for each in sizes)]:
        if (folder / "data.lmdb").is_file():
            return folder / "data.lmdb"
        if folder.is_dir() and any(folder.glob("*.lmdb")):
            return folder
    return embedded / "data.lmdb"
