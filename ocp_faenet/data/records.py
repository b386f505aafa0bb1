"""OC20-schema records: what is stored for one structure, and how it becomes a PyG `Data`.

Positions, cells and forces are float32, energies Python floats, as in OC20's own LMDBs; labels
belong to exactly these float32 positions. `edge_index[0]` is the neighbour, `edge_index[1]` the
centre; edges are sorted by centre, then by distance; with `cell_offsets` the displacement is
`pos[neighbour] - pos[centre] + cell_offsets @ cell`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch_geometric.data import Data

from ocp_faenet.data.pairs import Floats, PairList, nearest_pairs, periodic_pairs

#: Radius (Å) and number of neighbours of the stored edges, as in OC20's preprocessing.
EDGE_CUTOFF = 6.0
MAX_NEIGHBORS = 50

#: A structure as plain arrays and numbers, small enough to be cached.
Arrays = dict[str, Any]


def stored_edges(positions: Floats, cell: Floats) -> PairList:
    """Edges of a record: at most 50 nearest neighbours within 6 Å, strictly periodic."""
    pairs = periodic_pairs(positions, cell, EDGE_CUTOFF)
    return nearest_pairs(pairs, len(positions), MAX_NEIGHBORS)


def pack_edges(positions: Floats, cell: Floats) -> Arrays:
    """Edges in the smallest types that hold them, for the cache."""
    edges = stored_edges(positions, cell)
    return {
        "edge_index": np.stack([edges.neighbour, edges.centre]).astype(np.int16),
        "cell_offsets": edges.offsets.astype(np.int8),
        "distances": edges.distances.astype(np.float32),
    }


_FLOAT_KEYS = ("pos", "pos_relaxed", "cell", "atomic_numbers", "fixed", "distances", "force")
_LONG_KEYS = ("tags", "edge_index", "cell_offsets")


def to_data(arrays: Arrays) -> Data:
    """A PyG `Data` with OC20's types: float32 and int64 tensors, Python numbers as they are.

    `cell` becomes (1, 3, 3); `natoms` is added.
    """
    fields: dict[str, Any] = {}
    for key, value in arrays.items():
        if key in _FLOAT_KEYS:
            fields[key] = torch.from_numpy(np.array(value, dtype=np.float32))
        elif key in _LONG_KEYS:
            fields[key] = torch.from_numpy(np.array(value, dtype=np.int64))
        else:
            fields[key] = value
    fields["cell"] = fields["cell"].reshape(1, 3, 3)
    fields["natoms"] = len(fields["pos"])
    return Data(**fields)
