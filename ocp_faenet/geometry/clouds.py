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

from ocp_faenet.geometry.frames import POINT
from ocp_faenet.geometry.lattice import reduced_cells
from ocp_faenet.geometry.segments import segment_count, segment_mean, segment_sum

#: Å: frames look at edges up to here, which is past second neighbours in metals. Farther ones
#: add little but the symmetry of the bulk.
FRAME_RADIUS = 4.0
#: Differences of content that weigh little against typical ones (0.1 to 1): where all atoms are
#: alike the axes are then those of a perfect crystal, not of rounding errors.
_LEAST_DIFFERENCE = 0.03
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
        bound: ``(P,)`` positive, at least ``|odd|``: the unit of third moments.
        mark: ``(P,)`` positive weights that tell vectors of different species apart.
        segment: ``(P,)`` structure of each vector, ascending.
        num_graphs: ``B``.
    """

    vectors: Tensor
    even: Tensor
    odd: Tensor
    bound: Tensor
    mark: Tensor
    segment: Tensor
    num_graphs: int

    def second_moments(self) -> Tensor:
        """``(B, 3, 3)`` mean of ``v v^T``, Å^2; zero for an empty cloud."""
        outer = (self.vectors.unsqueeze(-1) * self.vectors.unsqueeze(-2)).flatten(-2)
        weighted = torch.cat([outer, torch.ones_like(outer[:, :1])], dim=-1)
        sums = self._sum(weighted * self.even.unsqueeze(-1))  # (B, 10)
        return (sums[:, :9] / _or_one(sums[:, 9:])).view(-1, 3, 3)

    @torch.no_grad()
    def third_moments(self, axes: Tensor) -> Tensor:
        """``(B, 3)`` sums of cubed coordinates along the columns of ``axes`` ``(B, 3, 3)``.

        Over the sum of cubed lengths, hence in [-1, 1]. Without derivative: signs have none.
        """
        along = torch.einsum("pi,pik->pk", self.vectors, axes.index_select(0, self.segment))
        cubes = torch.cat([along**3 * self.odd.unsqueeze(-1), self.cubed_unit()], dim=-1)
        sums = self._sum(cubes)  # (B, 4)
        return sums[:, :3] / _or_one(sums[:, 3:])

    def cubed_unit(self) -> Tensor:
        """``(P, 1)`` what a vector adds to the unit of third moments; `POINT` is its least."""
        lengths = self.vectors.norm(dim=-1, keepdim=True).clamp(min=POINT)
        unit: Tensor = self.bound.unsqueeze(-1) * lengths.pow(3)
        return unit

    def one(self, start: int, stop: int) -> Cloud:
        """The vectors of one structure, ``start`` to ``stop``, as a cloud of their own."""
        part = slice(start, stop)
        return replace(
            self,
            vectors=self.vectors[part],
            even=self.even[part],
            odd=self.odd[part],
            bound=self.bound[part],
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
    return Cloud(vectors, ones, ones, ones, mark, batch, num_graphs)


def _or_one(values: Tensor) -> Tensor:
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
    """Short edge vectors, those between unlike atoms weighing most. Blind to the periodic image.

    Each atom carries what is around it: its atomic number and, enveloped, those of its
    neighbours. An edge weighs by the difference ``D`` of its ends: ``D^2 / d^2`` in second
    moments, so that the bulk, where all is alike, leaves the axes to the adsorbate and the
    surface; and ``D`` itself in odd moments, where an edge and its reverse would cancel.

    Args:
        edge_vectors: ``(E, 3)``, Å, sorted by structure.
        edge_index: ``(2, E)``, source above target.
        atomic_numbers: ``(N,)``.
        batch: ``(N,)``.
        cutoff: Å, of the graph; edges count up to it or to `FRAME_RADIUS`.
    """
    radius = min(cutoff, FRAME_RADIUS)
    near = (edge_vectors.detach().square().sum(-1) < radius**2).nonzero().flatten()
    source, target = edge_index.index_select(1, near)
    vectors = edge_vectors.index_select(0, near).to(torch.float64)
    squared = vectors.square().sum(-1)
    faded = envelope(squared.sqrt(), radius)
    number = atomic_numbers.to(vectors.dtype) / _NUMBER_SCALE
    around = segment_sum((faded * number[source]).unsqueeze(-1), target, len(number))
    content = number + around.squeeze(-1)  # (N,)
    difference = content[source] - content[target]
    even = faded * (difference.square() + _LEAST_DIFFERENCE**2) / squared
    with torch.no_grad():
        odd = faded * difference
        bound = odd.abs() + _LEAST_DIFFERENCE * faded
        mark = faded * (content[source] + 0.3 * content[target])
    segment = batch.index_select(0, target)
    return Cloud(vectors, even, odd, bound, mark, segment, num_graphs)


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
    none = torch.zeros_like(even)
    return Cloud(vectors.flatten(0, 1), even, none, even, even, segment, len(cell))
