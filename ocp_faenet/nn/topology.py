"""What message passing needs of a batch of graphs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
