"""Where the LMDB of a split is: in an embedded set, or where fairchem's download script puts it."""

from __future__ import annotations

from pathlib import Path

#: Sizes of OC20's training sets, each a folder of its own; validation splits are below ``all``.
SIZES = ("10k", "100k", "200k", "2M", "20M", "all")
#: Folders of OC20's tasks, whose training sets have a size.
TASKS = ("is2re", "s2ef")


def find_lmdb(data: Path, task: str, split: str, size: str | None = None) -> Path:
    """The LMDB file of a split, or a folder of several, as OC20's S2EF has them.

    ``data/TASK/SPLIT/data.lmdb`` (embedded sets), else ``data/TASK/SIZE/SPLIT/data.lmdb`` or the
    folder ``data/TASK/SIZE/SPLIT``, the first that is there of `SIZES`, smallest first. ``size``
    is a wish: see `training_lmdb` for one that must be met.

    Args:
        data: data set.
        task: folder of the task below it, ``is2re`` or ``s2ef``.
        split: ``train``, ``val_id``, ...
        size: of OC20's training sets, to be taken before all others.

    Returns:
        A path; that of an embedded set where none exists, for whoever opens it to complain.
    """
    embedded = data / task / split
    wished = [] if size is None else [data / task / size / split]
    for folder in [*wished, embedded, *(data / task / each / split for each in SIZES)]:
        if (found := _lmdb_in(folder)) is not None:
            return found
    return embedded / "data.lmdb"


def training_lmdb(data: Path, task: str, size: str | None = None) -> Path:
    """The training set of a task, of no other size than the one that is asked for.

    Args:
        data: data set.
        task: folder of the task below it; those that are not of `TASKS` have no sizes.
        size: of OC20's training sets; the embedded one, or the smallest, where it is absent.

    Raises:
        FileNotFoundError: no training set of this size.
    """
    if size is None or task not in TASKS:
        return find_lmdb(data, task, "train")
    folder = data / task / size / "train"
    if (found := _lmdb_in(folder)) is None:
        raise FileNotFoundError(f"no LMDB of {size} training structures in {folder}")
    return found


def _lmdb_in(folder: Path) -> Path | None:
    if (folder / "data.lmdb").is_file():
        return folder / "data.lmdb"
    return folder if folder.is_dir() and any(folder.glob("*.lmdb")) else None
