"""The edges that are stored with a structure, and structures as plain arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from ocp_faenet.data.pairs import Floats, PairList, nearest_pairs, periodic_pairs

#: Radius (Å) and number of neighbours of the stored edges, as in OC20's preprocessing.
EDGE_CUTOFF = 6.0
MAX_NEIGHBORS = 50

#: A structure as arrays and numbers by key, in the smallest types that hold them.
Arrays = dict[str, Any]


def stored_edges(positions: Floats, cell: Floats) -> PairList:
    """Edges of a record: at most 50 nearest neighbours within 6 Å, strictly periodic."""
    pairs = periodic_pairs(positions, cell, EDGE_CUTOFF)
    return nearest_pairs(pairs, len(positions), MAX_NEIGHBORS)


def pack_edges(positions: Floats, cell: Floats) -> Arrays:
    """`edge_index` (2, E) neighbour and centre, `cell_offsets` (E, 3), `distances` (E,) in Å."""
    edges = stored_edges(positions, cell)
    return {
        "edge_index": np.stack([edges.neighbour, edges.centre]).astype(np.int16),
        "cell_offsets": edges.offsets.astype(np.int8),
        "distances": edges.distances.astype(np.float32),
    }
