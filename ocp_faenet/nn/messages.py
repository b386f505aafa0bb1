"""Messages between atoms, and what a convolution takes of them.

The frames of frame averaging are laid end to end: a *message* is an edge in one frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

#: Messages in a block: 256 rows of 384 floats are 0.4 MB, less than a second-level cache.
BLOCK = 256


@dataclass(frozen=True)
class Taps:
    """Which rows of a table are summed, and how heavily.

    Attributes:
        rows: ``(M, k)`` int64.
        weights: ``(M, k)``; constants, no gradient flows into them.
    """

    rows: Tensor
    weights: Tensor

    def gather(self, table: Tensor) -> Tensor:
        """``sum_k w_k T[t_k]``: ``(T, C)`` to ``(M, C)``, differentiable at any order."""
        out: Tensor | None = None
        for column in range(self.rows.shape[1]):
            term = table.index_select(-2, self.rows[:, column])
            term = term * self.weights[:, column, None]
            out = term if out is None else out + term
        if out is None:
            raise ValueError("taps: an edge must refer to at least one row of the table")
        return out


@dataclass(frozen=True)
class Messages:
    """Where ``M`` messages come from and go to.

    Attributes:
        source: ``(M,)`` row of ``x`` that each message carries.
        centre: ``(M,)`` row of ``x`` of the atom that it goes to.
        target: ``(M,)`` row of the result that it is added to.
        num_targets: rows of the result.
        counts: rows of features in each cell, in order; one number where all share one matrix.
        radial: rows of the radial table for each row of features, ``None`` without one.
        together: ``G``, messages that follow each other and share a row of features and the
            radial term: the same edge in frames that differ in signs. ``M / G`` rows.
    """

    source: Tensor
    centre: Tensor
    target: Tensor
    num_targets: int
    counts: tuple[int, ...]
    radial: Taps | None = None
    together: int = 1

    @cached_property
    def pair_rows(self) -> Tensor:
        """Rows ``(M, 2)`` in a table of each atom's source and target term, one below the other."""
        return torch.stack([2 * self.source, 2 * self.centre + 1], dim=-1)

    @cached_property
    def first_row(self) -> Tensor:
        """``(M, 1)`` zeros: one row for all."""
        return torch.zeros_like(self.source).unsqueeze(-1)

    @cached_property
    def ends(self) -> Tensor:
        """``(cells,)``: one past the last row of features of each cell."""
        return torch.tensor(self.counts).cumsum(0)

    @cached_property
    def blocks(self) -> list[list[tuple[int, int, int]]]:
        """Rows of features of about `BLOCK` messages, in pieces ``(begin, end, cell)``."""
        blocks: list[list[tuple[int, int, int]]] = []
        begin, room, most = 0, 0, max(1, BLOCK // self.together)
        for cell, count in enumerate(self.counts):
            end = begin + count
            while begin < end:
                if room == 0:
                    blocks.append([])
                    room = most
                stop = min(end, begin + room)
                blocks[-1].append((begin, stop, cell))
                room -= stop - begin
                begin = stop
        return blocks

    @property
    def largest(self) -> int:
        """Rows in the largest block."""
        return max((block[-1][1] - block[0][0] for block in self.blocks), default=0)


class Operands(NamedTuple):
    """What a convolution takes.

    Attributes:
        x: ``(X, C)`` atom features that are convolved, frames laid end to end.
        features: ``(M / G, K)`` of edges.
        matrices: ``(cells, K, G C)``, one for all edges or one for each cell.
        atoms: ``(A, C)``, a table of terms of the filters.
        atom_rows: ``(M, k)``, the rows of ``atoms`` that each message sums.
        radial: ``(R, C)``, another one, rows and weights in ``messages``; ``None`` without.
        messages: where from and where to.
    """

    x: Tensor
    features: Tensor
    matrices: Tensor
    atoms: Tensor
    atom_rows: Tensor
    radial: Tensor | None
    messages: Messages

    @property
    def values(self) -> list[Tensor]:
        """All but the rows: what derivatives are taken by."""
        found = (self.x, self.features, self.matrices, self.atoms, self.radial)
        return [tensor for tensor in found if tensor is not None]

    @property
    def channels(self) -> int:
        """``C``."""
        return self.x.shape[1]

    def contiguous(self) -> Operands:
        """The same, laid out in memory as the compiled pass takes it."""
        radial = None if self.radial is None else self.radial.contiguous()
        return self._replace(
            x=self.x.contiguous(), features=self.features.contiguous(),
            matrices=self.matrices.contiguous(), atoms=self.atoms.contiguous(), radial=radial,
        )  # fmt: skip


class Slopes(NamedTuple):
    """Derivatives by the rows of three operands, to which every message adds.

    Attributes:
        x: ``(X, C)``.
        atoms: ``(A, C)``.
        radial: ``(R, C)``, ``None`` where there is no such table.
    """

    x: Tensor
    atoms: Tensor
    radial: Tensor | None

    @classmethod
    def zeros_for(cls, operands: Operands) -> Slopes:
        """To begin with."""
        radial = None if operands.radial is None else torch.zeros_like(operands.radial)
        return cls(torch.zeros_like(operands.x), torch.zeros_like(operands.atoms), radial)
