"""What ``fairchem --mode run-relaxations`` leaves: positions by sid."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ocp_faenet.data.schema import Fields, array_of

Positions = NDArray[Any]


def read_relaxed_positions(path: Path) -> dict[str, Positions]:
    """Positions ``(n, 3)`` in Å by sid, of the host's ``relaxed_positions.npz``.

    Raises:
        ValueError: another file, a sid twice, or a position that is no number.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            ids, positions, cuts = file["ids"].astype(str), file["pos"], file["chunk_idx"]
        parts = np.split(positions.reshape(-1, 3), cuts)
        if len(parts) != len(ids):
            raise ValueError(f"{len(parts)} structures for {len(ids)} ids")
    except (
        OSError,
        EOFError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        BadZipFile,
    ) as error:
        raise ValueError(
            f"{path}: not a relaxed_positions.npz ({error}); task.write_pos: true writes one"
        ) from error
    names = ids.tolist()
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: sid {doubled[0]} is there twice; relax the LMDB again")
    for name, part in zip(names, parts, strict=True):
        if not np.isfinite(part).all():
            raise ValueError(f"{path}: sid {name}: its positions are not all numbers; relax again")
    return dict(zip(names, parts, strict=True))


def whole_structure(record: Fields, positions: Positions) -> Positions:
    """Positions ``(N, 3)``, Å, of all atoms of a record whose free part was relaxed.

    ``graph_rewiring: remove-tag-0`` in a loader takes the subsurface atoms out of the records; they
    are fixed, so they are where they were.

    Args:
        record: before the relaxation.
        positions: of all its atoms, or of those with a tag above 0.

    Raises:
        ValueError: of another number of atoms.
    """
    start = array_of(record["pos"])
    if positions.shape == start.shape:
        return positions
    seen = array_of(record["tags"]) > 0
    if positions.shape != (int(seen.sum()), 3) or not array_of(record["fixed"])[~seen].all():
        raise ValueError(
            f"sid {record['sid']} has {len(start)} atoms, {int(seen.sum())} of them above the "
            f"subsurface; {len(positions)} were relaxed: set dataset.relax.transforms: {{}}"
        )
    found = start.astype(positions.dtype)
    found[seen] = positions
    return found
