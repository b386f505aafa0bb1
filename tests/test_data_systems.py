"""The catalogue, slabs and placements."""

from __future__ import annotations

import numpy as np
import pytest
from ase.data import atomic_numbers

from data_cases import emt
from ocp_faenet.data.pairs import periodic_pairs
from ocp_faenet.data.reference import atom_references, gas_molecule, gas_reference
from ocp_faenet.data.simulate import (
    draw_adsorbate,
    draw_system,
    heuristic_placement,
    random_placement,
    relax_placement,
)
from ocp_faenet.data.slabs import bare_slab, build_slab, draw_surface, heuristic_sites
from ocp_faenet.data.systems import (
    TERMINATIONS,
    Adsorbate,
    Catalyst,
    Split,
    Termination,
    adsorbates_of,
    catalysts_of,
)

METALS = {"Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au"}


def test_splits_hold_out_what_they_say():
    train_ads, train_cat = set(adsorbates_of(Split.TRAIN)), set(catalysts_of(Split.TRAIN))
    for split in Split:
        ads, cat = set(adsorbates_of(split)), set(catalysts_of(split))
        assert ads.isdisjoint(train_ads) if split.new_adsorbates else ads == train_ads
        assert cat.isdisjoint(train_cat) if split.new_catalysts else cat == train_cat


def test_every_element_is_seen_in_training():
    ads = {z for adsorbate in adsorbates_of(Split.TRAIN) for z in adsorbate.numbers}
    metals = {m for c in catalysts_of(Split.TRAIN) for m in (c.host, c.guest) if m}
    assert ads == {1, 6, 7, 8}
    assert metals == METALS


@pytest.mark.parametrize("metal", sorted(METALS))
def test_slabs(metal):
    for termination, _ in TERMINATIONS:
        slab = bare_slab(metal, termination)
        assert 12 <= len(slab.numbers) <= 80
        surface, below = slab.positions[slab.tags == 1], slab.positions[slab.tags == 0]
        assert len(surface) >= 4
        assert len(below) >= 4
        assert surface[:, 2].min() > below[:, 2].max() - 1e-6
        heights = slab.cell[2, 2] - np.ptp(slab.positions[:, 2])
        assert heights > 12.0  # vacuum, Å
        assert np.array_equal(slab.cell, slab.cell.astype(np.float32))
        nearest = periodic_pairs(slab.positions, slab.cell, 1.3 * slab.nearest).distances.min()
        assert nearest == pytest.approx(slab.nearest, rel=1e-3)


def test_alloys_have_guests_in_the_surface_alone():
    rng = np.random.default_rng(0)
    spec = draw_surface(rng, Catalyst("Cu", "Pd"), Termination((1, 1, 1), (3, 3, 3)))
    slab = build_slab(spec)
    guests = slab.numbers == atomic_numbers["Pd"]
    assert guests.sum() == len(spec.guests)
    assert 1 <= guests.sum() <= 0.5 * (slab.tags == 1).sum() + 1
    assert (slab.tags[guests] == 1).all()
    assert not draw_surface(rng, Catalyst("Cu"), Termination((1, 1, 1), (3, 3, 3))).guests


@pytest.mark.parametrize(
    ("miller", "expected"),
    [((1, 1, 1), {"top": 0.0, "hollow": 1 / np.sqrt(3)}), ((1, 0, 0), {"hollow": 1 / np.sqrt(2)})],
)
def test_sites_are_where_they_should_be(miller, expected):
    slab = bare_slab("Cu", Termination(miller, (3, 3, 3)))
    surface = slab.positions[slab.tags == 1]
    top, bridge, hollow = heuristic_sites(slab)

    def gap(places):
        """Distance in the plane to the nearest surface atom, in nearest-neighbour distances."""
        delta = (surface[None, :, :2] - places[:, None]) @ np.linalg.inv(slab.cell[:2, :2])
        delta = (delta - np.rint(delta)) @ slab.cell[:2, :2]
        return np.linalg.norm(delta, axis=-1).min(axis=1) / slab.nearest

    np.testing.assert_allclose(gap(top), 0.0, atol=1e-6)
    np.testing.assert_allclose(gap(bridge), 0.5, atol=1e-6)
    np.testing.assert_allclose(gap(hollow), expected["hollow"], atol=1e-6)


def test_gas_references_are_oc20s_sums():
    """H from H2, O from H2O, C from CO, N from N2: those four molecules then count as zero."""
    table = atom_references()
    molecules = {
        (1, 1): ((0, 0, 0), (0, 0, 0.76)),
        (7, 7): ((0, 0, 0), (0, 0, 1.0)),
        (6, 8): ((0, 0, 0), (0, 0, 1.06)),
        (8, 1, 1): ((0, 0, 0), (0.86, 0, 0.68), (-0.86, 0, 0.68)),
    }
    for numbers, offsets in molecules.items():
        molecule = Adsorbate("any", numbers, offsets)
        energy, positions = gas_molecule(molecule)
        by_ase, forces = emt(numbers, positions + 12.0, np.eye(3) * 24.0)
        assert energy == pytest.approx(by_ase, abs=1e-6)
        assert np.abs(forces).max() < 0.01
        assert gas_reference(molecule) == pytest.approx(energy, abs=1e-6)
    assert set(table) == {1, 6, 7, 8}


@pytest.mark.parametrize("place", [heuristic_placement, random_placement])
def test_placements_touch_the_surface_and_repeat(place):
    for seed in range(5):
        split = list(Split)[seed]
        rng = np.random.default_rng(seed)
        system = draw_system(rng, split, draw_adsorbate(rng, split))
        placed = place(rng, system)
        relaxed = relax_placement(system, placed)
        start = relaxed.frames[0]
        ads, slab = start[relaxed.tags == 2], start[relaxed.tags != 2]
        reach = periodic_pairs(start, relaxed.cell, 3.0)
        between = (relaxed.tags[reach.centre] == 2) & (relaxed.tags[reach.neighbour] < 2)
        assert 1.2 < reach.distances[between].min() < 2.3
        assert len(ads) == len(system.adsorbate.numbers)
        assert len(slab) == len(relaxed.tags) - len(ads)
        rng = np.random.default_rng(seed)
        again = draw_system(rng, split, draw_adsorbate(rng, split))
        assert again == system
        np.testing.assert_array_equal(place(rng, again), placed)


def test_adsorption_energy_is_total_less_slab_less_gas():
    rng = np.random.default_rng(3)
    adsorbate = adsorbates_of(Split.TRAIN)[3]
    system = draw_system(rng, Split.TRAIN, adsorbate)
    relaxed = relax_placement(system, heuristic_placement(rng, system))
    clean = relaxed.frames[0][relaxed.tags != 2]
    slab_energy, slab_forces = emt(relaxed.numbers[relaxed.tags != 2], clean, relaxed.cell)
    total, _ = emt(relaxed.numbers, relaxed.frames[-1], relaxed.cell)
    expected = total - slab_energy - gas_reference(adsorbate)
    assert relaxed.y_relaxed == pytest.approx(expected, abs=1e-9)
    free = relaxed.tags[relaxed.tags != 2] == 1
    assert np.linalg.norm(slab_forces[free], axis=1).max() < 0.011  # the slab alone is relaxed
