"""Vector Neurons: layers on lists of vectors that turn with the structure (arXiv 2104.12229)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ocp_faenet.geometry.clouds import envelope
from ocp_faenet.geometry.segments import segment_mean, segment_sum
from ocp_faenet.nn.basis import GaussianSmearing
from ocp_faenet.nn.elements import MAX_ATOMIC_NUMBER
from ocp_faenet.nn.topology import Topology

_SLOPE = 0.2
_TINY = 1e-12


class VectorLinear(nn.Module):
    """``V' = W V``: mixes vectors, never their components. ``(N, C, 3)`` to ``(N, C', 3)``."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, channels))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, v: Tensor) -> Tensor:
        """``(N, C, 3)`` to ``(N, C', 3)``."""
        return torch.einsum("oc,nci->noi", self.weight, v)


class VectorReLU(nn.Module):
    """Leaky ReLU along a learned direction (section 3.2 of the source).

    With ``q = W V`` and ``k = U V``: ``q`` where ``q . k >= 0``; elsewhere it loses 80 % of its
    part along ``k``.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.feature = VectorLinear(channels, out)
        self.direction = VectorLinear(channels, out)

    def forward(self, v: Tensor) -> Tensor:
        """``(N, C, 3)`` to ``(N, C', 3)``."""
        q, k = self.feature(v), self.direction(v)
        along = (q * k).sum(-1, keepdim=True)
        part = along.clamp(max=0) / (k.square().sum(-1, keepdim=True) + _TINY)
        out: Tensor = q - (1 - _SLOPE) * part * k
        return out


class NeighbourVectors(nn.Module):
    """``v_i = sum_j w(d_ij, Z_i, Z_j) f(d_ij) r_ij / d_ij``: a list of vectors for each atom.

    Args:
        radius: Å; neighbours fade out towards it with the envelope ``f``.
        channels: vectors of each atom, ``C``.
    """

    def __init__(self, radius: float, channels: int, *, num_gaussians: int = 16) -> None:
        super().__init__()
        self.radius = radius
        self.basis = GaussianSmearing(radius, num_gaussians)
        self.radial = nn.Linear(num_gaussians, channels)
        self.source = nn.Embedding(MAX_ATOMIC_NUMBER + 1, channels)
        self.target = nn.Embedding(MAX_ATOMIC_NUMBER + 1, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, edge_vectors: Tensor, numbers: Tensor, topology: Topology) -> Tensor:
        """``(E, 3)`` edge vectors, Å, and ``(N,)`` atomic numbers to ``(N, C, 3)``."""
        near = (edge_vectors.detach().square().sum(-1) < self.radius**2).nonzero().flatten()
        source, target = topology.source[near], topology.target[near]
        vectors = edge_vectors[near]
        distances = vectors.norm(dim=-1)
        scalars = self.radial(self.basis(distances))
        scalars = scalars + self.source(numbers)[source] + self.target(numbers)[target]
        weights = self.out(F.silu(scalars)) * envelope(distances, self.radius).unsqueeze(-1)
        units = vectors / distances.unsqueeze(-1)
        messages = (weights.unsqueeze(-1) * units.unsqueeze(-2)).flatten(-2)  # (E, 3 C)
        sums = segment_sum(messages, target, topology.num_atoms)
        vectors_of_atoms: Tensor = sums.unflatten(-1, (-1, 3))
        return vectors_of_atoms


class VectorNetwork(nn.Module):
    """A few vectors for each structure: neighbour vectors, two layers, mean over atoms.

    The last layer starts at zero, and so do the vectors.

    Args:
        radius: Å.
        channels: ``C``.
        out: vectors of a structure.
    """

    def __init__(self, radius: float, channels: int, out: int) -> None:
        super().__init__()
        self.neighbours = NeighbourVectors(radius, channels)
        self.first = VectorReLU(channels, channels)
        self.second = VectorReLU(channels, channels)
        self.last = VectorLinear(channels, out)
        nn.init.zeros_(self.last.weight)

    def forward(self, edge_vectors: Tensor, numbers: Tensor, topology: Topology) -> Tensor:
        """``(E, 3)``, ``(N,)`` to ``(B, out, 3)``."""
        v = self.neighbours(edge_vectors, numbers, topology)
        v = v + self.first(v)
        v = v + self.second(v)
        pooled = segment_mean(v.flatten(-2), topology.batch, topology.num_graphs)
        vectors: Tensor = self.last(pooled.unflatten(-1, (-1, 3)))
        return vectors
