"""Which structures a network can tell apart: in exact arithmetic, and after training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

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
#: Training: every how many steps it is judged, the loss below which it is, and Adam's rate. A
#: difference of 1e-12 has to be learned from as well as one of 1, hence no epsilon.
LOOK_EVERY, GOOD_LOSS, RATE, EPSILON = 5, 0.5, 5e-3, 1e-60
#: An energy is decided that is this far from halfway between the two structures.
MARGIN = 0.2


class Pose(str, Enum):
    """Changes of pose that should not matter to a network."""

    SPACE = "rotations and reflections"
    PROPER = "rotations"
    PLANE = "rotations about z and vertical reflections"


class Ensemble(Protocol):
    """Networks that differ in their weights alone, trained side by side.

    Attributes:
        weights: what an optimizer changes.
    """

    weights: list[Tensor]

    def energy(self, graph: AtomGraph) -> Tensor:
        """``(S, B)``, of each of the ``S`` networks in training."""
        ...

    def networks(self) -> Sequence[nn.Module]:
        """Each network with its present weights."""
        ...


class Separate:
    """One after the other: an `Ensemble` of any networks."""

    def __init__(
        self, networks: Sequence[nn.Module], energy: Callable[[nn.Module, AtomGraph], Tensor]
    ) -> None:
        self._networks, self._energy = networks, energy
        self.weights: list[Tensor] = [w for each in networks for w in each.parameters()]

    def energy(self, graph: AtomGraph) -> Tensor:
        """``(S, B)``."""
        return torch.stack([self._energy(each.train(), graph) for each in self._networks])

    def networks(self) -> Sequence[nn.Module]:
        """Those that it was made of."""
        return self._networks


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
        together: networks as an `Ensemble`; by default one after the other.
    """

    name: str
    make: Callable[[int], nn.Module]
    energy: Callable[[nn.Module, AtomGraph], Tensor]
    answers: Callable[[nn.Module, AtomGraph], Tensor]
    pose: Pose = Pose.SPACE
    exact: bool = True
    together: Callable[[Sequence[nn.Module]], Ensemble] | None = None

    def ensemble(self, networks: Sequence[nn.Module]) -> Ensemble:
        """The networks side by side."""
        return Separate(networks, self.energy) if self.together is None else self.together(networks)


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


def trained(subject: Subject, layers: int, pair: Pair, seeds: int, budget: int) -> Trained:
    """Telling a pair apart, learned by one network for each seed.

    The zero of an energy means nothing, so what is learned is the difference: with ``E1`` and
    ``E2`` of the two structures the loss is ``log(1 + exp(E1 - E2))``, the mean over the copies
    that are shown. (A classifier whose logit is the energy spends its steps on what the two have in
    common, where that is a million times larger.) A network is done when it tells all unseen
    copies of each structure correctly, or after ``budget`` steps. All are shown the same copies, in
    the same frames where these are drawn.

    Raises:
        ValueError: a budget of no steps.
    """
    if budget < 1:
        raise ValueError(f"budget: {budget} steps; at least 1 is needed")
    generator = torch.Generator().manual_seed(0)
    graph = batch_of(pair)
    ensemble = subject.ensemble([build(subject, layers, seed) for seed in range(seeds)])
    optimizer = Adam(ensemble.weights, lr=RATE, eps=EPSILON)
    accuracy, steps = [0.5] * seeds, [budget] * seeds
    left = set(range(seeds))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of frames
        for step in range(1, budget + 1):
            batch = _shown(subject, graph, generator)
            first, second = ensemble.energy(batch).view(seeds, 2, -1).unbind(1)  # (S, copies)
            apart = second.unsqueeze(1) - first.unsqueeze(2)
            losses = nn.functional.softplus(-apart).mean((1, 2))  # (S,)
            optimizer.zero_grad()
            losses.sum().backward()
            optimizer.step()
            last = step == budget
            if not last and step % LOOK_EVERY:
                continue
            networks = ensemble.networks()
            for seed in sorted(left):
                if last or float(losses[seed]) < GOOD_LOSS:
                    accuracy[seed] = _judged(subject, networks[seed], graph, generator)
                    steps[seed] = step
                    left -= {seed} if accuracy[seed] == 1 else set()
            if not left:
                break
    return Trained(tuple(accuracy), tuple(steps))


def _shown(subject: Subject, graph: AtomGraph, generator: torch.Generator) -> AtomGraph:
    """What a step of training sees: the pair, or copies where the pose may matter."""
    if subject.exact:
        return graph
    return copies_of(graph, SHOWN, subject.pose, generator)


@torch.no_grad()
def _judged(
    subject: Subject, network: nn.Module, graph: AtomGraph, generator: torch.Generator
) -> float:
    """Share of unseen copies that are told correctly; those within `MARGIN` of zero count half.

    Zero is halfway between the mean energies of copies that might have been shown.
    """
    network.eval()
    known = subject.energy(network, _shown(subject, graph, generator)).view(2, -1)
    count = JUDGED_EXACT if subject.exact else JUDGED
    copies = copies_of(graph, count, subject.pose, generator)
    energy = subject.energy(network, copies).view(2, count) - known.mean()
    right = torch.stack([-energy[0], energy[1]])
    told = torch.where(right.abs() > MARGIN, (right > 0).double(), 0.5)
    return float(told.mean())
