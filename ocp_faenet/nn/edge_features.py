"""Edge features, kept in parts so that what frames share is computed once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ocp_faenet.nn.kept import Kept
from ocp_faenet.nn.messages import Messages, Taps
from ocp_faenet.nn.topology import Topology


@dataclass(frozen=True)
class Cells:
    """The directional channels of edges, as polynomials in cells of space (`nn.cells`).

    Messages, one for each edge in each frame, are in the order of their cells. ``G`` of them that
    follow each other share a row of the basis: an edge in frames that differ in signs.

    Attributes:
        coefficients: ``(cells, K, G, C1)``.
        basis: ``(M / G, K)``.
        order: ``(M,)`` message ``f E + e`` at each place.
        counts: rows of the basis in each cell.
    """

    coefficients: Tensor
    basis: Tensor
    order: Tensor
    counts: tuple[int, ...]

    @property
    def together(self) -> int:
        """``G``."""
        return self.coefficients.shape[2]

    def directional(self, frames: int) -> Tensor:
        """The channels themselves, ``(F, E, C1)``."""
        matrices = self.coefficients.flatten(2).unbind(0)
        parts = zip(self.basis.split(self.counts), matrices, strict=True)
        values = torch.cat([basis @ coefficients for basis, coefficients in parts])
        values = values.view(-1, self.coefficients.shape[-1])
        placed = torch.empty_like(values).index_copy(0, self.order, values)
        return placed.view(frames, -1, values.shape[-1])


@dataclass(frozen=True)
class EdgeFeatures:
    """Edge embeddings ``e_ij``: channels that depend on the frame, then channels that do not.

    Attributes:
        num_frames: ``F``.
        dense: ``(F, E, C1)``, from relative positions in each frame; all channels where
            ``radial`` is ``None``. ``None`` where ``cells`` stands for it.
        cells: the same channels, tabulated.
        radial: ``(R, C2)`` rows from which the other channels are combined: one a edge, or one
            a point of a grid of distances. Shared by all frames.
        taps: the rows of ``radial`` that make up each edge, ``(E, k)``.
        messages: where the edges in each frame lead, once `on` has laid them on a graph: for
            atom features of all frames, and for those that all frames share.
    """

    num_frames: int
    dense: Tensor | None = None
    cells: Cells | None = None
    radial: Tensor | None = None
    taps: Taps | None = None
    messages: tuple[Messages, Messages] | None = None

    @property
    def directional(self) -> Tensor:
        """The first channels, ``(F, E, C1)``."""
        if self.dense is not None:
            return self.dense
        if self.cells is None:
            raise ValueError("edge features: neither dense nor in cells")
        return self.cells.directional(self.num_frames)

    @property
    def directional_channels(self) -> int:
        """``C1``."""
        part = self.dense if self.cells is None else self.cells.coefficients
        return 0 if part is None else part.shape[-1]

    @property
    def tabulated(self) -> bool:
        """Whether ``radial`` is on a grid of distances: a function of parameters alone."""
        return self.taps is not None and self.taps.rows.shape[1] > 1

    @property
    def factors(self) -> Tensor:
        """``(M / G, K)``: what is multiplied with `projected` weights."""
        return self.directional.flatten(0, 1) if self.cells is None else self.cells.basis

    def projected(self, weight: Tensor, kept: Kept) -> Tensor:
        """``(cells or 1, K, G C)``: matrices that give ``weight`` ``(C, C1)`` times ``e_ij``."""
        if self.cells is None:
            return weight.t().unsqueeze(0)
        coefficients = self.cells.coefficients
        return kept.get(
            (weight,), (coefficients,), lambda: F.linear(coefficients, weight).flatten(2)
        )

    def full(self) -> Tensor:
        """All channels, ``(F, E, C1 + C2)``."""
        directional = self.directional
        if self.radial is None or self.taps is None:
            return directional
        radial = self.taps.gather(self.radial)
        return torch.cat([directional, radial.expand(self.num_frames, -1, -1)], dim=-1)

    @property
    def laid(self) -> tuple[Messages, Messages]:
        """``messages``, which must be there."""
        if self.messages is None:
            raise ValueError("edge features: not laid on a graph; call `on` first")
        return self.messages

    def on(self, topology: Topology) -> EdgeFeatures:
        """The same features with ``messages`` on a graph; itself if it has them."""
        if self.messages is not None:
            return self
        own = self._messages(topology, shared=False)
        shared = self._messages(topology, shared=True) if self.num_frames > 1 else own
        return replace(self, messages=(own, shared))

    def _messages(self, topology: Topology, *, shared: bool) -> Messages:
        n, e = topology.num_atoms, topology.source.shape[0]
        source, target, taps = topology.source, topology.target, self.taps
        first = torch.zeros_like(source)
        counts: tuple[int, ...] = (self.num_frames * e,)
        together = 1
        if self.cells is not None or self.num_frames > 1:
            order = torch.arange(self.num_frames * e, device=source.device)
            if self.cells is not None:
                order, counts = self.cells.order, self.cells.counts
                together = self.cells.together
            edge = order % e
            first = order // e * n  # row of the first atom of the message's frame
            source, target = source[edge], target[edge]
            own = edge[::together]
            taps = None if taps is None else Taps(taps.rows[own], taps.weights[own])
        from_first = torch.zeros_like(first) if shared else first
        return Messages(
            source + from_first, target + from_first, target + first,
            num_targets=self.num_frames * n, counts=counts, radial=taps, together=together,
        )  # fmt: skip
