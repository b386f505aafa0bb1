"""A batch of atomic structures as one graph, checked once and never changed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ocp_faenet.nn.elements import MAX_ATOMIC_NUMBER
from ocp_faenet.nn.nodes import NUM_TAGS
from ocp_faenet.nn.topology import Topology


@dataclass(frozen=True)
class AtomGraph:
    """``B`` structures of together ``N`` atoms and ``E`` directed edges.

    Build it with `AtomGraph.build`, which checks and sorts.

    Attributes:
        positions: ``(N, 3)``, Å.
        atomic_numbers: ``(N,)`` int64, 1 to 118.
        batch: ``(N,)`` int64, ascending: the structure of each atom.
        num_graphs: ``B``.
        edge_index: ``(2, E)`` int64, source ``j`` above target ``i``, sorted by target.
        edge_vectors: ``(E, 3)``, ``x_j - x_i + offset @ cell``, Å.
        cell: ``(B, 3, 3)``, rows are the lattice vectors, Å; ``None`` without periodicity.
        cell_offsets: ``(E, 3)`` image of the source, in cells; ``None`` without periodicity.
        tags: ``(N,)`` int64: 0 subsurface, 1 surface, 2 adsorbate; ``None`` where unknown.
    """

    positions: Tensor
    atomic_numbers: Tensor
    batch: Tensor
    num_graphs: int
    edge_index: Tensor
    edge_vectors: Tensor
    cell: Tensor | None = None
    cell_offsets: Tensor | None = None
    tags: Tensor | None = None

    @classmethod
    def build(
        cls,
        positions: Tensor,
        atomic_numbers: Tensor,
        batch: Tensor,
        num_graphs: int,
        edge_index: Tensor,
        *,
        cell: Tensor | None = None,
        cell_offsets: Tensor | None = None,
        tags: Tensor | None = None,
        cutoff: float | None = None,
    ) -> AtomGraph:
        """Check the parts, drop edges of zero length or beyond ``cutoff`` (Å), sort by target.

        Raises:
            ValueError: shapes that do not fit, positions that are not finite, atomic numbers
                outside 1 to 118, tags outside 0 to 2, edges between structures or out of range.
        """
        atomic_numbers = atomic_numbers.long()
        tags = None if tags is None else tags.long()
        _check_atoms(positions, atomic_numbers, batch, tags)
        if not bool((batch[1:] >= batch[:-1]).all()):
            raise ValueError("batch: atoms of one structure must be contiguous and in order")
        _check_edges(edge_index, batch, cell, cell_offsets, num_graphs)
        graph = cls(
            positions, atomic_numbers, batch, num_graphs, edge_index,
            positions.new_zeros(0, 3), cell, cell_offsets, tags,
        )  # fmt: skip
        graph = graph.with_positions(positions)
        return graph._select_edges(cutoff)

    def with_positions(self, positions: Tensor) -> AtomGraph:
        """The same graph, edge vectors recomputed from ``positions`` ``(N, 3)``.

        Autocast is left out: in bfloat16 an image is off by hundredths of an Å.
        """
        source, target = self.edge_index
        vectors = positions[source] - positions[target]
        if self.cell is not None and self.cell_offsets is not None:
            cells = self.cell.to(positions.dtype)[self.batch[target]]
            offsets = self.cell_offsets.to(positions.dtype)
            with torch.autocast(positions.device.type, enabled=False):
                vectors = vectors + torch.einsum("ei,eij->ej", offsets, cells)
        return replace(self, positions=positions, edge_vectors=vectors)

    def keep_edges(self, keep: Tensor) -> AtomGraph:
        """The graph of the edges that ``keep`` selects: a mask or indices, in the kept order."""
        offsets = None if self.cell_offsets is None else self.cell_offsets[keep]
        return replace(
            self,
            edge_index=self.edge_index[:, keep],
            edge_vectors=self.edge_vectors[keep],
            cell_offsets=offsets,
        )

    def keep_atoms(self, keep: Tensor) -> AtomGraph:
        """The graph of the atoms in the mask ``keep`` ``(N,)`` and of the edges between them."""
        source, target = self.edge_index
        graph = self.keep_edges(keep[source] & keep[target])
        number = keep.cumsum(0) - 1
        return replace(
            graph,
            positions=self.positions[keep],
            atomic_numbers=self.atomic_numbers[keep],
            batch=self.batch[keep],
            edge_index=number[graph.edge_index],
            tags=None if self.tags is None else self.tags[keep],
        )

    def _select_edges(self, cutoff: float | None) -> AtomGraph:
        graph = self
        squared = graph.edge_vectors.detach().square().sum(-1)
        keep = squared > 0
        if cutoff is not None:
            # Stored distances are float32: an edge at the cutoff itself stays.
            keep &= squared <= (cutoff * (1 + 1e-6)) ** 2
        if not bool(keep.all()):
            graph = graph.keep_edges(keep)
        target = graph.edge_index[1]
        if not bool((target[1:] >= target[:-1]).all()):
            graph = graph.keep_edges(torch.argsort(target, stable=True))
        return graph

    @property
    def topology(self) -> Topology:
        """What message passing needs of the graph."""
        source, target = self.edge_index
        return Topology(source, target, self.batch, self.num_graphs)

    @property
    def num_atoms(self) -> int:
        """``N``."""
        return self.positions.shape[0]


def _check_atoms(
    positions: Tensor, atomic_numbers: Tensor, batch: Tensor, tags: Tensor | None
) -> None:
    n = positions.shape[0]
    if positions.shape != (n, 3):
        raise ValueError(f"positions: shape {tuple(positions.shape)}, expected (N, 3)")
    for name, values in (("atomic_numbers", atomic_numbers), ("batch", batch), ("tags", tags)):
        if values is not None and values.shape != (n,):
            raise ValueError(f"{name}: shape {tuple(values.shape)}, expected ({n},), one per atom")
    finite = torch.isfinite(positions.detach()).all(-1)
    if not bool(finite.all()):
        bad = int((~finite).nonzero()[0])
        raise ValueError(
            f"positions: atom {bad} of structure {int(batch[bad])} in the batch is not finite "
            f"({positions[bad].tolist()}); repair or drop the record"
        )
    if n and not bool(((atomic_numbers >= 1) & (atomic_numbers <= MAX_ATOMIC_NUMBER)).all()):
        wrong = (atomic_numbers < 1) | (atomic_numbers > MAX_ATOMIC_NUMBER)
        bad = int(wrong.nonzero()[0])
        raise ValueError(
            f"atomic_numbers: {int(atomic_numbers[bad])} of atom {bad} of structure "
            f"{int(batch[bad])} in the batch is not in 1 to {MAX_ATOMIC_NUMBER}"
        )
    if tags is not None and n and not bool(((tags >= 0) & (tags < NUM_TAGS)).all()):
        bad = int(((tags < 0) | (tags >= NUM_TAGS)).nonzero()[0])
        raise ValueError(
            f"tags: {int(tags[bad])} of atom {bad} of structure {int(batch[bad])} in the batch; "
            "0 is subsurface, 1 surface, 2 adsorbate"
        )


def _check_edges(
    edge_index: Tensor,
    batch: Tensor,
    cell: Tensor | None,
    cell_offsets: Tensor | None,
    num_graphs: int,
) -> None:
    if edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise ValueError(f"edge_index: shape {tuple(edge_index.shape)}, expected (2, E)")
    n, e = batch.shape[0], edge_index.shape[1]
    if e and bool(((edge_index < 0) | (edge_index >= n)).any()):
        raise ValueError(f"edge_index: refers to atom {int(edge_index.max())} of {n}")
    if e and not bool((batch[edge_index[0]] == batch[edge_index[1]]).all()):
        raise ValueError("edge_index: an edge joins atoms of two structures")
    if cell is not None and cell.shape != (num_graphs, 3, 3):
        raise ValueError(f"cell: shape {tuple(cell.shape)}, expected ({num_graphs}, 3, 3)")
    if cell is not None and not bool(torch.isfinite(cell).all()):
        raise ValueError("cell: not finite")
    if cell_offsets is not None and cell_offsets.shape != (e, 3):
        raise ValueError(f"cell_offsets: shape {tuple(cell_offsets.shape)}, expected ({e}, 3)")
    if cell_offsets is not None and cell is None:
        raise ValueError("cell_offsets without cell: give both, or neither")
