"""Which structures a network learns to tell apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.adam import Adam

from ocp_faenet.geometry.counterexamples import Pair
from ocp_faenet.models.expressive_subjects import Subject, batch_of, build, copies_of
from ocp_faenet.models.graph import AtomGraph

#: Copies of each structure that are shown at a time in training.
SHOWN = 4
#: Copies of each structure that accuracy is taken over: all are alike to an exact network.
JUDGED_EXACT, JUDGED = 2, 50
#: Training: every how many steps it is judged, the loss below which it is, and Adam's rate. A
#: difference of 1e-12 has to be learned from as well as one of 1, hence no epsilon.
LOOK_EVERY, GOOD_LOSS, RATE, EPSILON = 5, 0.5, 5e-3, 1e-60
#: An energy is decided that is this far from halfway between the two structures.
MARGIN = 0.2
#: What the verdict after training rests on.
TRAINING: Mapping[str, float] = {
    "shown": SHOWN, "judged_exact": JUDGED_EXACT, "judged": JUDGED, "look_every": LOOK_EVERY,
    "good_loss": GOOD_LOSS, "rate": RATE, "epsilon": EPSILON, "margin": MARGIN,
}  # fmt: skip


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
