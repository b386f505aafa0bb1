"""Leaderboard files: what the host writes, what a submission needs, and every fault named."""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from fairchem.core.common import distutils
from fairchem.core.common.flags import flags
from fairchem.core.common.utils import build_config, new_trainer_context
from torch_geometric.data import Data

from ocp_faenet.cli import main
from ocp_faenet.metrics.submission import SPLITS, write_arrays
from plugin_fixtures import TINY, run_config, slab_record, write_splits

SIZES = (4, 3, 5)
OPTIONS = dict(zip(SPLITS, ("--id", "--ood-ads", "--ood-cat", "--ood-both"), strict=True))


def run(*args):
    return CliRunner().invoke(main, ["submission", *map(str, args)])


def fixed_atoms(size: int) -> np.ndarray:
    return (np.arange(size) < 2).astype(int)


def write_lmdb(path: Path, split: str, with_fid: bool) -> Path:
    env = lmdb.open(str(path), subdir=False, map_size=2**20, lock=False)
    with env.begin(write=True) as transaction:
        for index, size in enumerate(SIZES):
            record = Data(
                pos=torch.zeros(size, 3),
                atomic_numbers=torch.ones(size),
                fixed=torch.as_tensor(fixed_atoms(size)),
                sid=100 * SPLITS.index(split) + index,
            )
            if with_fid:
                record.fid = torch.tensor([7])
            transaction.put(str(index).encode(), pickle.dumps(record))
        transaction.put(b"length", pickle.dumps(len(SIZES)))
    env.close()
    return path


def predictions(split: str, task: str, dtype=np.float32) -> dict[str, np.ndarray]:
    """As the host's trainer writes them: (n, 1) energies, forces of free atoms."""
    rng = np.random.default_rng(SPLITS.index(split))
    suffix = "" if task == "is2re" else "_7"
    order = [2, 0, 1]
    arrays = {
        "ids": np.array([f"{100 * SPLITS.index(split) + i}{suffix}" for i in order]),
        "energy": rng.normal(size=(3, 1)).astype(dtype),
    }
    if task == "s2ef":
        free = [SIZES[i] - 2 for i in order]
        arrays["forces"] = rng.normal(size=(sum(free), 3)).astype(dtype)
        arrays["chunk_idx"] = np.cumsum(free)[:-1]
    return arrays


@pytest.fixture
def make(tmp_path):
    """Predictions and LMDBs of the four splits; returns the arguments of both commands."""

    def _make(task: str, dtype=np.float32):
        files, lmdbs = [], []
        for split, option in OPTIONS.items():
            path = tmp_path / f"{split}.npz"
            np.savez_compressed(path, **predictions(split, task, dtype))
            files += [option, path]
            lmdb_path = write_lmdb(tmp_path / f"{split}.lmdb", split, task == "s2ef")
            lmdbs += ["--lmdb", f"{split}={lmdb_path}"]
        return files, lmdbs

    return _make


def test_is2re_equals_the_hosts_file(make, tmp_path):
    from fairchem.core.scripts.make_submission_file import write_predictions

    files, lmdbs = make("is2re")
    out = tmp_path / "out" / "ours.npz"
    result = run("build", "--task", "is2re", *files, *lmdbs, out)
    assert result.exit_code == 0, result.output
    host = tmp_path / "host.npz"
    paths = dict(zip(SPLITS, files[1::2], strict=True))
    write_predictions(
        argparse.Namespace(is2re_relaxations=False, dataset="OC20", out_path=host, **paths)
    )
    ours, theirs = np.load(out), np.load(host, allow_pickle=True)
    assert sorted(ours.files) == sorted(theirs.files)
    for split in SPLITS:
        assert ours[f"{split}_ids"].tolist() == theirs[f"{split}_ids"].tolist()
        assert ours[f"{split}_energy"].dtype == np.float32
        assert ours[f"{split}_energy"].shape == (3,)
        np.testing.assert_array_equal(ours[f"{split}_energy"], theirs[f"{split}_energy"].ravel())
    assert run("check", out, *lmdbs).exit_code == 0
    assert [path.name for path in out.parent.iterdir()] == ["ours.npz"]


def test_s2ef_all_atoms_with_zeros_where_fixed(make, tmp_path):
    files, lmdbs = make("s2ef")
    out = tmp_path / "ours.npz"
    assert run("build", "--task", "s2ef", *files, *lmdbs, out).exit_code == 0
    arrays, source = np.load(out), predictions("ood_cat", "s2ef")
    assert arrays["ood_cat_chunk_idx"].tolist() == [5, 9]
    blocks = np.split(arrays["ood_cat_forces"], arrays["ood_cat_chunk_idx"])
    for block, free in zip(blocks, np.split(source["forces"], source["chunk_idx"]), strict=True):
        np.testing.assert_array_equal(block[:2], 0)
        np.testing.assert_array_equal(block[2:], free)
    assert run("check", out, *lmdbs).exit_code == 0
    wrong = run("check", out, *lmdbs, "--format", "evalai")
    assert wrong.exit_code == 2
    assert "free atoms" in wrong.output


def test_s2ef_evalai_keeps_free_atoms(make, tmp_path):
    files, lmdbs = make("s2ef")
    out = tmp_path / "ours.npz"
    assert run("build", "--task", "s2ef", *files, "--format", "evalai", out).exit_code == 0
    arrays, source = np.load(out), predictions("id", "s2ef")
    np.testing.assert_array_equal(arrays["id_forces"], source["forces"])
    np.testing.assert_array_equal(arrays["id_chunk_idx"], source["chunk_idx"])
    assert run("check", out, *lmdbs, "--format", "evalai").exit_code == 0
    assert run("check", out, *lmdbs).exit_code == 2


def test_s2ef_leaderboard_needs_the_lmdb(make, tmp_path):
    files, _ = make("s2ef")
    result = run("build", "--task", "s2ef", *files, tmp_path / "ours.npz")
    assert result.exit_code == 2
    assert "--lmdb id=PATH" in result.output
    assert not (tmp_path / "ours.npz").exists()


@pytest.fixture
def s2ef_run(tmp_path):
    """A FAENet with forces after one epoch by the stock trainer; its checkpoint and its own
    predictions of four records (forces of free atoms)."""
    write_splits(tmp_path)
    model = {"name": "ocp_faenet.FAENet", **TINY, "otf_graph": True, "regress_forces": "direct"}
    config_yml = tmp_path / "config.yml"
    config_yml.write_text(yaml.safe_dump(run_config(tmp_path, model)))
    command = ["--mode=train", f"--config-yml={config_yml}", f"--run-dir={tmp_path}", "--cpu"]
    command += ["--timestamp-id=run", "--optim.batch_size=5"]
    config = build_config(*flags.get_parser().parse_known_args(command))
    try:
        with new_trainer_context(config=config) as context:
            context.task.setup(context.trainer)
            context.task.run()
            context.trainer.predict(context.trainer.test_loader, results_file="predictions")
    finally:
        distutils.cleanup()
    checkpoint = tmp_path / "checkpoints" / "run" / "checkpoint.pt"
    return checkpoint, tmp_path / "results" / "run" / "ocp_predictions.npz"


def test_s2ef_from_a_checkpoint_has_all_atoms(s2ef_run, tmp_path):
    checkpoint, predicted = s2ef_run
    src = tmp_path / "test" / "data.lmdb"
    files = [item for option in OPTIONS.values() for item in (option, src)]
    out = tmp_path / "ours.npz"
    result = run("build", "--task", "s2ef", "--checkpoint", checkpoint, *files, out)
    assert result.exit_code == 0, result.output
    arrays, theirs = np.load(out), np.load(predicted)
    forces = np.split(arrays["id_forces"], arrays["id_chunk_idx"])
    energy = dict(zip(arrays["id_ids"].tolist(), arrays["id_energy"], strict=True))
    blocks = dict(zip(arrays["id_ids"].tolist(), forces, strict=True))
    free = np.split(theirs["forces"], theirs["chunk_idx"])
    for name, value, block in zip(theirs["ids"].tolist(), theirs["energy"], free, strict=True):
        fixed = slab_record(int(name) - 1000).fixed.numpy() == 1
        np.testing.assert_allclose(energy[name], value[0], rtol=1e-5)
        np.testing.assert_allclose(blocks[name][~fixed], block, atol=1e-6)
        assert np.abs(blocks[name][fixed]).min() > 0
    assert run("check", out, "--lmdb", f"id={src}").exit_code == 0


def test_missing_checkpoint(tmp_path):
    write_splits(tmp_path)
    src = tmp_path / "test" / "data.lmdb"
    files = [item for option in OPTIONS.values() for item in (option, src)]
    missing = run("build", "--task", "s2ef", "--checkpoint", tmp_path / "x.pt", *files, "o.npz")
    assert missing.exit_code == 2
    assert "x.pt: no such checkpoint" in missing.output


def test_float16_is_mentioned(make, tmp_path):
    files, _ = make("is2re", np.float16)
    result = run("build", "--task", "is2re", *files, tmp_path / "ours.npz")
    assert result.exit_code == 0
    assert "float16" in result.output


def good(task: str) -> dict[str, np.ndarray]:
    arrays = {}
    for split in SPLITS:
        source = predictions(split, task)
        arrays[f"{split}_ids"] = source["ids"]
        arrays[f"{split}_energy"] = source["energy"].ravel()
        if task == "s2ef":
            arrays[f"{split}_forces"] = np.ones((12, 3), np.float32)
            arrays[f"{split}_chunk_idx"] = np.array([5, 9])
    return arrays


def spoil(key: str, change):
    def _spoil(arrays):
        arrays[key] = change(arrays[key])

    return _spoil


def put(array: np.ndarray, index, value) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


FAULTS = {
    "missing key": ("is2re", lambda a: a.pop("ood_cat_energy"), "ood_cat_energy: missing"),
    "extra key": ("is2re", lambda a: a.update(id_foo=np.ones(3)), "id_foo: not a key"),
    "two-dimensional": (
        "is2re",
        spoil("id_energy", lambda e: e[:, None]),
        "id_energy: shape (3, 1); (3,)",
    ),
    "float64": ("is2re", spoil("id_energy", lambda e: e.astype(float)), "id_energy: float64"),
    "one energy short": ("is2re", spoil("id_energy", lambda e: e[1:]), "id_energy: shape (2,)"),
    "NaN": ("is2re", spoil("ood_ads_energy", lambda e: put(e, 1, np.nan)), "1 of 3 values"),
    "doubled": ("is2re", spoil("id_ids", lambda i: put(i, 0, i[1])), "id_ids: 1 doubled"),
    "integer ids": ("is2re", spoil("id_ids", lambda i: i.astype(int)), "id_ids: int64"),
    "empty": ("is2re", spoil("id_ids", lambda i: i[:0]), "id_ids: empty"),
    "absent": ("is2re", spoil("id_ids", lambda i: put(i, 0, "9")), "1 of the LMDB missing"),
    "infinite force": (
        "s2ef",
        spoil("id_forces", lambda f: put(f, (0, 0), np.inf)),
        "id_forces: 1 of 36 values",
    ),
    "chunks with the last": (
        "s2ef",
        spoil("id_chunk_idx", lambda c: np.append(c, 12)),
        "id_chunk_idx: shape (3,); (2,)",
    ),
    "chunks not cumulative": (
        "s2ef",
        spoil("id_chunk_idx", lambda c: np.array([5, 4])),
        "id_chunk_idx: gives system 1 -1 atoms",
    ),
    "float chunks": ("s2ef", spoil("id_chunk_idx", lambda c: c * 1.0), "id_chunk_idx: float64"),
    "shifted chunk": (
        "s2ef",
        spoil("id_chunk_idx", lambda c: np.array([4, 9])),
        "id_chunk_idx: 2 systems with a wrong number of forces",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_check_names_the_fault(name, tmp_path, make):
    task, change, message = FAULTS[name]
    _, lmdbs = make(task)
    arrays = good(task)
    write_arrays(tmp_path / "good.npz", arrays)
    assert run("check", tmp_path / "good.npz", *lmdbs).exit_code == 0
    change(arrays)
    write_arrays(tmp_path / "bad.npz", arrays)
    result = run("check", tmp_path / "bad.npz", *lmdbs, "--json", tmp_path / "report.json")
    assert result.exit_code == 2
    lines = [line for line in result.output.splitlines() if line.startswith("Error")]
    assert len(lines) == 1
    assert message in lines[0]
    found = json.loads((tmp_path / "report.json").read_text())["problems"]
    assert any(message in line for line in found)


@pytest.mark.parametrize("content", ["text", "truncated", "objects", "absent"])
def test_unreadable_file(content, tmp_path):
    path = tmp_path / "file.npz"
    if content == "text":
        path.write_text("hello")
    elif content == "truncated":
        write_arrays(path, good("is2re"))
        path.write_bytes(path.read_bytes()[:400])
    elif content == "objects":
        np.savez(path, id_ids=np.array(["a", None], dtype=object))
    result = run("check", path)
    assert result.exit_code == 2
    assert str(path) in result.output
    assert result.output.count("\n") == 1


def test_bad_lmdb_arguments(tmp_path):
    write_arrays(tmp_path / "a.npz", good("is2re"))
    for argument in ("id", "val_id=x", f"id={tmp_path}/none.lmdb"):
        result = run("check", tmp_path / "a.npz", "--lmdb", argument)
        assert result.exit_code == 2
        assert argument.removeprefix("id=") in result.output


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    write_arrays(path, good("is2re"))
    before = path.read_bytes()

    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_arrays(path, good("s2ef"))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]
