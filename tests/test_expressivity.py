"""Pairs that look alike, who tells them apart, and the verb that says so."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ocp_faenet.cli import expressivity as verb
from ocp_faenet.cli import main
from ocp_faenet.cli.expressivity_report import text_of
from ocp_faenet.geometry.counterexamples import (
    BOND,
    CUTOFF,
    Pair,
    Structure,
    counterexamples,
    forked_chains,
    hexagon_and_triangles,
    k_chains,
    mirror_images,
    same_angles,
    same_distances,
    same_tetrahedra,
    twisted_ends,
)
from ocp_faenet.models.expressive_faenets import KINDS, all_faenets
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


# --- slow oracles -------------------------------------------------------------------------------


def rounded(value):
    return round(float(value), 6)


def distances(structure: Structure):
    return torch.cdist(structure.positions, structure.positions)


def within(structure: Structure, atom: int, hops: int) -> list[int]:
    """The atoms at most ``hops`` edges from ``atom``."""
    seen, edges = {atom}, structure.edge_index.T.tolist()
    for _ in range(hops):
        seen |= {b for a, b in edges if a in seen}
    return sorted(seen)


def neighbourhoods(structure: Structure, hops: int) -> Counter:
    """Of each atom, the species and distances of all pairs that it can hear of."""
    d, z = distances(structure), structure.atomic_numbers.tolist()
    found = []
    for atom in range(len(z)):
        near = within(structure, atom, hops)
        pairs = [(*sorted((z[i], z[j])), rounded(d[i, j])) for i in near for j in near if i < j]
        found.append((z[atom], tuple(sorted(pairs))))
    return Counter(found)


def angles(structure: Structure, atom: int) -> Counter:
    """Of the neighbours of an atom: bond lengths of each two, and their scalar product."""
    x = structure.positions
    near = [j for j in within(structure, atom, 1) if j != atom]
    arms = {j: x[j] - x[atom] for j in near}
    return Counter(
        (*sorted((rounded(arms[i].norm()), rounded(arms[j].norm()))), rounded(arms[i] @ arms[j]))
        for i, j in itertools.combinations(near, 2)
    )


def congruent(pair: Pair) -> bool:
    """Whether some order of atoms makes all distances, and species, the same."""
    a, b = distances(pair.first), distances(pair.second)
    z, w = pair.first.atomic_numbers, pair.second.atomic_numbers

    def extend(order: list[int]) -> bool:
        place = len(order)
        if place == len(z):
            return True
        return any(
            j not in order
            and z[place] == w[j]
            and torch.allclose(a[place, :place], b[j, order], atol=1e-9)
            and extend([*order, j])
            for j in range(len(z))
        )

    return extend([])


@pytest.mark.parametrize("make", FAMILIES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("k", [2, 3, 4, 7])
def test_families_differ_first_at_the_hop_that_theory_names(make, k):
    """Local geometry is the same up to k // 2 hops and differs one further on."""
    pair = make(k)
    assert not congruent(pair)
    for structure in (pair.first, pair.second):
        edges = distances(structure)[tuple(structure.edge_index)]
        assert torch.allclose(edges, torch.full_like(edges, BOND))
        assert len(structure.positions) == k + 2 * {"chain": 1, "fork": 2}.get(
            pair.name.split()[0], k
        )
    needed = k // 2 + 1
    assert neighbourhoods(pair.first, needed - 1) == neighbourhoods(pair.second, needed - 1)
    assert neighbourhoods(pair.first, needed) != neighbourhoods(pair.second, needed)


def test_a_cutoff_would_find_the_edges_of_chains():
    for structure in (k_chains(5).first, k_chains(5).second):
        near = (distances(structure) < CUTOFF).fill_diagonal_(False).nonzero().T
        assert set(map(tuple, near.T.tolist())) == set(map(tuple, structure.edge_index.T.tolist()))


def test_forks_put_atoms_on_the_same_points():
    """Second moments, hence principal axes, are those of the same set of points."""
    pair = forked_chains(4)
    assert torch.allclose(pair.first.positions[:6], pair.second.positions[:6])
    assert torch.allclose(pair.first.positions[6:], pair.second.positions[6:].flip(0), atol=1e-12)


def test_counterexamples_have_the_statistics_that_they_are_named_for():
    pairs = counterexamples()
    assert [congruent(pair) for pair in pairs] == [False] * 4 + [True]
    two = same_distances()
    assert distances(two.first)[0].tolist() == pytest.approx(distances(two.second)[0].tolist())
    whole = hexagon_and_triangles()
    rows = [distances(s).sort(dim=-1).values for s in (whole.first, whole.second)]
    assert torch.allclose(rows[0], rows[0][:1]), "every atom sees the same distances"
    assert torch.allclose(rows[0], rows[1])
    angled = same_angles()
    assert angles(angled.first, 0) == angles(angled.second, 0)
    assert angles(two.first, 0) != angles(two.second, 0)


def volumes(structure: Structure) -> Counter:
    """Of each three neighbours of the first atom: their Gram matrix up to order."""
    arms = structure.positions[1:] - structure.positions[0]
    gram = arms @ arms.T
    found = []
    for three in itertools.combinations(range(len(arms)), 3):
        orders = [
            tuple(rounded(gram[a, b]) for a in order for b in order)
            for order in itertools.permutations(three)
        ]
        found.append(min(orders))
    return Counter(found)


def test_tetrahedra_are_the_same_and_the_pair_with_the_same_angles_has_others():
    pair, other = same_tetrahedra(), same_angles()
    assert volumes(pair.first) == volumes(pair.second)
    assert volumes(other.first) != volumes(other.second)


def test_mirror_images_are_no_rotations_of_each_other():
    first, second = (s.positions for s in (mirror_images().first, mirror_images().second))
    lengths = distances(mirror_images().first)[0, 1:]
    assert len(set(map(rounded, lengths))) == 4, "the order of atoms is fixed"
    ratio = torch.linalg.det(first[1:4]) / torch.linalg.det(second[1:4])
    assert float(ratio) == pytest.approx(-1)


# --- verdicts -----------------------------------------------------------------------------------


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
    assert len({rounded(v * 1e6) for v in drawn[0].detach()}) > 1


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


# --- the verb -----------------------------------------------------------------------------------


def run(*args):
    return CliRunner().invoke(main, ["expressivity", *map(str, args)])


def test_from_the_command_to_the_document(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("<!-- table:expressivity -->\nobsolete\n<!-- /table:expressivity -->\n")
    report = tmp_path / "e.json"
    args = ("--models", "FAENet, 3D all", "--models", "FAENet, 3D all, no graph norm")
    args += ("--families", "chain,fork", "--largest", 2, "--layers", 1, "--inits", 1)
    args += ("--seeds", 1, "--train", "chain", "--json", report)
    done = run(*args, "--plot", tmp_path / "e.png", "--into", page)
    assert done.exit_code == 0, done.output
    cells = json.loads(report.read_text())["cells"]
    texts = {(cell["model"], cell["pair"]): text_of(cell) for cell in cells}
    assert texts["FAENet, 3D all", "chain 2"] == "**1**"
    assert texts["FAENet, 3D all", "fork 2"] == "1"
    assert texts["FAENet, 3D all, no graph norm", "fork 2"] == "-"
    assert "| FAENet, 3D all                | **1** |" in page.read_text()
    assert "obsolete" not in page.read_text()
    assert (tmp_path / "e.png").stat().st_size > 10_000
    for what in ("look", "train"):
        monkeypatch.setattr(verb.Examiner, what, lambda *_: pytest.fail("done again"))
    assert run(*args).exit_code == 0
    assert json.loads(report.read_text())["cells"] == cells
    assert json.loads(report.read_text())["command"] == (
        "ocp-faenet expressivity --models 'FAENet, 3D all' --models 'FAENet, 3D all, no graph norm'"
        " --families chain,fork --largest 2 --layers 1 --inits 1 --train chain --seeds 1"
    )
    other = run(*args, "--budget", 50)
    assert other.exit_code == 2
    assert "holds cells with another command, budget" in other.output
    assert json.loads(report.read_text())["cells"] == cells


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--models", "FAENet, 4D"), "'FAENet, 4D' is not known"),
        (("--families", "chain,ring"), "'ring': the families are chain, fork"),
        (("--train", "ring"), "--train 'ring'"),
    ],
)
def test_bad_input_is_one_line(args, message):
    done = run(*args)
    assert done.exit_code == 2
    assert message in done.output


def test_a_file_of_something_else_is_not_overwritten(tmp_path):
    other = tmp_path / "other.json"
    other.write_text("[1]")
    done = run("--json", other)
    assert done.exit_code == 2
    assert "is no report of expressivity" in done.output
    assert other.read_text() == "[1]"


def test_marks_of_a_cell():
    cell = {"moves": False, "at": 2, "trained": {"accuracy": [1.0, 0.5]}}
    assert text_of(cell) == "2*"
    assert text_of({**cell, "moves": True}) == "(0.50)"
    assert text_of({**cell, "moves": True, "trained": None}) == "pose"


# --- what was published -------------------------------------------------------------------------


def theory(model: str, family: str, k: int) -> int | None:
    """Fewest layers by hand: what one round of messages, and a frame of all atoms, can carry."""
    local = k // 2 + 1
    if model in ("SchNet", "DimeNet++"):
        return None  # distances and angles of bonds say nothing of the other end
    if model == "PaiNN":  # vectors go along the row; of an L-fold end nothing of order one does
        return None if family == "fold" else local
    if model == "FAENet, 3D all, no graph norm" and family == "fork":
        return local
    return 1


def test_published_verdicts_are_those_of_theory():
    """Up to where float64 ends: PaiNN's difference falls a hundredfold every two atoms."""
    path = Path(__file__).parents[1] / "docs" / "results" / "expressivity.json"
    report = json.loads(path.read_text())
    assert report["command"] == "ocp-faenet expressivity", "from one command, with its defaults"
    assert {report[key] for key in verb.METHOD} == set(verb.METHOD.values())
    cells = {(cell["model"], cell["pair"]): cell for cell in report["cells"]}
    assert len(cells) == (len(KINDS) + len(verb.PEERS)) * (3 * 9 + 5)
    for (model, pair), cell in cells.items():
        family, k = cell["family"], pair.split()[-1]
        if model == "FAENet, no frames":
            assert cell["moves"], pair
        elif family != "other":
            known = {theory(model, family, int(k))}
            known |= {None} if model == "PaiNN" and int(k) >= 8 else set()
            assert cell["at"] in known, (model, pair)
    for model in ("FAENet, 3D all", "FAENet, 3D stochastic"):
        for k in range(2, 11):
            for family in ("chain", "fold"):
                seeds = cells[model, f"{family} {k}"]["trained"]["accuracy"]
                assert seeds == [1.0] * 10, f"the report's claim: {model}, {family} {k}"
