"""Changes of a batch that should not change its energies: pose, image, cell, order, company.

Each returns a new graph; edges keep their vectors (turned with the structure where it turns).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ocp_faenet.geometry import transforms as geometry
from ocp_faenet.models.graph import AtomGraph


def turned(graph: AtomGraph, matrices: Tensor) -> AtomGraph:
    """Positions and cell turned by ``matrices`` ``(B, 3, 3)``, ``x' = x @ R``."""
    matrices = matrices.to(graph.positions)
    cell = None if graph.cell is None else graph.cell.to(matrices.dtype) @ matrices
    positions = geometry.turn(graph.positions, matrices, graph.batch)
    return replace(graph, cell=cell).with_positions(positions)


def translated(graph: AtomGraph, by: Tensor, *, wrap: bool = True) -> AtomGraph:
    """Structures moved by ``by`` ``(B, 3)``, Å, and wrapped back into their cells.

    A graph without cell is moved alone.
    """
    positions = graph.positions + by.to(graph.positions).index_select(0, graph.batch)
    moved = graph.with_positions(positions)
    if graph.cell is None or not wrap:
        return moved
    cell = graph.cell.to(positions.dtype)
    return imaged(moved, geometry.wrapping_shifts(positions, cell, graph.batch))


def imaged(graph: AtomGraph, shifts: Tensor) -> AtomGraph:
    """Each atom moved by its own lattice vector: ``x' = x + n @ cell``, ``n`` ``(N, 3)`` whole.

    Raises:
        ValueError: a graph without cell.
    """
    cell, offsets = _periodic(graph)
    moves = geometry.turn(shifts.to(graph.positions), cell, graph.batch)
    offsets = geometry.offsets_after_shift(offsets, graph.edge_index, shifts)
    return replace(graph, cell_offsets=offsets).with_positions(graph.positions + moves)


def recelled(graph: AtomGraph, change: Tensor) -> AtomGraph:
    """Other vectors of the same lattice: ``cell' = change @ cell``, ``change`` ``(B, 3, 3)``.

    Raises:
        ValueError: a graph without cell, or a change of determinant other than 1 or -1.
    """
    cell, offsets = _periodic(graph)
    edge_graph = graph.batch.index_select(0, graph.edge_index[1])
    offsets = geometry.offsets_in_cell(offsets, change, edge_graph)
    graph = replace(graph, cell=change.to(cell) @ cell, cell_offsets=offsets)
    return graph.with_positions(graph.positions)


def permuted(graph: AtomGraph, order: Tensor) -> AtomGraph:
    """Atoms in another order: atom ``k`` of the result is ``order[k]`` of ``graph``.

    Raises:
        ValueError: an order that is no permutation within each structure.
    """
    if not torch.equal(graph.batch.index_select(0, order), graph.batch):
        raise ValueError("order: moves atoms between structures")
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    return AtomGraph.build(
        graph.positions[order],
        graph.atomic_numbers[order],
        graph.batch,
        graph.num_graphs,
        place[graph.edge_index],
        cell=graph.cell,
        cell_offsets=graph.cell_offsets,
        tags=None if graph.tags is None else graph.tags[order],
    )


def random_order(graph: AtomGraph, generator: torch.Generator | None = None) -> Tensor:
    """``(N,)`` a random permutation of the atoms within each structure."""
    noise = torch.rand(graph.num_atoms, generator=generator, dtype=torch.float64)
    key = graph.batch.to(torch.float64) + noise.to(graph.batch.device)
    return torch.argsort(key)


def repeated(graph: AtomGraph, rows: Tensor) -> AtomGraph:
    """Structure ``rows[r]`` of the batch as structure ``r`` of a new one.

    Args:
        rows: ``(R,)``, any structures in any order.
    """
    edge_graph = graph.batch.index_select(0, graph.edge_index[1])
    size = _sizes(graph)
    first = size.cumsum(0) - size
    atoms, batch = _members(size, rows)
    edges, edge_row = _members(torch.bincount(edge_graph, minlength=graph.num_graphs), rows)
    new_first = size[rows].cumsum(0) - size[rows]
    return AtomGraph(
        positions=graph.positions[atoms],
        atomic_numbers=graph.atomic_numbers[atoms],
        batch=batch,
        num_graphs=len(rows),
        edge_index=graph.edge_index[:, edges] + (new_first - first[rows])[edge_row],
        edge_vectors=graph.edge_vectors[edges],
        cell=None if graph.cell is None else graph.cell[rows],
        cell_offsets=None if graph.cell_offsets is None else graph.cell_offsets[edges],
        tags=None if graph.tags is None else graph.tags[atoms],
    )


def atoms_of_rows(graph: AtomGraph, rows: Tensor) -> Tensor:
    """``(N',)`` the atom of ``graph`` that each atom of ``repeated(graph, rows)`` copies."""
    return _members(_sizes(graph), rows)[0]


def alone(graph: AtomGraph, index: int) -> AtomGraph:
    """Structure ``index`` of the batch by itself."""
    return repeated(graph, torch.tensor([index], device=graph.batch.device))


def _sizes(graph: AtomGraph) -> Tensor:
    """``(B,)`` atoms of each structure."""
    return torch.bincount(graph.batch, minlength=graph.num_graphs)


def _members(size: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of the members of each row's structure, and their row; members are contiguous."""
    first = size.cumsum(0) - size
    count = size[rows]
    row = torch.repeat_interleave(count)
    start = count.cumsum(0) - count
    place = torch.arange(len(row), device=row.device) - start[row]
    return first[rows][row] + place, row


def joined(graphs: Sequence[AtomGraph]) -> AtomGraph:
    """One batch of several; all or none with cells, offsets and tags.

    Raises:
        ValueError: no graph, or graphs of which only some have a cell, offsets or tags.
    """
    if not graphs:
        raise ValueError("joined: no graph")
    atoms = [0]
    structures = [0]
    for graph in graphs:
        atoms.append(atoms[-1] + graph.num_atoms)
        structures.append(structures[-1] + graph.num_graphs)
    return AtomGraph(
        positions=torch.cat([g.positions for g in graphs]),
        atomic_numbers=torch.cat([g.atomic_numbers for g in graphs]),
        batch=torch.cat([g.batch + n for g, n in zip(graphs, structures[:-1], strict=True)]),
        num_graphs=structures[-1],
        edge_index=torch.cat(
            [g.edge_index + n for g, n in zip(graphs, atoms[:-1], strict=True)], dim=1
        ),
        edge_vectors=torch.cat([g.edge_vectors for g in graphs]),
        cell=_cat("cell", [g.cell for g in graphs]),
        cell_offsets=_cat("cell_offsets", [g.cell_offsets for g in graphs]),
        tags=_cat("tags", [g.tags for g in graphs]),
    )


def _cat(name: str, parts: list[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    if present and len(present) < len(parts):
        raise ValueError(f"joined: only {len(present)} of {len(parts)} graphs have {name}")
    return torch.cat(present) if present else None


def _periodic(graph: AtomGraph) -> tuple[Tensor, Tensor]:
    if graph.cell is None or graph.cell_offsets is None:
        raise ValueError("the graph has no cell and cell_offsets, so no periodic images")
    return graph.cell.to(graph.positions.dtype), graph.cell_offsets
