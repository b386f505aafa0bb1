"""Supernodes: one atom in place of all subsurface atoms of a record, or of those of one element.

A supernode stands where PhAST puts it: at the mean of its atoms in the plane of the slab and at
the height of the highest of them. Its edges depart from PhAST, whose edge vectors follow from that
place and thereby from the periodic image in which each atom happens to be written down: here an
atom's edge to a supernode is the mean of its edges to the atoms that the supernode replaces. That
turns with the structure and is the same for every image.

Source: PhAST (arXiv 2211.12020), section 4.1.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import Data

from ocp_faenet.adapters.records import record_name
from ocp_faenet.geometry.segments import segment_mean, segment_sum

#: Per-edge keys of an OC20 record; the edge axis of ``edge_index`` is its last one.
EDGE_KEYS = frozenset({"edge_index", "cell_offsets", "edge_distance_vec", "distances"})
#: Per-graph keys whose first axis is never the atom axis, whatever its length.
GRAPH_KEYS = frozenset({"cell", "pbc", "natoms", "sid", "fid", "id", "energy", "y"})
#: Atomic number of a supernode that stands for several elements, as in PhAST: 83 + 1, an element
#: that OC20 does not contain.
MIXED = 84
#: Å: an edge to a supernode that is shorter than this has no direction to tell, and is dropped.
_NO_DIRECTION = 1e-3


@dataclass(frozen=True)
class Merge:
    """Which atoms go into which supernode.

    Attributes:
        keep: ``(N,)`` mask of the ``M`` atoms that stay; they keep their order.
        member: ``(N - M,)`` supernode of each of the others.
        numbers: ``(S,)`` atomic numbers of the supernodes, which come after the atoms that stay.
    """

    keep: Tensor
    member: Tensor
    numbers: Tensor

    @property
    def size(self) -> int:
        """``S``."""
        return self.numbers.shape[0]

    @property
    def place(self) -> Tensor:
        """``(N,)`` new number of each atom, or of the supernode that it went into."""
        place = torch.cumsum(self.keep, 0) - 1
        place[~self.keep] = int(self.keep.sum()) + self.member
        return place


def merge_all(data: Data, keep: Tensor) -> Merge:
    """One supernode, of atomic number `MIXED`, for all atoms outside ``keep`` ``(N,)``.

    Raises:
        ValueError: the record holds a real atom of that number.
    """
    numbers = data.atomic_numbers
    if bool((numbers == MIXED).any()):
        raise ValueError(
            f"{record_name(data)}: an atom of atomic number {MIXED}, which stands for the "
            "supernode of one-supernode-per-graph; use one-supernode-per-atom-type, or drop it"
        )
    gone = int((~keep).sum())
    member = torch.zeros(gone, dtype=torch.int64)
    return Merge(keep, member, numbers.new_full((min(gone, 1),), MIXED))


def merge_by_element(data: Data, keep: Tensor) -> Merge:
    """A supernode for each element outside ``keep`` ``(N,)``, by atomic number."""
    numbers, member = torch.unique(data.atomic_numbers[~keep], return_inverse=True)
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
    out = copy.copy(data)
    positions = supernode_positions(data, merge)
    for key, value in data.items():
        if key in EDGE_KEYS or key in GRAPH_KEYS or not torch.is_tensor(value):
            continue
        if value.dim() > 0 and value.shape[0] == merge.keep.numel():
            new = _supernode_values(data, key, merge, positions)
            out[key] = torch.cat([value[merge.keep], new.to(value.dtype)])
    natoms = int(merge.keep.sum()) + merge.size
    if "natoms" in data:
        out.natoms = _like(data.natoms, natoms)
    if "num_nodes" in data:
        out.num_nodes = natoms
    if "edge_index" in data and data.edge_index is not None:
        _join(data, out, merge)
    return out


def supernode_positions(data: Data, merge: Merge) -> Tensor:
    """``(S, 3)``, Å: mean of the atoms along the slab, the highest of them across it.

    Up is normal to the first two lattice vectors (z without a cell), towards the atoms that stay.
    """
    x = data.pos.double()
    up = x.new_tensor([0.0, 0.0, 1.0])
    if "cell" in data and data.cell is not None:
        cell = data.cell.view(3, 3).double()
        normal = torch.linalg.cross(cell[0], cell[1])
        up = normal / normal.norm() if bool(normal.norm() > 0) else up
    height = x @ up
    gone = height[~merge.keep]
    if merge.size and height[merge.keep].mean() < gone.mean():
        up, height, gone = -up, -height, -gone
    mean = segment_mean(x[~merge.keep], merge.member, merge.size)
    top = mean.new_full((merge.size,), -torch.inf)
    top = top.scatter_reduce(0, merge.member, gone, "amax")
    return mean + (top - mean @ up).unsqueeze(-1) * up


def _supernode_values(data: Data, key: str, merge: Merge, positions: Tensor) -> Tensor:
    """``(S, ...)`` what the supernodes have under a per-atom key."""
    constant = {"tags": 0, "fixed": 1}
    values = data[key][~merge.keep]
    if key in constant:
        return values.new_full((merge.size, *values.shape[1:]), constant[key])
    if key == "atomic_numbers":
        return merge.numbers
    if key == "pos":
        return positions
    if key == "pos_relaxed":
        moved = values.double() - data.pos[~merge.keep].double()
        return positions + segment_mean(moved, merge.member, merge.size)
    flat = values.double().unsqueeze(-1).flatten(1)
    total = segment_sum(flat, merge.member, merge.size).view(-1, *values.shape[1:])
    if key in ("force", "forces"):
        return total
    mean = segment_mean(flat, merge.member, merge.size)
    if not values.is_floating_point() and not torch.equal(mean[merge.member], flat):
        raise ValueError(
            f"{record_name(data)}: {key!r} differs among the atoms of one supernode and is no real "
            "number that could be averaged; drop the key, or use graph_rewiring: remove-tag-0"
        )
    return mean.view(-1, *values.shape[1:])


def _join(data: Data, out: Data, merge: Merge) -> None:
    """Give ``out`` the edges among the atoms that stay, and those to supernodes."""
    source, target = data.edge_index
    stays = merge.keep[source] & merge.keep[target]
    ends, vectors, offsets = _supernode_edges(data, out.pos, merge)
    edge_index = torch.cat([merge.place[data.edge_index[:, stays]], ends], dim=1)
    order = torch.argsort(edge_index[1], stable=True)
    out.edge_index = edge_index[:, order]
    new = {
        "cell_offsets": offsets,
        "edge_distance_vec": vectors,
        "distances": vectors.norm(dim=-1),
    }
    for key, values in new.items():
        if key in data and torch.is_tensor(data[key]):
            out[key] = torch.cat([data[key][stays].to(out.pos.dtype), values.to(out.pos.dtype)])[
                order
            ]
    for key in ("neighbors", "nedges"):
        if key in data:
            out[key] = _like(data[key], edge_index.shape[1])


def _supernode_edges(data: Data, pos: Tensor, merge: Merge) -> tuple[Tensor, Tensor, Tensor]:
    """Edges between atoms and supernodes, both directions of each.

    Args:
        data: the record as it was.
        pos: ``(M + S, 3)`` positions of the atoms that stay and of the supernodes, as stored.
        merge: of ``data``.

    Returns:
        ``(2, P)`` new numbers, source above target; ``(P, 3)`` source minus target, Å;
        ``(P, 3)`` offsets, in cells, that give these vectors. Float64.
    """
    source, target = data.edge_index
    mixed = merge.keep[source] ^ merge.keep[target]
    source, target = source[mixed], target[mixed]
    outward = merge.keep[target]  # from an atom that stays to one that goes
    atom = torch.where(outward, target, source)
    gone = torch.where(outward, source, target)
    x = data.pos.double()
    periodic = "cell_offsets" in data and data.cell_offsets is not None
    vectors = x[gone] - x[atom]
    if periodic:
        cell = _invertible(data)
        shift = data.cell_offsets[mixed].double() @ cell
        vectors = vectors + torch.where(outward.unsqueeze(-1), shift, -shift)
    pairs, pair = torch.unique(
        torch.stack([merge.place[atom], merge.place[gone]]), dim=1, return_inverse=True
    )
    low, high = pairs
    apart = pos[high].double() - pos[low].double()
    mean = segment_mean(vectors, pair, pairs.shape[1]) if periodic else apart
    far = mean.norm(dim=-1) > _NO_DIRECTION
    low, high, mean, apart = low[far], high[far], mean[far], apart[far]
    offsets = (mean - apart) @ torch.linalg.inv(cell) if periodic else torch.zeros_like(mean)
    ends = torch.stack([torch.cat([high, low]), torch.cat([low, high])])
    return ends, torch.cat([mean, -mean]), torch.cat([offsets, -offsets])


def _invertible(data: Data) -> Tensor:
    """``(3, 3)`` float64 cell."""
    cell: Tensor = data.cell.view(3, 3).double()
    if not bool(torch.linalg.det(cell).abs() > 0):
        raise ValueError(
            f"{record_name(data)}: its cell is singular, so supernodes have no periodic edges; "
            "repair the cell, or use graph_rewiring: remove-tag-0"
        )
    return cell


def _like(value: object, count: int) -> object:
    """``count`` as a tensor of the kind that ``value`` is, or as a plain number."""
    return torch.full_like(value, count) if isinstance(value, Tensor) else count
