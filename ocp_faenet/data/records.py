"""OC20-schema records as PyG `Data`.

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

from ocp_faenet.data.edges import Arrays

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


def fields_of(record: Any) -> dict[str, Any]:
    """Content of a record by key, whichever PyG pickled it.

    Before PyG 2.0 a `Data` was its plain `__dict__`, with `None` for what it did not have.
    """
    content = vars(record)
    store = content.get("_store")
    items = content if store is None else dict(store.items())
    return {key: value for key, value in items.items() if value is not None}
