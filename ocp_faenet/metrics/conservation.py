"""How far a force field is from having an energy: closed paths and drifts; numpy alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class ClosedPath:
    """An ellipse in the space of all free coordinates, cut into ``P`` equal steps of angle.

    Attributes:
        positions: ``(P, N, 3)``, Å.
        tangents: ``(P, N, 3)``, Å: the derivative by the angle.
    """

    positions: NDArray[Any]
    tangents: NDArray[Any]


def random_path(
    start: ArrayLike,
    free: ArrayLike,
    *,
    radius: float,
    points: int,
    generator: np.random.Generator,
) -> ClosedPath:
    """A circle of random orientation about ``start``.

    Args:
        start: ``(N, 3)``, Å.
        free: ``(N,)`` mask of the atoms that move.
        radius: root mean square displacement of the atoms that move, Å.
        points: ``P``.
        generator: of the orientation.

    Raises:
        ValueError: no atom can move.
    """
    start = np.asarray(start, dtype=np.float64)
    free = np.asarray(free, dtype=bool)
    if not free.any():
        raise ValueError("every atom is fixed: there is no path")
    axes, _ = np.linalg.qr(generator.normal(size=(3 * int(free.sum()), 2)))
    spread = np.zeros((2, *start.shape))
    spread[:, free] = radius * np.sqrt(free.sum()) * axes.T.reshape(2, -1, 3)
    angle = 2 * np.pi * np.arange(points)[:, None, None] / points
    return ClosedPath(
        start + np.cos(angle) * spread[0] + np.sin(angle) * spread[1],
        -np.sin(angle) * spread[0] + np.cos(angle) * spread[1],
    )


def work(path: ClosedPath, forces: ArrayLike) -> tuple[float, float]:
    """Work around ``path`` and along it without regard to sign, eV.

    The integral of ``F dx`` by the trapezoidal rule, whose error falls exponentially with the
    number of points on a closed path. A force field with an energy does no work around it.

    Args:
        path: the path.
        forces: ``(P, N, 3)`` at its points, eV/Å.
    """
    powers = (np.asarray(forces, dtype=np.float64) * path.tangents).sum((1, 2))  # (P,)
    step = 2 * np.pi / len(powers)
    return float(powers.sum() * step), float(np.abs(powers).sum() * step)


def drift(energies: ArrayLike, times: ArrayLike) -> float:
    """Slope of the total energy against time by least squares, in units of both."""
    slope, _ = np.polyfit(np.asarray(times, float), np.asarray(energies, float), 1)
    return float(slope)
