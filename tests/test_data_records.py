"""What is in the files, as the stock loader reads it, re-evaluated by ASE's EMT."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list
from fairchem.core.datasets import LmdbDataset

from data_cases import emt, quiet
from ocp_faenet.data.reader import open_lmdb
from ocp_faenet.data.relax_job import RATTLED_FID
from ocp_faenet.data.systems import Split, adsorbates_of, catalysts_of

SPLITS = [split.value for split in Split]
TYPES = {
    "pos": torch.float32,
    "pos_relaxed": torch.float32,
    "cell": torch.float32,
    "atomic_numbers": torch.float32,
    "fixed": torch.float32,
    "force": torch.float32,
    "distances": torch.float32,
    "tags": torch.int64,
    "edge_index": torch.int64,
    "cell_offsets": torch.int64,
}


def load(path):
    return LmdbDataset({"src": str(path / "data.lmdb")})


def mapping_of(data):
    with (data / "oc20_data_mapping.pkl").open("rb") as handle:
        return pickle.load(handle)


@pytest.mark.parametrize("split", SPLITS)
def test_is2re_labels_are_emts(tiny_data, split):
    mapping = mapping_of(tiny_data)
    dataset = load(tiny_data / "is2re" / split)
    for index in range(0, len(dataset), 3):
        item = dataset[index]
        reference = mapping[f"random{item.sid}"]["ref_energy"]
        start, forces = emt(item.atomic_numbers, item.pos, item.cell)
        end, final_forces = emt(item.atomic_numbers, item.pos_relaxed, item.cell)
        assert item.y_init == pytest.approx(start - reference, abs=1e-6)
        assert item.y_relaxed == pytest.approx(end - reference, abs=1e-6)
        np.testing.assert_allclose(item.force.numpy(), forces, atol=1e-6)
        free = item.fixed.numpy() == 0
        assert np.linalg.norm(final_forces[free], axis=1).max() < 0.031
        assert torch.equal(item.pos[item.fixed == 1], item.pos_relaxed[item.fixed == 1])


@pytest.mark.parametrize("split", SPLITS)
def test_s2ef_labels_are_emts(tiny_data, split):
    mapping = mapping_of(tiny_data)
    dataset = load(tiny_data / "s2ef" / split)
    for index in range(0, len(dataset), 5):
        item = dataset[index]
        energy, forces = emt(item.atomic_numbers, item.pos, item.cell)
        reference = mapping[f"random{item.sid}"]["ref_energy"]
        assert item.y == pytest.approx(energy - reference, abs=1e-6)
        np.testing.assert_allclose(item.force.numpy(), forces, atol=1e-6)


def test_s2ef_frames_are_of_the_same_relaxations(tiny_data):
    is2re = {int(r["sid"]): r for r in open_lmdb(tiny_data / "is2re/train/data.lmdb")}
    rattled = 0
    ends: set[int] = set()
    for frame in open_lmdb(tiny_data / "s2ef/train/data.lmdb"):
        record = is2re[int(frame["sid"])]
        assert torch.equal(frame["tags"], record["tags"])
        rattled += frame["fid"] >= RATTLED_FID
        if frame["fid"] == 0:
            assert torch.equal(frame["pos"], record["pos"])
        elif torch.equal(frame["pos"], record["pos_relaxed"]):
            ends.add(int(frame["sid"]))
            assert frame["y"] == pytest.approx(record["y_relaxed"], abs=1e-9)
    assert rattled == len(is2re)
    assert len(ends) > 0.9 * len(is2re)


def test_schema(tiny_data):
    sids = set()
    for split in SPLITS:
        dataset = load(tiny_data / "is2re" / split)
        for item in (dataset[0], dataset[len(dataset) - 1]):
            n_atoms = item.natoms
            for key, dtype in TYPES.items():
                assert item[key].dtype == dtype, key
            assert item.cell.shape == (1, 3, 3)
            assert item.pos.shape == item.pos_relaxed.shape == item.force.shape == (n_atoms, 3)
            assert isinstance(item.sid, int)
            assert isinstance(item.y_relaxed, float)
            assert set(item.tags.tolist()) == {0, 1, 2}
            assert torch.equal(item.fixed == 1, item.tags == 0)
        new = {int(record["sid"]) for record in open_lmdb(dataset.path)}
        assert len(new) == len(dataset)
        assert sids.isdisjoint(new)
        sids |= new


def test_edges_are_the_convention(tiny_data):
    item = load(tiny_data / "is2re/val_id")[1]
    j, i = item.edge_index
    vectors = item.pos[j] - item.pos[i] + item.cell_offsets.float() @ item.cell[0]
    torch.testing.assert_close(vectors.norm(dim=1), item.distances, atol=1e-4, rtol=0)
    assert torch.equal(i, i.sort(stable=True).values)
    cell = item.cell[0].double().numpy()
    atoms = Atoms(item.atomic_numbers.int(), item.pos.double(), cell=cell, pbc=True)
    centres, distances = neighbor_list("id", atoms, 6.0)
    for atom in range(item.natoms):
        nearest = np.sort(distances[centres == atom])[:50]
        ours = np.sort(item.distances[i == atom].numpy())
        np.testing.assert_allclose(ours, nearest, atol=1e-4)


@pytest.mark.parametrize("folder", ["is2re/train", "s2ef/val_id", "dense"])
def test_metadata_is_what_the_loader_balances_by(tiny_data, folder):
    dataset = load(tiny_data / folder)
    everything = list(range(len(dataset)))
    natoms = [dataset[k].natoms for k in everything]
    neighbors = [dataset[k].edge_index.shape[1] for k in everything]
    assert dataset.get_metadata("natoms", everything) == natoms
    assert dataset.get_metadata("neighbors", everything) == neighbors


def test_files_need_nothing_of_this_package(tiny_data):
    script = (
        "import sys; sys.modules['ocp_faenet'] = None\n"
        "import lmdb, pickle\n"
        f"path = {str(tiny_data / 'is2re/val_id/data.lmdb')!r}\n"
        "env = lmdb.open(path, subdir=False, readonly=True, lock=False)\n"
        "item = pickle.loads(env.begin().get(b'0'))\n"
        "assert item.pos.shape == (item.natoms, 3) and item.pos.is_contiguous()\n"
        "item.pos += 1\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=quiet(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-1000:]
    assert "not writable" not in done.stderr


def test_splits_draw_from_their_lists(tiny_data):
    mapping = mapping_of(tiny_data)
    for split in Split:
        names = {f"*{a.name}" for a in adsorbates_of(split)}
        bulks = {c.bulk_id for c in catalysts_of(split)}
        for record in open_lmdb(tiny_data / "is2re" / split.value / "data.lmdb"):
            entry = mapping[f"random{record['sid']}"]
            assert entry["ads_symbols"] in names
            assert entry["bulk_mpid"] in bulks


def test_dense_files_fit_together(tiny_data):
    tables = {}
    for name in ("mapping", "targets", "ref_energies", "tags", "compute"):
        with (tiny_data / f"dense/oc20dense_{name}.pkl").open("rb") as handle:
            tables[name] = pickle.load(handle)
    records = list(open_lmdb(tiny_data / "dense/data.lmdb"))
    assert set(tables["mapping"]) == {record["sid"] for record in records}
    configs: dict[str, set[str]] = {}
    for record in records:
        assert "y_relaxed" not in record  # as in OC20-Dense: energies are in the targets alone
        entry = tables["mapping"][record["sid"]]
        system = entry["system_id"]
        configs.setdefault(system, set()).add(entry["config_id"])
        np.testing.assert_array_equal(record["tags"].numpy(), tables["tags"][system])
        assert set(entry) == {
            "system_id", "config_id", "mpid", "miller_idx", "shift", "top", "adsorbate",
            "adsorption_site",
        }  # fmt: skip
    assert len(records) == sum(map(len, configs.values()))
    for system, targets in tables["targets"].items():
        names = [config for config, _ in targets]
        energies = np.array([energy for _, energy in targets])
        assert len(names) == len(set(names)) >= 3
        assert set(names) <= configs[system] == set(tables["compute"][system])
        assert (energies < energies.min() + 0.1).mean() <= 0.5
        assert isinstance(tables["ref_energies"][system], float)
    assert set(tables["targets"]) == set(configs)


def test_dense_targets_lie_below_their_starts(tiny_data):
    with (tiny_data / "dense/oc20dense_mapping.pkl").open("rb") as handle:
        mapping = pickle.load(handle)
    with (tiny_data / "dense/oc20dense_targets.pkl").open("rb") as handle:
        targets = {system: dict(entries) for system, entries in pickle.load(handle).items()}
    with (tiny_data / "dense/oc20dense_ref_energies.pkl").open("rb") as handle:
        references = pickle.load(handle)
    for record in list(open_lmdb(tiny_data / "dense/data.lmdb"))[::7]:
        entry = mapping[record["sid"]]
        target = targets[entry["system_id"]].get(entry["config_id"])
        if target is not None:
            energy, _ = emt(record["atomic_numbers"], record["pos"], record["cell"])
            assert target <= energy - references[entry["system_id"]] + 1e-6


def test_targets_can_be_learnt(tiny_data):
    """The adsorbate's composition alone explains most of the spread; noise would not be."""

    def read(split):
        records = list(open_lmdb(tiny_data / "is2re" / split / "data.lmdb"))
        counts = [
            np.bincount(r["atomic_numbers"][r["tags"] == 2].long(), minlength=9)[[0, 1, 6, 7, 8]]
            for r in records
        ]
        features = np.array(counts)
        features[:, 0] = 1
        return features, np.array([r["y_relaxed"] for r in records])

    features, energies = read("train")
    weights = np.linalg.lstsq(features, energies, rcond=None)[0]
    features, wanted = read("val_id")
    error = np.abs(features @ weights - wanted).mean()
    by_mean = np.abs(energies.mean() - wanted).mean()
    assert error < 0.5 * by_mean
