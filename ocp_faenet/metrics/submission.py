"""Leaderboard files of OC20: one ``.npz`` with four test splits (numpy alone).

For each split ``s`` in :data:`SPLITS`: ``{s}_ids`` (n,), ``{s}_energy`` (n,) in eV and, for S2EF,
``{s}_forces`` (N, 3) in eV/Å with all systems end to end and ``{s}_chunk_idx`` (n - 1,), the
cumulative atom counts without the last. The leaderboard wants the forces of all atoms; EvalAI,
which came before it, wanted those of free atoms, as ``fairchem --mode predict`` writes them.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

#: Test splits of OC20, in the order of the leaderboard.
SPLITS = ("id", "ood_ads", "ood_cat", "ood_both")


class Task(str, Enum):
    """What the file predicts."""

    IS2RE = "is2re"
    S2EF = "s2ef"


class Layout(str, Enum):
    """Whose atoms ``forces`` holds: every atom's, or those of free atoms alone."""

    LEADERBOARD = "leaderboard"
    EVALAI = "evalai"


class SubmissionError(ValueError):
    """Predictions that no leaderboard file can be made of; the message is one line."""


@dataclass(frozen=True)
class SplitPredictions:
    """Predictions of one split: ``ids`` (n,), ``energy`` (n,), ``forces`` (N, 3),
    ``chunk_idx`` (n - 1,)."""

    ids: Array
    energy: Array
    forces: Array | None = None
    chunk_idx: Array | None = None

    @property
    def sizes(self) -> Array:
        """Rows of ``forces`` of each system, (n,)."""
        if self.forces is None or self.chunk_idx is None:
            raise SubmissionError("these predictions hold no forces")
        return np.diff(self.chunk_idx, prepend=0, append=len(self.forces))


@dataclass(frozen=True)
class SplitRecords:
    """What a split's LMDB holds: ``ids`` (n,), ``natoms`` (n,) and ``free`` (sum natoms,), true
    for atoms that may move."""

    ids: Array
    natoms: Array
    free: Array

    @property
    def free_masks(self) -> list[Array]:
        """``free`` system by system."""
        return np.split(self.free, np.cumsum(self.natoms)[:-1])


def read_arrays(path: Path) -> dict[str, Array]:
    """Every array of an ``.npz`` file.

    Raises:
        SubmissionError: no such file, not an ``.npz``, or object arrays in it.
    """
    if not path.is_file():
        raise SubmissionError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise SubmissionError(
                f"{path}: holds object arrays; save plain arrays, or use `submission build`"
            ) from error
        raise SubmissionError(f"{path}: not an .npz file ({error})") from error
    except (OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise SubmissionError(f"{path}: not a complete .npz file ({error})") from error


def read_predictions(path: Path, task: Task) -> SplitPredictions:
    """One split from the file that ``fairchem --mode predict`` wrote.

    Raises:
        SubmissionError: missing keys, or arrays whose lengths contradict each other.
    """
    return as_predictions(read_arrays(path), task, str(path))


def as_predictions(arrays: Mapping[str, Array], task: Task, path: str) -> SplitPredictions:
    """One split from arrays named as the host names them; ``path`` is for messages."""
    wanted = ("ids", "energy") + (("forces", "chunk_idx") if task is Task.S2EF else ())
    missing = [key for key in wanted if key not in arrays]
    if missing:
        raise SubmissionError(
            f"{path}: no {', '.join(missing)} in it (it holds {', '.join(sorted(arrays))}); "
            f"{task.value} needs {', '.join(wanted)}"
        )
    count = len(arrays["ids"])
    if arrays["energy"].size != count:
        raise SubmissionError(f"{path}: {arrays['energy'].size} energies for {count} ids")
    split = SplitPredictions(arrays["ids"].astype(str), arrays["energy"].reshape(count))
    if task is Task.IS2RE:
        return split
    if len(arrays["chunk_idx"]) != max(count - 1, 0):
        raise SubmissionError(
            f"{path}: chunk_idx has {len(arrays['chunk_idx'])} entries for {count} ids; "
            "one less than the ids is right"
        )
    return replace(split, forces=arrays["forces"], chunk_idx=arrays["chunk_idx"])


def arrange_forces(
    split: SplitPredictions, records: SplitRecords, layout: Layout
) -> SplitPredictions:
    """``split`` with the forces of the atoms that ``layout`` asks for.

    Fixed atoms whose forces were not predicted (the host writes free atoms alone) get zeros:
    they do not count in the scores.

    Raises:
        SubmissionError: an id that the records lack, or a count of forces that fits neither form.
    """
    row = {name: index for index, name in enumerate(records.ids.tolist())}
    masks = records.free_masks
    chunks = np.split(_forces(split), np.cumsum(split.sizes)[:-1])
    out = []
    for name, chunk in zip(split.ids.tolist(), chunks, strict=True):
        if name not in row:
            raise SubmissionError(f"id {name!r} is predicted but not in the LMDB")
        out.append(_arrange(name, chunk, masks[row[name]], layout))
    sizes = [len(chunk) for chunk in out]
    return replace(split, forces=np.concatenate(out), chunk_idx=np.cumsum(sizes)[:-1])


def _forces(split: SplitPredictions) -> Array:
    if split.forces is None:
        raise SubmissionError("these predictions hold no forces")
    return split.forces


def _arrange(name: str, chunk: Array, free: Array, layout: Layout) -> Array:
    if len(chunk) == len(free):
        full = chunk
    elif len(chunk) == int(free.sum()):
        full = np.zeros((len(free), 3), dtype=chunk.dtype)
        full[free] = chunk
    else:
        raise SubmissionError(
            f"id {name!r}: {len(chunk)} forces, but the LMDB has {len(free)} atoms, "
            f"{int(free.sum())} of them free"
        )
    return full if layout is Layout.LEADERBOARD else full[free]


def assemble(splits: Mapping[str, SplitPredictions], task: Task) -> dict[str, Array]:
    """Arrays of the file: plain, float32, energies (n,), ``chunk_idx`` int64.

    Raises:
        SubmissionError: a split is missing, or S2EF predictions without forces.
    """
    arrays: dict[str, Array] = {}
    for name in SPLITS:
        if name not in splits:
            raise SubmissionError(f"split {name!r} is missing; all of {', '.join(SPLITS)} go in")
        split = splits[name]
        arrays[f"{name}_ids"] = split.ids.astype(str)
        arrays[f"{name}_energy"] = split.energy.reshape(-1).astype(np.float32)
        if task is Task.S2EF:
            arrays[f"{name}_forces"] = _forces(split).astype(np.float32)
            arrays[f"{name}_chunk_idx"] = np.cumsum(split.sizes)[:-1].astype(np.int64)
    return arrays


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write ``arrays`` to ``path`` whole or not at all (temporary file, then rename)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez_compressed(stream, **dict(arrays))
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
