"""How a model's energy answers to a motion of the adsorbate (numpy alone)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Response:
    """Agreement of two responses, their means taken out.

    Attributes:
        explained: one minus the squared difference over the square of the reference's response:
            1 for the reference itself, 0 for a model that does not answer at all, negative for
            one that had better not.
        amplitude: standard deviation of the model's response over the reference's.
        spread: standard deviation of the reference's response, eV.
        points: positions that were compared.
    """

    explained: float
    amplitude: float
    spread: float
    points: int


def response(curves: Sequence[tuple[ArrayLike, ArrayLike]]) -> Response:
    """Agreement over several motions, each ``(predicted, reference)``, ``(n,)`` in eV.

    Each motion is measured from its own mean, so that an error that a whole system shares does not
    count. Positions where either is NaN are left out.

    Raises:
        ValueError: different lengths, no motion with two positions, or a reference that does not
            change.
    """
    model: list[NDArray[Any]] = []
    truth: list[NDArray[Any]] = []
    for predicted, reference in curves:
        p, r = np.asarray(predicted, np.float64).ravel(), np.asarray(reference, np.float64).ravel()
        if p.shape != r.shape:
            raise ValueError(f"{p.size} predicted energies for {r.size} of the reference")
        known = np.isfinite(p) & np.isfinite(r)
        if known.sum() > 1:
            model.append(p[known] - p[known].mean())
            truth.append(r[known] - r[known].mean())
    if not model:
        raise ValueError("no motion with two positions that count")
    p, r = np.concatenate(model), np.concatenate(truth)
    scale = float(r @ r)
    if scale == 0:
        raise ValueError("the reference does not change along these motions")
    return Response(
        explained=1.0 - float((p - r) @ (p - r)) / scale,
        amplitude=float(np.sqrt(p @ p / scale)),
        spread=float(np.sqrt(scale / len(r))),
        points=len(r),
    )
