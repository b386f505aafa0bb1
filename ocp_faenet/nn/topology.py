"""What message passing needs of a batch of graphs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ocp_faenet.geometry.segments import segment_count


@dataclass(frozen=True)
class Topology:
    """What message passing needs of a batch of graphs.

    Attributes:
        source: ``(E,)`` neighbour ``j`` of each edge.
        target: ``(E,)`` centre ``i`` of each edge, ascending.
        batch: ``(N,)`` graph of each atom, ascending.
        num_graphs: ``B``.
    """

    source: Tensor
    target: Tensor
    batch: Tensor
    num_graphs: int

    @property
    def num_atoms(self) -> int:
        """``N``."""
        return self.batch.shape[0]

    @cached_property
    def sizes(self) -> Tensor:
        """``(B,)`` int64: atoms of each graph."""
        return segment_count(self.batch, self.num_graphs)

    @cached_property
    def ends(self) -> Tensor:
        """``(B,)`` int64: one past the last atom of each graph."""
        return self.sizes.cumsum(0)
