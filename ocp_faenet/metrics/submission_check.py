"""What is wrong with a leaderboard file, in sentences (numpy alone)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ocp_faenet.metrics.submission import SPLITS, Array, Layout, SplitRecords, Task

#: Keys of one split by task.
KEYS = {Task.IS2RE: ("ids", "energy"), Task.S2EF: ("ids", "energy", "forces", "chunk_idx")}


def task_of(arrays: Mapping[str, Array]) -> Task:
    """The task whose keys the file has: S2EF as soon as it holds any forces."""
    return Task.S2EF if any(key.endswith("_forces") for key in arrays) else Task.IS2RE


def problems(
    arrays: Mapping[str, Array],
    task: Task,
    layout: Layout,
    records: Mapping[str, SplitRecords] | None = None,
) -> list[str]:
    """Everything that is wrong with the file, one sentence each; empty when nothing is.

    Args:
        arrays: content of the file.
        task: what it should predict.
        layout: whose atoms its forces should hold; matters only where ``records`` are given.
        records: what the LMDBs hold, for the splits that are to be compared with them.
    """
    wanted = [f"{split}_{key}" for split in SPLITS for key in KEYS[task]]
    missing = [key for key in wanted if key not in arrays]
    extra = sorted(set(arrays) - set(wanted))
    found = [f"{key}: missing" for key in missing]
    found += [f"{key}: not a key of {task.value} files" for key in extra]
    for split in SPLITS:
        if any(key.startswith(f"{split}_") for key in missing):
            continue
        found += [f"{split}_{line}" for line in _split_problems(arrays, split, task)]
        truth = (records or {}).get(split)
        if truth is not None:
            found += [f"{split}_{line}" for line in _against(arrays, split, task, layout, truth)]
    return found


def _split_problems(arrays: Mapping[str, Array], split: str, task: Task) -> list[str]:
    ids, energy = arrays[f"{split}_ids"], arrays[f"{split}_energy"]
    found = []
    if ids.ndim != 1 or ids.dtype.kind != "U":
        return [f"ids: {ids.dtype} of shape {ids.shape}; a 1-D array of strings is right"]
    if len(ids) == 0:
        return ["ids: empty"]
    unique, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        doubled = unique[counts > 1]
        found.append(f"ids: {len(doubled)} doubled, the first is {str(doubled[0])!r}")
    found += _number_problems("energy", energy, (len(ids),))
    if task is Task.S2EF:
        found += _force_problems(arrays[f"{split}_forces"], arrays[f"{split}_chunk_idx"], len(ids))
    return found


def _number_problems(name: str, values: Array, shape: tuple[int, ...]) -> list[str]:
    if values.dtype != np.float32:
        return [f"{name}: {values.dtype}; float32 is right"]
    if values.shape != shape:
        return [f"{name}: shape {values.shape}; {shape} is right"]
    bad = int((~np.isfinite(values)).sum())
    return [f"{name}: {bad} of {values.size} values are not finite"] if bad else []


def _force_problems(forces: Array, chunk_idx: Array, count: int) -> list[str]:
    found = _number_problems("forces", forces, (len(forces) if forces.ndim else 0, 3))
    if chunk_idx.dtype.kind not in "iu":
        return [*found, f"chunk_idx: {chunk_idx.dtype}; integers are right"]
    if chunk_idx.shape != (count - 1,):
        return [*found, f"chunk_idx: shape {chunk_idx.shape}; {(count - 1,)} is right"]
    if found:
        return found
    sizes = np.diff(chunk_idx.astype(np.int64), prepend=0, append=len(forces))
    if (sizes <= 0).any():
        first = int(np.argmax(sizes <= 0))
        found.append(
            f"chunk_idx: gives system {first} {int(sizes[first])} atoms; "
            f"cumulative atom counts without the last, below {len(forces)}, are right"
        )
    return found


def _against(
    arrays: Mapping[str, Array], split: str, task: Task, layout: Layout, truth: SplitRecords
) -> list[str]:
    ids = arrays[f"{split}_ids"]
    if ids.ndim != 1 or ids.dtype.kind != "U":
        return []
    found = []
    absent = np.setdiff1d(truth.ids, ids)
    unknown = np.setdiff1d(ids, truth.ids)
    if len(absent):
        found.append(f"ids: {len(absent)} of the LMDB missing, the first is {str(absent[0])!r}")
    if len(unknown):
        found.append(f"ids: {len(unknown)} not in the LMDB, the first is {str(unknown[0])!r}")
    if task is Task.IS2RE or found:
        return found
    forces, chunk_idx = arrays[f"{split}_forces"], arrays[f"{split}_chunk_idx"]
    if _force_problems(forces, chunk_idx, len(ids)):
        return found
    return [*found, *_size_problems(ids, forces, chunk_idx, layout, truth)]


def _size_problems(
    ids: Array, forces: Array, chunk_idx: Array, layout: Layout, truth: SplitRecords
) -> list[str]:
    sizes = np.diff(chunk_idx.astype(np.int64), prepend=0, append=len(forces))
    full = layout is Layout.LEADERBOARD
    counts = truth.natoms if full else np.array([int(mask.sum()) for mask in truth.free_masks])
    order = np.argsort(truth.ids)
    expected = counts[order][np.searchsorted(truth.ids, ids, sorter=order)]
    wrong = np.flatnonzero(sizes != expected)
    if not len(wrong):
        return []
    first = int(wrong[0])
    kind = "atoms" if full else "free atoms"
    return [
        f"chunk_idx: {len(wrong)} systems with a wrong number of forces, the first is "
        f"{str(ids[first])!r} with {int(sizes[first])} for {int(expected[first])} {kind}"
    ]
