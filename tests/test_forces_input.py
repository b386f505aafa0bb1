"""Structures of a user's own, and records that cannot be trained on (issue 4, points 6 and 7)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.optimize import BFGS
from fairchem.core import OCPCalculator
from fairchem.core.datasets import data_list_collater
from torch_geometric.data import Data

import plugin_fixtures as fx
from ocp_faenet.adapters.plugin import PUBLIC
from ocp_faenet.adapters.preflight import check_free_atoms, check_labels

OUTPUTS = {
    "energy": {"level": "system"},
    "forces": {"level": "atom", "train_on_free_atoms": True, "eval_on_free_atoms": True},
}
MAPPING = {"y": "energy", "force": "forces"}


def dataset(folder: Path, *faults):
    """Four records, each changed by the fault at its place."""
    records = [fx.slab_record(seed) for seed in range(4)]
    for record, fault in zip(records, faults, strict=False):
        fault(record)
    path = fx.write_lmdb(folder / "data.lmdb", records)
    return PUBLIC["CheckedLmdbDataset"]({"src": str(path), "key_mapping": MAPPING})


def sound(record: Data) -> None:
    pass


def drop_force(record: Data) -> None:
    del record.force


def cut_force(record: Data) -> None:
    record.force = record.force[:-1]


def break_force(record: Data) -> None:
    record.force[0, 1] = torch.nan


def fix_all(record: Data) -> None:
    record.fixed = torch.ones_like(record.fixed)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (drop_force, r"record sid=1001 \(index 1\) has no forces, unlike the first record"),
        (cut_force, r"record sid=1001 \(index 1\): forces of shape \(\d+, 3\) for \d+ atoms"),
        (break_force, r"record sid=1001 \(index 1\): forces is not finite; repair or drop"),
    ],
)
def test_a_record_with_wrong_forces_is_named(tmp_path, fault, message):
    data = dataset(tmp_path, sound, fault)
    assert data[0].forces.shape == data[0].pos.shape
    with pytest.raises(ValueError, match=message):
        data[1]


def test_a_split_without_forces_is_named(tmp_path):
    data = dataset(tmp_path, *[drop_force] * 4)
    with pytest.raises(ValueError, match=r"dataset\.val: record sid=1000 has no 'forces'.*key_map"):
        check_labels("val", data[0], OUTPUTS)
    check_labels("val", data[0], {"energy": OUTPUTS["energy"]})


def test_structures_that_cannot_move_are_named():
    records = [fx.slab_record(seed) for seed in range(3)]
    check_free_atoms(data_list_collater(records, otf_graph=True), OUTPUTS)
    fix_all(records[1])
    batch = data_list_collater(records, otf_graph=True)
    with pytest.raises(ValueError, match="every atom is fixed: sid 1001; losses and metrics"):
        check_free_atoms(batch, OUTPUTS)
    everywhere = {"train_on_free_atoms": False, "eval_on_free_atoms": False}
    check_free_atoms(batch, {**OUTPUTS, "forces": {**OUTPUTS["forces"], **everywhere}})


def calculator(folder: Path, **options) -> OCPCalculator:
    """From a checkpoint whose weights were never trained, forces as large as eV/Å."""
    settings = {**fx.TINY, "otf_graph": True, "regress_forces": "from_energy", "skip_co": None}
    settings |= {"frame_averaging": "3D", "eval_fa_method": "all", **options}
    path = fx.untrained(folder / "checkpoint.pt", settings, scale=50.0)
    return OCPCalculator(checkpoint_path=path, cpu=True)


def test_a_molecule_without_a_cell_is_relaxed(tmp_path):
    atoms = molecule("CH3OH")
    atoms.calc = calculator(tmp_path, use_pbc=False, tag_hidden_channels=0)
    start = atoms.get_potential_energy()
    forces = atoms.get_forces()
    step = 1e-2
    atoms.positions[2, 0] += step
    up = atoms.get_potential_energy()
    atoms.positions[2, 0] -= 2 * step
    down = atoms.get_potential_energy()
    atoms.positions[2, 0] += step
    assert forces[2, 0] == pytest.approx((down - up) / (2 * step), rel=0.05, abs=1e-2)
    BFGS(atoms, logfile=None).run(fmax=1e-6, steps=8)
    assert atoms.get_potential_energy() < start - 1e-3


def test_molecules_of_all_sizes_in_one_batch_are_themselves():
    torch.manual_seed(0)
    options = {"otf_graph": True, "use_pbc": False, "tag_hidden_channels": 0}
    model = PUBLIC["FAENet"](**{**fx.TINY, **options, "regress_forces": "from_energy"})
    model = model.double().eval()
    records = []
    for sid, name in enumerate(("H2O", "CH3OH", "C6H6", "H")):
        atoms = molecule(name)
        position = torch.tensor(atoms.positions)
        numbers = torch.tensor(atoms.numbers)
        records.append(Data(pos=position, atomic_numbers=numbers, natoms=len(atoms), sid=sid))
    together = model(data_list_collater(records, otf_graph=True))
    alone = [model(data_list_collater([record], otf_graph=True)) for record in records]
    torch.testing.assert_close(together["energy"], torch.cat([o["energy"] for o in alone]))
    torch.testing.assert_close(together["forces"], torch.cat([o["forces"] for o in alone]))
    assert torch.equal(together["forces"][-1], torch.zeros(3, dtype=torch.float64))  # one H


def test_isolated_atoms_feel_nothing_and_change_nothing(tmp_path):
    calc = calculator(tmp_path, use_pbc=False, tag_hidden_channels=0)
    pair = molecule("H2O")
    far = pair + Atoms("He", positions=[[0, 0, 60.0]])
    found = []
    for atoms in (pair, far, Atoms("He")):
        atoms.calc = calc
        found.append((atoms.get_potential_energy(), atoms.get_forces()))
    np.testing.assert_allclose(found[1][1][-1], 0.0, atol=1e-6)
    assert np.isfinite(found[1][1]).all()
    assert np.isfinite(found[2][0])


def test_untagged_atoms_are_refused_where_tags_decide(tmp_path):
    atoms = Atoms("Cu", cell=[5, 5, 5], pbc=True)
    atoms.calc = calculator(tmp_path, graph_rewiring="remove-tag-0")
    with pytest.raises(ValueError, match=r"every tag is 0.*Set tags"):
        atoms.get_potential_energy()
