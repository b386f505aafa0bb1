"""Rigid motions of an adsorbate over its surface: sliding, lifting, turning."""

from __future__ import annotations

import numpy as np

from ocp_faenet.data.pairs import Floats
from ocp_faenet.data.schema import Fields, array_of

#: Å; how far the adsorbate is lifted.
HEIGHTS = np.linspace(-0.2, 1.6, 10)


def slid(record: Fields, count: int) -> Floats:
    """The adsorbate over a grid of the cell, always as close to the slab as it was.

    Returns:
        (count, count, N, 3) positions in Å; the first two axes are steps along the cell's first and
        second vector, the first position is that of the record but for its height.
    """
    positions, cell, adsorbate = _parts(record)
    steps = np.arange(count) / count
    shifts = steps[:, None, None] * cell[0] + steps[None, :, None] * cell[1]
    closest = _closest(positions, cell, adsorbate)
    out = np.repeat(np.repeat(positions[None, None], count, 0), count, 1)
    for i in range(count):
        for j in range(count):
            out[i, j, adsorbate] += shifts[i, j]
            out[i, j, adsorbate, 2] += _rise(out[i, j], cell, adsorbate, closest)
    return out


def lifted(record: Fields, heights: Floats = HEIGHTS) -> Floats:
    """The adsorbate moved along the third axis: (len(heights), N, 3) positions in Å."""
    positions, _, adsorbate = _parts(record)
    out = np.repeat(positions[None], len(heights), 0)
    out[:, adsorbate, 2] += heights[:, None]
    return out


def turned(record: Fields, count: int) -> Floats:
    """The adsorbate turned about the vertical through its first atom: (count, N, 3) in Å."""
    positions, _, adsorbate = _parts(record)
    out = np.repeat(positions[None], count, 0)
    centre = positions[adsorbate][0]
    for k, angle in enumerate(2 * np.pi * np.arange(count) / count):
        c, s = np.cos(angle), np.sin(angle)
        rotation = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
        out[k, adsorbate] = (positions[adsorbate] - centre) @ rotation.T + centre
    return out


def _parts(record: Fields) -> tuple[Floats, Floats, Floats]:
    adsorbate = np.asarray(array_of(record["tags"]) == 2)
    if not adsorbate.any() or adsorbate.all():
        raise ValueError(f"sid {record.get('sid')}: tags of an adsorbate and a slab are needed")
    cell = array_of(record["cell"]).reshape(3, 3).astype(np.float64)
    return array_of(record["pos"]).astype(np.float64), cell, adsorbate


def _lateral(positions: Floats, cell: Floats, adsorbate: Floats) -> tuple[Floats, Floats]:
    """In-plane distances squared and height differences (n, M), nearest image in the plane."""
    apart = positions[adsorbate][:, None] - positions[~adsorbate][None]
    plane = cell[:2, :2]
    turns = np.rint(apart[..., :2] @ np.linalg.inv(plane))
    shortest = apart[..., :2] - turns @ plane
    return np.square(shortest).sum(-1), apart[..., 2]


def _closest(positions: Floats, cell: Floats, adsorbate: Floats) -> float:
    flat, high = _lateral(positions, cell, adsorbate)
    return float(np.sqrt(flat + high**2).min())


def _rise(positions: Floats, cell: Floats, adsorbate: Floats, closest: float) -> float:
    """How far up, so that no slab atom is closer than ``closest`` and one is as close."""
    flat, high = _lateral(positions, cell, adsorbate)
    room = closest**2 - flat
    needed = np.where(room > 0, np.sqrt(np.maximum(room, 0.0)) - high, -np.inf)
    return float(needed.max())
