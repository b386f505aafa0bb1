"""Literal twins of the sums over wave vectors, and structures for the Ewald tests."""

from __future__ import annotations

import cmath
import itertools
import math

import torch

from ocp_faenet.models import transforms
from ocp_faenet.models.ewald_config import EwaldConfig
from symmetry_cases import slab, structure

EXACT = 1e-10
BROKEN = 1e-6
BOX = EwaldConfig(box=(1, 1, 3))
CUTOFF = EwaldConfig(k_cutoff=1.9, num_gaussians=6)
VOXELS = EwaldConfig(k_cutoff=1.0, voxel=0.4, num_gaussians=6)


def reciprocal_rows(cell):
    """Rows ``b_a`` by cross products, from the definition."""
    a, b, c = cell
    volume = torch.dot(a, torch.linalg.cross(b, c))
    rows = [torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)]
    return 2 * math.pi * torch.stack(rows) / volume


def every_index(reach):
    """All whole triples up to ``reach`` along each axis, as they come."""
    return list(itertools.product(*(range(-r, r + 1) for r in reach)))


def literal_message(h, positions, vectors, filters, damping=None):
    """Equation (19) of the report as it stands, in Python complex numbers.

    ``h`` (N, C), wave vectors (K, 3) of all of k-space, filters (K, C).
    """
    n, channels = h.shape
    damping = [1.0] * n if damping is None else damping.tolist()
    out = torch.zeros_like(h)
    for k, phi in zip(vectors, filters, strict=True):
        phases = [cmath.exp(1j * float(k @ x)) * d for x, d in zip(positions, damping, strict=True)]
        for c in range(channels):
            factor = sum(float(h[j, c]) * phases[j].conjugate() for j in range(n))
            for i in range(n):
                out[i, c] += (phases[i] * factor * float(phi[c])).real
    return out


def bulk(seed, natoms, lengths, skew=0.2):
    """Atoms at random in a skewed cell."""
    generator = torch.Generator().manual_seed(seed)
    cell = torch.diag(torch.tensor(lengths, dtype=torch.float64))
    cell = cell + skew * torch.randn(3, 3, generator=generator, dtype=torch.float64)
    positions = torch.rand(natoms, 3, generator=generator, dtype=torch.float64) @ cell
    numbers = torch.randint(1, 90, (natoms,), generator=generator)
    return structure(positions, numbers, cell, tags=torch.ones(natoms).long(), reach=(1, 1, 1))


def unlike_cells():
    """Sizes and cells that no padding fits: 3 to 20 atoms, volumes 60 to 2,000 Å³."""
    return transforms.joined(
        [
            bulk(1, 3, (4.0, 4.0, 4.0)),
            bulk(2, 20, (8.0, 7.0, 20.0)),
            bulk(3, 7, (5.0, 12.0, 5.0)),
            slab(4),
        ]
    )


def free(graph):
    """The same atoms without periodicity."""
    parts = []
    for index in range(graph.num_graphs):
        one = transforms.alone(graph, index)
        parts.append(structure(one.positions, one.atomic_numbers, tags=one.tags))
    return transforms.joined(parts)


def of_each(graph):
    """Each structure alone, and which atoms of ``graph`` are its own."""
    for index in range(graph.num_graphs):
        yield transforms.alone(graph, index), graph.batch == index
