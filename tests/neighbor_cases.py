"""Structures for the neighbour search, and slow ways to the same edges."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from ocp_faenet.geometry.edges import edge_vectors
from ocp_faenet.geometry.neighbors import NeighborList

Edge = tuple[int, ...]


Structure = tuple[Tensor, Tensor, Tensor]  # positions (N, 3), cell (3, 3), pbc (3,)


FLAGS = list(itertools.product([False, True], repeat=3))


def edge_set(found: NeighborList) -> set[Edge]:
    table = torch.cat((found.edge_index.T, found.cell_offsets), dim=1)
    edges = {tuple(row) for row in table.tolist()}
    assert len(edges) == table.shape[0]  # no edge twice
    return edges


def lengths(found: NeighborList, positions: Tensor, cell: Tensor | None) -> Tensor:
    if cell is None:
        return edge_vectors(positions, found.edge_index).norm(dim=1)
    graph = torch.repeat_interleave(found.neighbors)
    vectors = edge_vectors(positions, found.edge_index, cell, found.cell_offsets, graph)
    return vectors.norm(dim=1)


def literal_edges(structure: Structure, cutoff: float, images: int) -> dict[Edge, float]:
    """Every pair in every image, one after the other, with the length of each edge."""
    positions, cell, pbc = (t.tolist() for t in structure)
    spans = [range(-images, images + 1) if on else range(1) for on in pbc]
    edges = {}
    for i, j in itertools.product(range(len(positions)), repeat=2):
        for offset in itertools.product(*spans):
            image = [
                positions[j][x] + sum(n * vector[x] for n, vector in zip(offset, cell, strict=True))
                for x in range(3)
            ]
            length = math.dist(image, positions[i])
            if 1e-5 < length <= cutoff:
                edges[(j, i, *offset)] = length
    return edges


def ase_edges(structure: Structure, cutoff: float) -> set[Edge]:
    primitive = pytest.importorskip("ase.neighborlist").primitive_neighbor_list
    positions, cell, pbc = (t.numpy() for t in structure)
    i, j, offsets, length = primitive("ijSd", pbc, cell, positions, cutoff)
    assume(not bool((abs(length - cutoff) < 1e-7).any()))  # ASE leaves out d == cutoff
    return {
        (int(b), int(a), *map(int, shift))
        for a, b, shift, d in zip(i, j, offsets, length, strict=True)
        if d > 1e-5
    }


def join(structures: list[Structure]) -> dict[str, Tensor]:
    return {
        "positions": torch.cat([s[0] for s in structures]),
        "natoms": torch.tensor([len(s[0]) for s in structures]),
        "cell": torch.stack([s[1] for s in structures]),
        "pbc": torch.stack([s[2] for s in structures]),
    }


def random_structure(
    seed: int, kind: str, natoms: int, flags: tuple[bool, ...], outside: float
) -> Structure:
    generator = torch.Generator().manual_seed(seed)
    size = {"thin": 1.5, "large": 25.0, "skewed": 4.0, "left": 5.0, "mixed": 6.0}[kind]
    cell = torch.eye(3, dtype=torch.float64) * size
    if kind == "mixed":
        cell = cell * torch.tensor([[0.3], [1.0], [4.0]])
    tilt = {"skewed": 2.5, "thin": 0.2}.get(kind, 0.3)
    cell = cell + tilt * size * torch.randn(3, 3, generator=generator, dtype=torch.float64).tril(-1)
    if kind == "left":
        cell = cell.flip(0)
    fractional = torch.rand(natoms, 3, generator=generator, dtype=torch.float64)
    spread = torch.randn(natoms, 3, generator=generator, dtype=torch.float64).mul(outside).round()
    return (fractional + spread) @ cell, cell, torch.tensor(flags)


structures = st.builds(
    random_structure,
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(["thin", "large", "skewed", "left", "mixed"]),
    natoms=st.integers(1, 9),
    flags=st.sampled_from(FLAGS),
    outside=st.sampled_from([0.0, 2.0]),
)


def slab(natoms: int = 60, seed: int = 0, dtype: torch.dtype = torch.float64) -> Structure:
    """A generic slab: no two distances alike."""
    generator = torch.Generator().manual_seed(seed)
    cell = torch.tensor([[8.0, 0, 0], [3.0, 7.5, 0], [0, 0, 30.0]], dtype=dtype)
    scale = torch.tensor([1.0, 1.0, 0.4], dtype=dtype)
    fractional = torch.rand(natoms, 3, generator=generator, dtype=dtype) * scale
    return fractional @ cell, cell, torch.tensor([True, True, True])


def copper(repeat: int = 2, dtype: torch.dtype = torch.float64) -> Structure:
    """Cubic fcc: whole shells of 12, 6, 24, ... at equal distance."""
    basis = torch.tensor([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]], dtype=dtype)
    corners = torch.cartesian_prod(*[torch.arange(repeat, dtype=dtype)] * 3)
    positions = (corners[:, None] + basis).reshape(-1, 3) * 3.61
    cell = torch.eye(3, dtype=dtype) * 3.61 * repeat
    return positions, cell, torch.tensor([True, True, True])


def rotation(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    return (matrix * torch.linalg.det(matrix)).to(dtype)
