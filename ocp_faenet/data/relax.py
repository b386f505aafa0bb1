"""Local minimisation of free atoms, recording every accepted step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ocp_faenet.data.emt import EmtResult
from ocp_faenet.data.pairs import Floats

_MEMORY = 40
_CURVATURE = 40.0  # eV/Å², inverse of the first step's scale
_MAX_STEP = 0.15  # Å, longest move of one atom in one step


@dataclass(frozen=True)
class Relaxation:
    """A minimisation: `frames` (S, N, 3) in Å, the first being the start, the last the end."""

    converged: bool
    frames: Floats

    @property
    def steps(self) -> int:
        """Number of moves."""
        return len(self.frames) - 1


def relax(
    potential: Callable[[Floats], EmtResult],
    start: Floats,
    free: NDArray[np.bool_],
    *,
    fmax: float,
    max_steps: int,
) -> Relaxation:
    """Limited-memory BFGS with a trust radius, without line search (as ASE's LBFGS works).

    Deterministic: the same input gives the same frames.

    Args:
        potential: maps positions (N, 3) to energy and forces.
        start: (N, 3) in Å.
        free: (N,) atoms that may move.
        fmax: stop when no free atom feels more than this, in eV/Å.
        max_steps: give up after as many moves.
    """
    positions = start.copy()
    frames = [positions.copy()]
    history: deque[tuple[Floats, Floats, float]] = deque(maxlen=_MEMORY)
    gradient = -potential(positions).forces[free].ravel()
    while not _below(gradient, fmax):
        if len(frames) > max_steps:
            return Relaxation(False, np.stack(frames))
        move = _two_loop(gradient, history).reshape(-1, 3)
        longest = float(np.sqrt(np.square(move).sum(axis=1).max()))
        move *= min(1.0, _MAX_STEP / longest)
        positions[free] += move
        frames.append(positions.copy())
        new_gradient = -potential(positions).forces[free].ravel()
        change, step = new_gradient - gradient, move.ravel()
        curvature = float((change * step).sum())
        if curvature > 1e-10:
            history.append((step, change, 1.0 / curvature))
        gradient = new_gradient
    return Relaxation(True, np.stack(frames))


def _below(gradient: Floats, fmax: float) -> bool:
    return bool(np.square(gradient.reshape(-1, 3)).sum(axis=1).max() < fmax * fmax)


def _two_loop(gradient: Floats, history: deque[tuple[Floats, Floats, float]]) -> Floats:
    """Quasi-Newton step (Nocedal and Wright, Numerical Optimization, algorithm 7.4)."""
    q = gradient.copy()
    weights = []
    for step, change, rho in reversed(history):
        alpha = rho * float((step * q).sum())
        q -= alpha * change
        weights.append(alpha)
    q /= _CURVATURE
    for (step, change, rho), alpha in zip(history, reversed(weights), strict=True):
        q += step * (alpha - rho * float((change * q).sum()))
    return -q
