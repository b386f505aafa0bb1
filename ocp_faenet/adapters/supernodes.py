"""Supernodes: one atom in place of all subsurface atoms of a record, or of those of one element.

A supernode stands where PhAST puts it: at the mean of its atoms in the plane of the slab and at
the height of the highest of them. Its edges depart from PhAST, whose edge vectors follow from that
place and thereby from the periodic image in which each atom happens to be written down: here an
atom's edge to a supernode is the mean of its edges to the atoms that the supernode replaces. That
turns with the structure and is the same for every image.

Workers do this for every record of every epoch, with arrays of a few hundred rows: NumPy takes
less than half of PyTorch's time there.

Source: PhAST (arXiv 2211.12020), section 4.1.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch_geometric.data import Data

from ocp_faenet.adapters.records import record_name

#: Per-edge keys of an OC20 record; the edge axis of ``edge_index`` is its last one.
EDGE_KEYS = frozenset({"edge_index", "cell_offsets", "edge_distance_vec", "distances"})
#: Per-graph keys whose first axis is never the atom axis, whatever its length.
GRAPH_KEYS = frozenset({"cell", "pbc", "natoms", "sid", "fid", "id", "energy", "y"})
#: Atomic number of a supernode that stands for several elements, as in PhAST: 83 + 1, an element
#: that OC20 does not contain.
MIXED = 84
#: Å: an edge to a supernode that is shorter than this has no direction to tell, and is dropped.
_NO_DIRECTION = 1e-3

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Merge:
    """Which atoms go into which supernode.

    Attributes:
        keep: ``(N,)`` mask of the ``M`` atoms that stay; they keep their order.
        member: ``(N - M,)`` supernode of each of the others.
        numbers: ``(S,)`` atomic numbers of the supernodes, which come after the atoms that stay.
    """

    keep: Array
    member: Array
    numbers: Array

    @property
    def size(self) -> int:
        """``S``."""
        return len(self.numbers)

    def mean(self, values: Array) -> Array:
        """``(S, ...)`` means over the rows ``(N - M, ...)`` of the atoms that go."""
        count = np.bincount(self.member, minlength=self.size)
        return self.total(values) / count.reshape(-1, *[1] * (values.ndim - 1))

    def total(self, values: Array) -> Array:
        """``(S, ...)`` sums, likewise."""
        return _sums(values, self.member, self.size)


def merge_all(data: Data, keep: Array) -> Merge:
    """One supernode, of atomic number `MIXED`, for all atoms outside ``keep`` ``(N,)``.

    Raises:
        ValueError: the record holds a real atom of that number.
    """
    numbers = data.atomic_numbers.numpy()
    if (numbers == MIXED).any():
        raise ValueError(
            f"{record_name(data)}: an atom of atomic number {MIXED}, which stands for the "
            "supernode of one-supernode-per-graph; use one-supernode-per-atom-type, or drop it"
        )
    gone = int((~keep).sum())
    return Merge(keep, np.zeros(gone, dtype=np.int64), np.full(min(gone, 1), MIXED))


def merge_by_element(data: Data, keep: Array) -> Merge:
    """A supernode for each element outside ``keep`` ``(N,)``, by atomic number."""
    numbers, member = np.unique(data.atomic_numbers.numpy()[~keep], return_inverse=True)
    return Merge(keep, member, numbers)


def with_supernodes(data: Data, merge: Merge) -> Data:
    """A copy of ``data`` in which supernodes stand for the atoms of ``merge``.

    A supernode has tag 0, is fixed, and carries the sum of its atoms' forces (the force on all of
    them moved together, so the net force stays), the mean of other per-atom numbers. It is joined,
    in both directions, to every atom that had an edge with one of its atoms; edges among the
    atoms that go are dropped. ``cell_offsets`` become floats: those of supernodes are fractions.

    Raises:
        ValueError: an unknown per-atom integer that the atoms of one supernode do not share; a
            singular cell.
    """
    stored = {k: v.numpy() if torch.is_tensor(v) else v for k, v in data.to_dict().items()}
    positions = supernode_positions(stored, merge)
    changes: dict[str, Array] = {}
    for key, old in stored.items():
        if key in EDGE_KEYS or key in GRAPH_KEYS or not isinstance(old, np.ndarray):
            continue
        if old.ndim > 0 and len(old) == len(merge.keep):
            try:
                new = _supernode_values(stored, key, merge, positions)
            except ValueError as error:
                raise ValueError(f"{record_name(data)}: {error}") from error
            changes[key] = np.concatenate([old[merge.keep], new]).astype(old.dtype)
    natoms = int(merge.keep.sum()) + merge.size
    counts = dict.fromkeys(("natoms", "num_nodes"), natoms)
    if stored.get("edge_index") is not None:
        try:
            changes |= _join(stored, changes["pos"], merge)
        except np.linalg.LinAlgError:
            raise ValueError(
                f"{record_name(data)}: its cell is singular, so supernodes have no periodic "
                "edges; repair the cell, or use graph_rewiring: remove-tag-0"
            ) from None
        counts |= dict.fromkeys(("neighbors", "nedges"), changes["edge_index"].shape[1])
    out = copy.copy(data)
    for key, array in changes.items():
        out[key] = torch.from_numpy(array)
    for key, count in counts.items():
        if key in stored:
            out[key] = like(data[key], count)
    return out


def supernode_positions(stored: Mapping[str, Any], merge: Merge) -> Array:
    """``(S, 3)``, Å: mean of the atoms along the slab, the highest of them across it.

    Up is normal to the first two lattice vectors (z without a cell), towards the atoms that stay.
    """
    x = stored["pos"].astype(np.float64)
    gone = x[~merge.keep]
    up = np.array([0.0, 0.0, 1.0])
    if stored.get("cell") is not None:
        a, b, _ = stored["cell"].reshape(3, 3).astype(np.float64)
        normal = np.cross(a, b)
        length = np.linalg.norm(normal)
        up = normal / length if length > 0 else up
    if merge.size and x[merge.keep].mean(0) @ up < gone.mean(0) @ up:
        up = -up
    mean = merge.mean(gone)
    top = np.full(merge.size, -np.inf)
    np.maximum.at(top, merge.member, gone @ up)
    positions: Array = mean + (top - mean @ up)[:, None] * up
    return positions


def _supernode_values(stored: Mapping[str, Any], key: str, merge: Merge, positions: Array) -> Array:
    """``(S, ...)`` what the supernodes have under a per-atom key."""
    values: Array = stored[key][~merge.keep]
    constant = {"tags": 0, "fixed": 1}
    if key in constant:
        return np.full((merge.size, *values.shape[1:]), constant[key])
    if key == "atomic_numbers":
        return merge.numbers
    if key == "pos":
        return positions
    if key == "pos_relaxed":
        return positions + merge.mean(values.astype(np.float64) - stored["pos"][~merge.keep])
    if key in ("force", "forces"):
        return merge.total(values)
    mean = merge.mean(values)
    if values.dtype.kind != "f" and not np.array_equal(mean[merge.member], values):
        raise ValueError(
            f"{key!r} differs among the atoms of one supernode and is no real number that could be "
            "averaged; drop the key, or use graph_rewiring: remove-tag-0"
        )
    return mean


def _join(stored: Mapping[str, Any], pos: Array, merge: Merge) -> dict[str, Array]:
    """The edges among the atoms that stay, and those to supernodes, by centre."""
    place = np.cumsum(merge.keep) - 1
    place[~merge.keep] = int(merge.keep.sum()) + merge.member
    edge_index = stored["edge_index"]
    stays = merge.keep[edge_index].all(0)
    ends, vectors, offsets = _supernode_edges(stored, pos, merge, place)
    joined = np.concatenate([place[edge_index[:, stays]], ends], axis=1)
    order = np.argsort(joined[1], kind="stable")
    changes = {"edge_index": joined[:, order]}
    new = {
        "cell_offsets": offsets,
        "edge_distance_vec": vectors,
        "distances": np.sqrt(np.square(vectors).sum(-1)),
    }
    for key, values in new.items():
        if stored.get(key) is not None:
            both = np.concatenate([stored[key][stays], values])[order]
            changes[key] = both.astype(pos.dtype)
    return changes


def _supernode_edges(
    stored: Mapping[str, Any], pos: Array, merge: Merge, place: Array
) -> tuple[Array, Array, Array]:
    """Edges between atoms and supernodes, both directions of each.

    Args:
        stored: the record as it was.
        pos: ``(M + S, 3)`` positions of the atoms that stay and of the supernodes, as stored.
        merge: of it.
        place: ``(N,)`` new number of each atom, or of the supernode that it went into.

    Returns:
        ``(2, P)`` new numbers, source above target; ``(P, 3)`` source minus target, Å;
        ``(P, 3)`` offsets, in cells, that give these vectors. Float64.

    Raises:
        LinAlgError: a singular cell.
    """
    source, target = stored["edge_index"]
    outward = merge.keep[target] & ~merge.keep[source]  # from an atom that stays to one that goes
    inward = merge.keep[source] & ~merge.keep[target]
    atom = np.concatenate([target[outward], source[inward]])
    gone = np.concatenate([source[outward], target[inward]])
    pair = place[atom] * len(pos) + place[gone]
    pairs, number = np.unique(pair, return_inverse=True)
    low, high = pairs // len(pos), pairs % len(pos)
    apart = pos[high].astype(np.float64) - pos[low]
    if stored.get("cell_offsets") is None:
        return _both_ways(low, high), np.concatenate([apart, -apart]), np.zeros((2 * len(low), 3))
    cell = stored["cell"].reshape(3, 3).astype(np.float64)
    images = stored["cell_offsets"].astype(np.float64)
    shift = np.concatenate([images[outward], -images[inward]]) @ cell
    x = stored["pos"].astype(np.float64)
    count = np.bincount(number, minlength=len(pairs))[:, None]
    mean = _sums(x[gone] - x[atom] + shift, number, len(pairs)) / count
    far = np.square(mean).sum(-1) > _NO_DIRECTION**2
    mean, offsets = mean[far], (mean - apart)[far] @ np.linalg.inv(cell)
    ends = _both_ways(low[far], high[far])
    return ends, np.concatenate([mean, -mean]), np.concatenate([offsets, -offsets])


def _both_ways(low: Array, high: Array) -> Array:
    """``(2, 2 P)`` edges ``high`` to ``low`` and back."""
    return np.stack([np.concatenate([high, low]), np.concatenate([low, high])])


def _sums(values: Array, index: Array, size: int) -> Array:
    """``(size, ...)`` float64 sums of the rows of ``values`` that share an ``index``."""
    columns = values.reshape(len(values), int(np.prod(values.shape[1:]))).T
    sums = [np.bincount(index, column, minlength=size) for column in columns]
    return np.array(sums).T.reshape(size, *values.shape[1:])


def like(value: Any, count: int) -> Any:
    """``count`` as a tensor of the kind that ``value`` is, or as a plain number."""
    return torch.full_like(value, count) if isinstance(value, torch.Tensor) else count
