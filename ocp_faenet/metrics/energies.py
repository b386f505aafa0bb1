"""Errors of energies, and what the simplest predictor would make (numpy alone)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class EnergyErrors:
    """Mean absolute error in eV and mean squared error in eV²."""

    mae: float
    mse: float


def energy_errors(prediction: ArrayLike, target: ArrayLike) -> EnergyErrors:
    """Errors of ``prediction`` (n,) against ``target`` (n,), both in eV.

    Raises:
        ValueError: different lengths, nothing to compare, or a value that is not finite.
    """
    predicted, values = _finite("prediction", prediction), _finite("target", target)
    if predicted.shape != values.shape or not values.size:
        raise ValueError(f"{predicted.size} predictions for {values.size} targets")
    difference = predicted - values
    return EnergyErrors(float(np.abs(difference).mean()), float((difference**2).mean()))


def mean_baseline(train: ArrayLike, target: ArrayLike) -> EnergyErrors:
    """Errors of predicting the mean of ``train`` for every entry of ``target``."""
    values = np.asarray(target, dtype=np.float64)
    return energy_errors(np.full(values.shape, _finite("train", train).mean()), values)


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and standard deviation with n - 1 (0 for a single value)."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else 0.0


def _finite(name: str, values: ArrayLike) -> NDArray[Any]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name}: shape {array.shape}; one energy per system is needed")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: {int((~np.isfinite(array)).sum())} values are not finite")
    return array
