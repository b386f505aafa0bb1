"""Pairs of structures that look alike, by slow oracles."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

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

FAMILIES = (k_chains, forked_chains, twisted_ends)


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
