"""Ratios of sums over independent units, with bootstrap intervals (numpy alone)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A value with the 95 % interval of the bootstrap, ``nan`` where nothing defines it."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        """``value``, ``low``, ``high``; what is undefined or infinite as ``None``."""
        return {
            key: number if math.isfinite(number) else None for key, number in vars(self).items()
        }


def ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    samples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """``sum(numerators) / sum(denominators)``, units resampled with replacement.

    The percentile bootstrap (Efron and Tibshirani 1993, section 13.3): a mean over units has
    denominators of one; a mean over the members of units has their numbers.

    Args:
        numerators: (n,) one for each unit.
        denominators: (n,) likewise; zero for a unit that says nothing.
        samples: of the bootstrap.
        seed: the same units give the same interval.

    Raises:
        ValueError: different lengths.
    """
    top, bottom = (np.asarray(v, dtype=np.float64) for v in (numerators, denominators))
    if top.shape != bottom.shape:
        raise ValueError(f"{top.size} numerators for {bottom.size} denominators")
    if not top.size:
        return Estimate(math.nan, math.nan, math.nan)
    value = _divide(math.fsum(top), math.fsum(bottom))
    chosen = np.random.default_rng(seed).integers(top.size, size=(samples, top.size))
    drawn = [
        _divide(float(a), float(b))
        for a, b in zip(top[chosen].sum(axis=1), bottom[chosen].sum(axis=1), strict=True)
    ]
    defined = [number for number in drawn if not math.isnan(number)]
    if not defined:
        return Estimate(value, math.nan, math.nan)
    low, high = np.quantile(defined, [0.025, 0.975], method="nearest")
    return Estimate(value, float(low), float(high))


def _divide(top: float, bottom: float) -> float:
    if bottom:
        return top / bottom
    return math.nan if top == 0 else math.inf
