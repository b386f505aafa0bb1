"""Scores of relaxed structures (OC20, arXiv 2010.09990, section 3: IS2RS); numpy alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Thresholds of ADwT, Å, and of AFbT, eV/Å.
DISTANCES = np.arange(0.01, 0.5, 0.001)
FORCES = np.arange(0.01, 0.4, 0.001)
#: Threshold of FbT, eV/Å.
RELAXED = 0.05


def mean_distance(predicted: ArrayLike, target: ArrayLike, cell: ArrayLike) -> float:
    """Mean over atoms of the distance between ``predicted`` and ``target`` ``(n, 3)``, Å.

    The nearest image is taken along each lattice vector (rows of ``cell``, all periodic), as
    OC20's evaluator does.
    """
    cell = np.asarray(cell, dtype=np.float64).reshape(3, 3)
    apart = np.asarray(predicted, dtype=np.float64) - np.asarray(target, dtype=np.float64)
    fractional = np.linalg.solve(cell.T, apart.T).T
    fractional -= np.round(fractional)
    return float(np.linalg.norm(fractional @ cell, axis=1).mean())


def max_force(forces: ArrayLike) -> float:
    """Largest norm among ``forces`` ``(n, 3)``; 0 for no atoms."""
    norms = np.linalg.norm(np.asarray(forces, dtype=np.float64).reshape(-1, 3), axis=1)
    return float(norms.max(initial=0.0))


def average_below(values: ArrayLike, thresholds: NDArray[Any]) -> float:
    """Share of ``values`` below a threshold, averaged over ``thresholds``: ADwT and AFbT.

    Raises:
        ValueError: no values.
    """
    found = np.asarray(values, dtype=np.float64)
    if not found.size:
        raise ValueError("no structure to score")
    return float((found[:, None] < thresholds[None]).mean())


def share_below(values: ArrayLike, threshold: float) -> float:
    """Share of ``values`` below ``threshold``: FbT at `RELAXED`."""
    return average_below(values, np.array([threshold]))
