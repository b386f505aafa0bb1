"""Which structures a network can tell apart: in exact arithmetic, and after training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ocp_faenet.geometry.counterexamples import Pair
from ocp_faenet.models.expressive_subjects import (
    Pose,
    Subject,
    batch_of,
    build,
    copies_of,
    graph_of,
)
from ocp_faenet.models.expressive_training import TRAINING, trained

__all__ = [
    "METHOD",
    "Exactness",
    "Pose",
    "Subject",
    "batch_of",
    "build",
    "copies_of",
    "exactness",
    "graph_of",
    "trained",
]

#: Energies, relative to their size, that differ by less are equal: float64 has 2e-16.
ROUNDING = 1e-15
#: A difference counts if it is this many times that of copies of one structure.
CLEAR = 10.0
#: Copies that differ by more are in poses that matter to the network.
MOVED = 1e-6
#: Copies of each structure that test invariance.
COPIES = 2
#: All that both verdicts rest on. ``protocol`` is raised when a pair, a network or the way of a
#: verdict changes.
METHOD: Mapping[str, float] = {
    "protocol": 2, "clear": CLEAR, "rounding": ROUNDING, "moved": MOVED, "copies": COPIES,
    **TRAINING,
}  # fmt: skip


@dataclass(frozen=True)
class Exactness:
    """What networks with random weights say of a pair, the worst over initialisations.

    Attributes:
        gap: smallest difference of the two structures' energies over the energies' size.
        largest_gap: largest one, which shows whether ``gap`` is zero for all weights.
        noise: largest difference between copies of one structure, likewise: moved, in another
            pose, its atoms in another order.
        clearness: smallest ratio of the two, each of the same weights, noise at least `ROUNDING`.
        finite: whether all energies were finite; nothing is said of a pair otherwise.
    """

    gap: float
    largest_gap: float
    noise: float
    clearness: float
    finite: bool = True

    @property
    def moves(self) -> bool:
        """Whether copies of one structure differ, so that a gap says nothing."""
        return self.noise > MOVED

    @property
    def separates(self) -> bool:
        """Whether the two differ by more than copies of either, for all weights tried."""
        return self.finite and not self.moves and self.clearness > CLEAR


@torch.no_grad()
def exactness(subject: Subject, networks: list[nn.Module], pair: Pair) -> Exactness:
    """Gap and noise of a pair over networks that differ in their random weights alone."""
    graph = batch_of(pair)
    gaps, noises = [], []
    for seed, network in enumerate(networks):
        generator = torch.Generator().manual_seed(seed)
        copies = copies_of(graph, COPIES, subject.pose, generator)
        network.eval()
        here = subject.answers(network, graph)  # (2, S)
        there = subject.answers(network, copies).view(2, COPIES, -1)
        scale = float(torch.maximum(here.abs().max(), there.abs().max()))
        if not math.isfinite(scale):
            return Exactness(0.0, 0.0, 0.0, 0.0, finite=False)
        gaps.append(float(_distances(here[:1], here[1:]).min()) / scale)
        noise = max(
            float(_hausdorff(here[side], there[side, copy]))
            for side in range(2)
            for copy in range(COPIES)
        )
        noises.append(noise / scale)
    clear = min(gap / max(noise, ROUNDING) for gap, noise in zip(gaps, noises, strict=True))
    return Exactness(min(gaps), max(gaps), max(noises), clear)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """``(S, T)`` differences of two sets of energies."""
    return (a.reshape(-1, 1) - b.reshape(1, -1)).abs()


def _hausdorff(a: Tensor, b: Tensor) -> Tensor:
    distances = _distances(a, b)
    return torch.maximum(distances.amin(0).max(), distances.amin(1).max())
