"""Weighted clouds of vectors from which a structure's frame is read.

A frame needs axes (principal axes of one cloud) and signs (odd moments of another, or of the same
one). What is taken for a cloud decides what the frame is blind to: stored positions depend on the
periodic image in which each atom happens to be written down, edge vectors and lattice vectors do
not. Frames are made in float64 whatever the structure's precision: the work is negligible, and
their noise is then that of the input alone.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ocp_faenet.geometry.lattice import reduced_cells
from ocp_faenet.geometry.segments import segment_count, segment_mean, segment_sum

#: Atomic numbers are divided by this where they weigh moments.
_NUMBER_SCALE = 100.0


@dataclass(frozen=True)
class Cloud:
    """``P`` vectors of ``B`` structures; those of one structure are contiguous.

    Attributes:
        vectors: ``(P, 3)`` float64, Å; carries gradients.
        even: ``(P,)`` weights of second moments, not negative.
        odd: ``(P,)`` weights of third moments. Where the cloud holds ``-v`` with every ``v``
            they differ between the two.
        mark: ``(P,)`` weights that tell vectors of different species apart.
        segment: ``(P,)`` structure of each vector, ascending.
        num_graphs: ``B``.
    """

    vectors: Tensor
    even: Tensor
    odd: Tensor
    mark: Tensor
    segment: Tensor
    num_graphs: int

    def total(self) -> Tensor:
        """``(B,)`` sum of the even weights."""
        return self._sum(self.even.unsqueeze(-1)).squeeze(-1)

    def second_moments(self) -> Tensor:
        """``(B, 3, 3)`` mean of ``v v^T``, Å^2; zero for an empty cloud."""
        outer = (self.vectors.unsqueeze(-1) * self.vectors.unsqueeze(-2)).flatten(-2)
        sums = self._sum(outer * self.even.unsqueeze(-1))
        return (sums / _positive(self.total()).unsqueeze(-1)).view(-1, 3, 3)

    def third_moments(self, axes: Tensor) -> Tensor:
        """``(B, 3)`` means of cubed coordinates along the columns of ``axes`` ``(B, 3, 3)``, Å^3.

        Without derivative: signs have none.
        """
        with torch.no_grad():
            along = torch.einsum("pi,pik->pk", self.vectors, axes.index_select(0, self.segment))
            sums = self._sum(along**3 * self.odd.unsqueeze(-1))
            return sums / _positive(self.total()).unsqueeze(-1)

    def one(self, start: int, stop: int) -> Cloud:
        """The vectors of one structure, ``start`` to ``stop``, as a cloud of their own."""
        part = slice(start, stop)
        return replace(
            self,
            vectors=self.vectors[part],
            even=self.even[part],
            odd=self.odd[part],
            mark=self.mark[part],
            segment=torch.zeros_like(self.segment[part]),
            num_graphs=1,
        )

    def bounds(self) -> list[int]:
        """Where each structure's vectors start, and the end: ``B + 1`` numbers."""
        counts = segment_count(self.segment, self.num_graphs).tolist()
        return list(itertools.accumulate(counts, initial=0))

    def _sum(self, values: Tensor) -> Tensor:
        return segment_sum(values, self.segment, self.num_graphs)


def position_cloud(
    positions: Tensor, atomic_numbers: Tensor, batch: Tensor, num_graphs: int
) -> Cloud:
    """Positions about their mean (report, section 2.1). Depends on the periodic image.

    Args:
        positions: ``(N, 3)``, Å.
        atomic_numbers: ``(N,)``.
        batch: ``(N,)``.
    """
    x = positions.to(torch.float64)
    vectors = x - segment_mean(x, batch, num_graphs).index_select(0, batch)
    ones = torch.ones_like(vectors[:, 0])
    mark = atomic_numbers.to(x.dtype) / _NUMBER_SCALE
    return Cloud(vectors, ones, ones, mark, batch, num_graphs)


def _positive(values: Tensor) -> Tensor:
    return torch.where(values > 0, values, 1.0)


def envelope(distances: Tensor, cutoff: float) -> Tensor:
    """``(1 - (d / cutoff)^2)^3``, zero from the cutoff on: two continuous derivatives there."""
    inside: Tensor = (1 - (distances / cutoff).square()).clamp(min=0)
    return inside.pow(3)


def edge_cloud(
    edge_vectors: Tensor,
    edge_index: Tensor,
    atomic_numbers: Tensor,
    batch: Tensor,
    num_graphs: int,
    cutoff: float,
) -> Cloud:
    """Edge vectors, fading out towards the cutoff. The same for every periodic image.

    An edge and its reverse cancel in odd moments, so these weigh an edge by how its two ends
    differ: each atom carries its atomic number and those of its neighbours, enveloped, and an
    edge the difference of source and target.

    Args:
        edge_vectors: ``(E, 3)``, Å, sorted by structure.
        edge_index: ``(2, E)``, source above target.
        atomic_numbers: ``(N,)``.
        batch: ``(N,)``.
        cutoff: Å.
    """
    source, target = edge_index
    vectors = edge_vectors.to(torch.float64)
    even = envelope(vectors.norm(dim=-1), cutoff)
    with torch.no_grad():
        number = atomic_numbers.to(vectors.dtype) / _NUMBER_SCALE
        around = segment_sum((even * number[source]).unsqueeze(-1), target, len(number))
        content = number + around.squeeze(-1)
        odd = even * (content[source] - content[target])
        mark = even * (number[source] + 0.5 * number[target]) + odd
    return Cloud(vectors, even, odd, mark, batch.index_select(0, target), num_graphs)


def lattice_cloud(cell: Tensor, *, in_plane: bool) -> Cloud:
    """Short lattice vectors, the shortest of each lattice weighing most. Blind to the content.

    Weights fall smoothly to zero at twice the shortest length, so the cloud does not depend on
    which vectors span the lattice.

    Args:
        cell: ``(B, 3, 3)``, rows are lattice vectors, Å.
        in_plane: of the vectors' horizontal parts, for those that are horizontal.
    """
    reduced = reduced_cells(cell.to(torch.float64))
    counts = torch.cartesian_prod(*[torch.arange(-2.0, 3.0, dtype=torch.float64)] * 3)
    counts = counts[counts.abs().sum(-1) > 0].to(reduced)
    vectors = counts @ reduced  # (B, 124, 3)
    lengths = vectors.norm(dim=-1)
    usable = lengths > 0
    if in_plane:
        usable &= vectors[..., 2].abs() < 1e-3 * lengths
    masked = torch.where(usable, lengths, torch.inf)
    shortest = masked.amin(-1, keepdim=True)
    even = torch.where(usable, envelope(lengths / shortest, 2.0), 0.0)
    segment = torch.arange(len(cell), device=cell.device).repeat_interleave(len(counts))
    even = even.flatten()
    return Cloud(vectors.flatten(0, 1), even, torch.zeros_like(even), even, segment, len(cell))
