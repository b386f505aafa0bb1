"""What a ranking saves the reference, by the number of candidates that it is handed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ocp_faenet.metrics.dense import success


@dataclass(frozen=True)
class Ends:
    """Where the reference's relaxations of the candidates of one system ended, best ranked first.

    Attributes:
        calls: evaluations of energy and forces that each took.
        energies: adsorption energies in eV; ``None`` where the end counts for nothing, an anomaly
            say.
        lowest: the system's minimum in eV.
    """

    calls: Sequence[int]
    energies: Sequence[float | None]
    lowest: float

    def calls_until(self, k: int) -> int:
        """Evaluations behind the first ``k`` candidates."""
        return sum(self.calls[:k])

    def found_by(self, k: int) -> bool:
        """Whether one of the first ``k`` ends within 0.1 eV of the minimum, or below it."""
        known = [energy for energy in self.energies[:k] if energy is not None]
        return any(success(energy, self.lowest)[0] for energy in known)


def by_candidates(systems: Sequence[Ends], k: int) -> dict[str, float]:
    """Of the first ``k`` candidates of each system: ``calls``, mean over systems, their median
    ``calls_median``, and ``found``, the share of systems whose minimum one of them finds.

    Raises:
        ValueError: no systems.
    """
    if not systems:
        raise ValueError("no system to count calls of")
    calls = [each.calls_until(k) for each in systems]
    found = [each.found_by(k) for each in systems]
    return {
        "calls": float(np.mean(calls)),
        "calls_median": float(np.median(calls)),
        "found": float(np.mean(found)),
    }


def each_candidate(systems: Sequence[Ends]) -> dict[str, float]:
    """Calls of one candidate, over all of them: ``mean`` and ``median``."""
    calls = [count for each in systems for count in each.calls]
    return {"mean": float(np.mean(calls)), "median": float(np.median(calls))}
