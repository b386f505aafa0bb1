"""Which structures a network can tell apart: in exact arithmetic, and after training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn
from torch.optim.adam import Adam

from ocp_faenet.geometry.counterexamples import Pair, Structure
from ocp_faenet.geometry.rotations import random_orthogonal, random_rotations
from ocp_faenet.models.graph import AtomGraph
from ocp_faenet.models.transforms import (
    joined,
    permuted,
    random_order,
    repeated,
    translated,
    turned,
)

#: Energies, relative to their size, that differ by less are equal: float64 has 2e-16.
ROUNDING = 1e-15
#: A difference counts if it is this many times that of copies of one structure.
CLEAR = 10.0
#: Copies that differ by more are in poses that matter to the network.
MOVED = 1e-6
#: Copies of each structure that test invariance, and that are shown at a time in training.
COPIES, SHOWN = 2, 4
#: Copies of each structure that accuracy is taken over: all are alike to an exact network.
JUDGED_EXACT, JUDGED = 2, 50
#: Training: every how many steps it is judged, the loss below which it is, and Adam's rate.
LOOK_EVERY, GOOD_LOSS, RATE = 5, 0.5, 5e-3


class Pose(str, Enum):
    """Changes of pose that should not matter to a network."""

    SPACE = "rotations and reflections"
    PROPER = "rotations"
    PLANE = "rotations about z and vertical reflections"


@dataclass(frozen=True)
class Subject:
    """A kind of network under examination.

    Attributes:
        name: as tables show it.
        make: a network with random weights from a number of layers, energies of one channel.
        energy: of a batch, ``(B,)``, as the network answers when it is used.
        answers: ``(B, S)``, every energy that it may answer; one where nothing is random.
        pose: what should not matter to it.
        exact: whether that holds whatever the weights. Networks that only learn it are shown
            several poses of each structure at a time.
    """

    name: str
    make: Callable[[int], nn.Module]
    energy: Callable[[nn.Module, AtomGraph], Tensor]
    answers: Callable[[nn.Module, AtomGraph], Tensor]
    pose: Pose = Pose.SPACE
    exact: bool = True


@dataclass(frozen=True)
class Exactness:
    """What networks with random weights say of a pair, the worst over initialisations.

    Attributes:
        gap: smallest difference of the two structures' energies over the energies' size.
        largest_gap: largest one, which shows whether ``gap`` is zero for all weights.
        noise: largest difference between copies of one structure, likewise: moved, in another
            pose, its atoms in another order.
        clearness: smallest ratio of the two, each of the same weights, noise at least `ROUNDING`.
    """

    gap: float
    largest_gap: float
    noise: float
    clearness: float

    @property
    def moves(self) -> bool:
        """Whether copies of one structure differ, so that a gap says nothing."""
        return self.noise > MOVED

    @property
    def separates(self) -> bool:
        """Whether the two differ by more than copies of either, for all weights tried."""
        return not self.moves and self.clearness > CLEAR


def graph_of(structure: Structure, dtype: torch.dtype = torch.float64) -> AtomGraph:
    """A batch of one, its edges those of the structure, without a cell."""
    return AtomGraph.build(
        structure.positions.to(dtype),
        structure.atomic_numbers,
        torch.zeros_like(structure.atomic_numbers),
        1,
        structure.edge_index,
    )


def batch_of(pair: Pair) -> AtomGraph:
    """The two structures of a pair as a batch, in float64."""
    return joined([graph_of(pair.first), graph_of(pair.second)])


def copies_of(graph: AtomGraph, count: int, pose: Pose, generator: torch.Generator) -> AtomGraph:
    """Every structure ``count`` times, each copy moved, in a random pose and order of atoms."""
    rows = torch.arange(graph.num_graphs).repeat_interleave(count)
    many = repeated(graph, rows)
    shift = torch.randn(len(rows), 3, generator=generator, dtype=torch.float64)
    many = translated(turned(many, _poses(pose, len(rows), generator)), shift, wrap=False)
    return permuted(many, random_order(many, generator))


def _poses(pose: Pose, count: int, generator: torch.Generator) -> Tensor:
    if pose is Pose.PROPER:
        return random_rotations(count, dtype=torch.float64, generator=generator)
    about_z = pose is Pose.PLANE
    return random_orthogonal(count, about_z=about_z, dtype=torch.float64, generator=generator)


def build(subject: Subject, layers: int, seed: int, *, shake: float = 0.0) -> nn.Module:
    """A network in float64, its weights drawn from ``seed``.

    Args:
        shake: standard deviation of noise on all weights: what starts at zero, as last layers
            often do, must not be zero when it is asked what random weights can tell.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # some of the host's layers make tensors of it
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = subject.make(layers).double()
            with torch.no_grad():
                for weight in network.parameters():
                    if shake and weight.requires_grad:
                        weight.add_(shake * torch.randn_like(weight))
    finally:
        torch.set_default_dtype(before)
    return network


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


@dataclass(frozen=True)
class Trained:
    """What came of training networks to tell a pair apart.

    Attributes:
        accuracy: of each seed, on unseen copies of both structures.
        steps: of each seed.
    """

    accuracy: tuple[float, ...]
    steps: tuple[int, ...]


def trained(
    subject: Subject, layers: int, pair: Pair, seeds: int, budget: int, *, give_up: bool = True
) -> Trained:
    """Binary classification of a pair, one network for each seed.

    The energy is the logit. Training stops when all unseen copies of each structure are told
    correctly, or after ``budget`` steps.

    Args:
        give_up: leave the other seeds when one fails.
    """
    accuracy, steps = [], []
    for seed in range(seeds):
        reached, taken = _train(subject, build(subject, layers, seed), pair, seed, budget)
        accuracy.append(reached)
        steps.append(taken)
        if give_up and reached < 1:
            break
    return Trained(tuple(accuracy), tuple(steps))


def _train(
    subject: Subject, network: nn.Module, pair: Pair, seed: int, budget: int
) -> tuple[float, int]:
    generator = torch.Generator().manual_seed(seed)
    graph, count = batch_of(pair), 1 if subject.exact else SHOWN
    label = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat_interleave(count)
    optimizer = Adam(network.parameters(), lr=RATE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of frames
        for step in range(1, budget + 1):
            network.train()
            batch = graph
            if not subject.exact:
                batch = copies_of(graph, SHOWN, subject.pose, generator)
            logit = subject.energy(network, batch)
            loss = nn.functional.binary_cross_entropy_with_logits(logit, label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            last = step == budget
            if last or (step % LOOK_EVERY == 0 and float(loss) < GOOD_LOSS):
                accuracy = _judged(subject, network, graph, generator)
                if last or accuracy == 1:
                    return accuracy, step
    raise ValueError(f"budget: {budget} steps; at least 1 is needed")


@torch.no_grad()
def _judged(
    subject: Subject, network: nn.Module, graph: AtomGraph, generator: torch.Generator
) -> float:
    """Share of unseen copies that are told correctly."""
    network.eval()
    count = JUDGED_EXACT if subject.exact else JUDGED
    copies = copies_of(graph, count, subject.pose, generator)
    second = subject.energy(network, copies).view(2, count) > 0
    right = torch.stack([~second[0], second[1]])
    return float(right.double().mean())
