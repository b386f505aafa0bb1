"""Kinds of networks under examination, and copies of structures in poses that should not matter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from ocp_faenet.geometry.counterexamples import Pair, Structure
from ocp_faenet.geometry.rotations import (
    random_orthogonal,
    random_rotations,
    random_rotations_about_z,
)
from ocp_faenet.models.graph import AtomGraph
from ocp_faenet.models.transforms import (
    joined,
    permuted,
    random_order,
    repeated,
    translated,
    turned,
)


class Pose(str, Enum):
    """Changes of pose that should not matter to a network."""

    SPACE = "rotations and reflections"
    PROPER = "rotations"
    PLANE = "rotations about z and vertical reflections"
    PROPER_PLANE = "rotations about z"


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
    make = _MATRICES[pose]
    return make(count, dtype=torch.float64, generator=generator)


_MATRICES: dict[Pose, Callable[..., Tensor]] = {
    Pose.SPACE: random_orthogonal,
    Pose.PROPER: random_rotations,
    Pose.PLANE: partial(random_orthogonal, about_z=True),
    Pose.PROPER_PLANE: random_rotations_about_z,
}
