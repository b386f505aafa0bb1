"""Which networks tell pairs of structures apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ocp_faenet.geometry.counterexamples import (
    Pair,
    Structure,
    forked_chains,
    hexagon_and_triangles,
    k_chains,
    mirror_images,
    same_distances,
    twisted_ends,
)
from ocp_faenet.models.expressive_faenets import all_faenets
from ocp_faenet.models.expressivity import (
    Pose,
    Subject,
    batch_of,
    build,
    copies_of,
    exactness,
    graph_of,
    trained,
)

FAMILIES = (k_chains, forked_chains, twisted_ends)


def verdict(subject: Subject, layers: int, pair: Pair):
    networks = [build(subject, layers, seed, shake=0.1) for seed in range(2)]
    return exactness(subject, networks, pair)


FAENETS = all_faenets()


@pytest.mark.parametrize(
    "name", ["3D stochastic", "3D det", "3D all", "3D learned", "2D all", "2D det"]
)
def test_faenet_tells_chains_apart_in_one_layer(name):
    subject = FAENETS[f"FAENet, {name}"]
    found = verdict(subject, 1, k_chains(4))
    assert found.separates
    assert found.noise < 1e-12
    first = k_chains(4).first
    same = verdict(subject, 1, Pair("a structure and its copy", first, moved(first, subject.pose)))
    assert same.largest_gap < 1e-13, "a copy is not told apart"


def moved(structure: Structure, pose: Pose) -> Structure:
    graph = copies_of(graph_of(structure), 1, pose, torch.Generator().manual_seed(3))
    return Structure(graph.positions, graph.atomic_numbers, graph.edge_index)


def test_without_frames_copies_differ_too():
    found = verdict(FAENETS["FAENet, no frames"], 1, k_chains(3))
    assert found.moves
    assert not found.separates


def test_without_graph_norm_all_frames_see_only_neighbourhoods():
    """Where axes say nothing, the mean over frames is local: forks need their layers."""
    subject = FAENETS["FAENet, 3D all, no graph norm"]
    assert verdict(subject, 1, forked_chains(2)).largest_gap < 1e-13
    assert verdict(subject, 2, forked_chains(2)).separates
    assert verdict(subject, 2, forked_chains(4)).largest_gap < 1e-13
    assert verdict(FAENETS["FAENet, 3D all"], 1, forked_chains(4)).separates
    assert verdict(FAENETS["FAENet, 3D det"], 1, forked_chains(4)).separates


def test_only_proper_frames_tell_mirror_images_apart():
    assert verdict(FAENETS["FAENet, 3D se3-all"], 1, mirror_images()).separates
    assert verdict(FAENETS["FAENet, 3D all"], 1, mirror_images()).largest_gap < 1e-13
    for name in ("2D se3-all", "2D se3-learned", "3D se3-learned"):
        found = verdict(FAENETS[f"FAENet, {name}"], 1, mirror_images())
        assert found.separates, name
        assert found.noise < 1e-12, name


def test_a_random_frame_gives_one_of_the_answers():
    subject = FAENETS["FAENet, 3D stochastic"]
    network = build(subject, 1, 0)
    graph = batch_of(k_chains(3))
    answers = subject.answers(network, graph)
    assert answers.shape[0] == 2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = torch.stack([subject.energy(network.eval(), graph) for _ in range(20)], dim=1)
    nearest = (drawn.unsqueeze(-1) - answers.unsqueeze(1)).abs().amin(-1)
    assert float(nearest.detach().max()) < 1e-12
    assert len({round(float(v), 12) for v in drawn[0].detach()}) > 1


def test_peers_are_what_theory_says_of_them():
    pytest.importorskip("fairchem")
    from ocp_faenet.adapters.expressive_peers import all_peers

    schnet, dimenet, painn = all_peers().values()
    assert verdict(schnet, 3, same_distances()).largest_gap < 1e-13
    assert verdict(schnet, 3, hexagon_and_triangles()).largest_gap < 1e-13
    assert verdict(dimenet, 1, same_distances()).separates
    assert verdict(dimenet, 2, hexagon_and_triangles()).separates
    assert verdict(dimenet, 2, k_chains(2)).largest_gap < 1e-13
    assert verdict(painn, 2, k_chains(4)).largest_gap < 1e-13
    assert verdict(painn, 3, k_chains(4)).separates
    assert verdict(painn, 3, twisted_ends(2)).largest_gap < 1e-13
    assert verdict(painn, 3, k_chains(4)).noise < 1e-12


def test_training_separates_what_can_be_separated_and_nothing_else():
    det, pair = FAENETS["FAENet, 3D det"], k_chains(2)
    outcome = trained(det, 1, pair, seeds=2, budget=100)
    assert outcome.accuracy == (1.0, 1.0)
    assert max(outcome.steps) < 100, "training stops when it is done"
    same = Pair("a structure and its copy", pair.first, moved(pair.first, Pose.SPACE))
    failed = trained(det, 1, same, seeds=3, budget=15)
    assert failed.accuracy == (0.5, 0.5, 0.5), "half of equal ones"
    with pytest.raises(ValueError, match="budget: 0"):
        trained(det, 1, pair, seeds=1, budget=0)


@pytest.mark.parametrize("name", ["3D all", "3D stochastic", "no frames"])
def test_networks_side_by_side_are_those_one_by_one(name):
    """Energies and gradients of each are what it gives by itself in the same frames."""
    subject, graph = FAENETS[f"FAENet, {name}"], batch_of(twisted_ends(3))
    ensembles = []
    for together in (subject.together, None):
        networks = [build(subject, 1, seed) for seed in range(3)]
        ensemble = replace(subject, together=together).ensemble(networks)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            if together is None:  # each draws frames: the same ones
                energies = []
                for network in networks:
                    torch.manual_seed(0)
                    energies.append(subject.energy(network.train(), graph))
                energy = torch.stack(energies)
            else:
                energy = ensemble.energy(graph)
        energy.square().sum().backward()
        ensembles.append((energy, ensemble, networks))
    (fast, stacked, _), (slow, _, networks) = ensembles
    assert torch.allclose(fast, slow, rtol=1e-12, atol=1e-13)
    assert not torch.allclose(fast[0], fast[1])
    grads = [torch.stack(each) for each in
             zip(*([w.grad for w in n.parameters()] for n in networks), strict=True)]  # fmt: skip
    for fast_grad, slow_grad in zip(stacked.weights, grads, strict=True):
        assert torch.allclose(fast_grad.grad, slow_grad, rtol=1e-9, atol=1e-13)


def test_training_learns_what_is_a_millionth_of_the_energy():
    """A loss on each energy by itself is lost on what the two have in common."""
    subject, pair = FAENETS["FAENet, 3D det"], twisted_ends(6)
    gap = verdict(subject, 1, pair).gap
    assert 1e-8 < gap < 1e-3
    assert trained(subject, 1, pair, seeds=1, budget=100).accuracy == (1.0,)


def test_a_difference_that_is_not_there_is_no_success():
    """Energies on both sides of zero by rounding are undecided: half right, not all."""
    det, pair = FAENETS["FAENet, 3D det"], forked_chains(2)
    nothing = trained(FAENETS["FAENet, 3D all, no graph norm"], 1, pair, seeds=1, budget=5)
    assert nothing.accuracy == (0.5,)
    assert trained(det, 1, pair, seeds=1, budget=100).accuracy == (1.0,)
