"""Structures like those of OC20, made from nothing and good for timing alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ocp_faenet.geometry.neighbors import neighbor_list
from ocp_faenet.models.graph import AtomGraph

#: Distance of neighbours in the slab, height of a layer, vacuum above it: Å, about copper's.
SPACING, LAYER, VACUUM = 2.6, 2.1, 12.0
LAYERS = 4
METALS = (13, 28, 29, 46, 47, 78, 79)
ADSORBATES = (1, 6, 7, 8)


def slab_with_adsorbate(natoms: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """One slab of four fcc(111)-like layers under a loose adsorbate.

    Args:
        natoms: atoms in all, at least 1; about one in twelve belongs to the adsorbate.

    Returns:
        positions ``(N, 3)``, atomic numbers ``(N,)``, tags ``(N,)``, cell ``(3, 3)``.
    """
    adsorbed = max(1, natoms // 12)
    metal = natoms - adsorbed
    side = max(1, math.ceil(math.sqrt(metal / LAYERS)))
    along = torch.arange(side, dtype=torch.float64) * SPACING
    x, y = torch.meshgrid(along, along * math.sqrt(3) / 2, indexing="ij")
    x = x + 0.5 * y / (math.sqrt(3) / 2)
    planes = []
    for layer in range(LAYERS):
        shift = torch.tensor([0.5 * SPACING, SPACING / (2 * math.sqrt(3))]) * layer
        height = torch.full_like(x, layer * LAYER)
        planes.append(torch.stack([x + shift[0], y + shift[1], height], -1).flatten(0, 1))
    slab = torch.cat(planes)[-metal:] if metal else torch.zeros(0, 3, dtype=torch.float64)
    edge = side * SPACING
    area = torch.tensor([edge, edge * math.sqrt(3) / 2, 2.0 + adsorbed / (side * side)])
    above = torch.rand(adsorbed, 3, generator=generator, dtype=torch.float64) * area
    above[:, 2] += LAYERS * LAYER
    positions = torch.cat([slab, above])
    positions = positions + 0.05 * torch.randn(positions.shape, generator=generator)
    cell = torch.tensor(
        [[edge, 0, 0], [0.5 * edge, edge * math.sqrt(3) / 2, 0], [0, 0, LAYERS * LAYER + VACUUM]]
    )
    kind = METALS[int(torch.randint(len(METALS), (1,), generator=generator))]
    picks = torch.randint(len(ADSORBATES), (adsorbed,), generator=generator)
    numbers = torch.cat([torch.full((metal,), kind), torch.tensor(ADSORBATES)[picks]])
    surface = (slab[:, 2] > (LAYERS - 1.5) * LAYER).long()
    tags = torch.cat([surface, torch.full((adsorbed,), 2)])
    return positions.float(), numbers, tags, cell.float()


def oc20_like(
    natoms: int,
    num_graphs: int,
    *,
    seed: int = 0,
    cutoff: float = 6.0,
    max_neighbors: int = 50,
    device: torch.device | str = "cpu",
) -> AtomGraph:
    """A batch of ``num_graphs`` slabs of ``natoms`` atoms each, with OC20's kind of graph."""
    generator = torch.Generator().manual_seed(seed)
    parts = [slab_with_adsorbate(natoms, generator) for _ in range(num_graphs)]
    positions, numbers, tags = (torch.cat([p[k] for p in parts]) for k in range(3))
    cell = torch.stack([p[3] for p in parts])
    counts = torch.full((num_graphs,), natoms)
    found = neighbor_list(positions, counts, cutoff=cutoff, cell=cell, max_neighbors=max_neighbors)
    batch = torch.arange(num_graphs).repeat_interleave(counts)
    return AtomGraph.build(
        positions.to(device), numbers.to(device), batch.to(device), num_graphs,
        found.edge_index.to(device), cell=cell.to(device),
        cell_offsets=found.cell_offsets.to(device), tags=tags.to(device), cutoff=cutoff,
    )  # fmt: skip
