"""Local minimisation of free atoms, recording every accepted step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ocp_faenet.data.emt import EmtResult
from ocp_faenet.data.pairs import Floats

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
    hopeless: Callable[[Floats], bool] = lambda positions: False,
) -> Relaxation:
    """BFGS with a limited step, without line search (as ASE's optimisers work).

    Deterministic: the same input gives the same frames.

    Args:
        potential: maps positions (N, 3) to energy and forces.
        start: (N, 3) in Å.
        free: (N,) atoms that may move.
        fmax: stop when no free atom feels more than this, in eV/Å.
        max_steps: give up after as many moves.
        hopeless: give up as soon as this holds of the positions (N, 3).
    """
    positions = start.copy()
    frames = [positions.copy()]
    inverse = np.eye(3 * int(free.sum())) / _CURVATURE
    gradient = -potential(positions).forces[free].ravel()
    while not _below(gradient, fmax):
        if len(frames) > max_steps or hopeless(positions):
            return Relaxation(False, np.stack(frames))
        move = -(inverse @ gradient).reshape(-1, 3)
        longest = float(np.sqrt(np.square(move).sum(axis=1).max()))
        move *= min(1.0, _MAX_STEP / longest)
        positions[free] += move
        frames.append(positions.copy())
        new_gradient = -potential(positions).forces[free].ravel()
        _update(inverse, move.ravel(), new_gradient - gradient)
        gradient = new_gradient
    return Relaxation(True, np.stack(frames))


def _below(gradient: Floats, fmax: float) -> bool:
    return bool(np.square(gradient.reshape(-1, 3)).sum(axis=1).max() < fmax * fmax)


def _update(inverse: Floats, step: Floats, change: Floats) -> None:
    """BFGS update of the inverse Hessian, in place (Nocedal and Wright, eq. 6.17).

    Skipped where the curvature along the step is not positive.
    """
    curvature = float((step * change).sum())
    if curvature < 1e-10:
        return
    turned = inverse @ change
    scale = (1.0 + float((change * turned).sum()) / curvature) / curvature
    cross = np.outer(turned, step) / curvature
    inverse += scale * np.outer(step, step) - cross - cross.T
