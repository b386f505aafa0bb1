"""Periodic pair lists in numpy, for labels and for the stored edges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class PairList:
    """Directed pairs: `centre` sees `neighbour`, displaced by `offsets` cells.

    The displacement is `pos[neighbour] + offsets @ cell - pos[centre]`.
    """

    centre: Ints  # (E,)
    neighbour: Ints  # (E,)
    offsets: Ints  # (E, 3)
    distances: Floats  # (E,) in Å


def _image_shifts(cell: Floats, cutoff: float) -> Ints:
    """Lattice shifts that can bring a wrapped difference within `cutoff`: (M, 3)."""
    heights = 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)  # distance between opposite faces
    reach = np.floor(cutoff / heights + 0.5).astype(np.int64)
    axes = [np.arange(-n, n + 1, dtype=np.int64) for n in reach]
    shifts: Ints = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    return shifts


def periodic_pairs(positions: Floats, cell: Floats, cutoff: float) -> PairList:
    """All ordered pairs closer than `cutoff` under full periodicity, by brute force.

    Args:
        positions: (N, 3) in Å, wrapped or not.
        cell: (3, 3) lattice vectors as rows, in Å; must be invertible.
        cutoff: radius in Å; a pair at exactly this distance is left out.

    Returns:
        The pairs sorted by centre, then by neighbour, then by image; an atom is paired with its own
        images, never with itself.
    """
    n_atoms = len(positions)
    fractional = positions @ np.linalg.inv(cell)
    delta = fractional[None, :, :] - fractional[:, None, :]  # (N, N, 3): centre, neighbour
    wrap = -np.rint(delta).astype(np.int64)
    shifts = _image_shifts(cell, cutoff)  # (M, 3)
    nearest = positions[None, :, :] - positions[:, None, :] + wrap @ cell
    vectors = nearest[:, :, None, :] + (shifts @ cell)[None, None, :, :]  # (N, N, M, 3)
    squared = np.square(vectors).sum(axis=-1)
    keep = squared < cutoff * cutoff
    zero = int(np.flatnonzero((shifts == 0).all(axis=1))[0])
    diagonal = np.arange(n_atoms)
    keep[diagonal, diagonal, zero] = False
    centre, neighbour, image = np.nonzero(keep)
    return PairList(
        centre=centre.astype(np.int64),
        neighbour=neighbour.astype(np.int64),
        offsets=wrap[centre, neighbour] + shifts[image],
        distances=np.sqrt(squared[centre, neighbour, image]),
    )


def nearest_pairs(pairs: PairList, n_atoms: int, max_neighbors: int) -> PairList:
    """Keep the `max_neighbors` nearest pairs of every centre (ties by neighbour and image order).

    Sorted by centre, then by distance, as OC20's preprocessing writes its edges.
    """
    order = np.lexsort((pairs.distances, pairs.centre))
    centre = pairs.centre[order]
    counts = np.bincount(centre, minlength=n_atoms)
    first = np.cumsum(counts) - counts
    order = order[np.arange(len(order)) - first[centre] < max_neighbors]
    return PairList(
        pairs.centre[order], pairs.neighbour[order], pairs.offsets[order], pairs.distances[order]
    )
