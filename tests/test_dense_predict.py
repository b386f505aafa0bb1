"""OC20-Dense through the stock predict and relaxations (issue 7, points 2 and 5)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fairchem.core.common.flags import flags
from fairchem.core.common.utils import build_config, load_config, new_trainer_context

from dense_cases import dense, refusal
from ocp_faenet.adapters.dense_saving import relax_split
from ocp_faenet.adapters.predictions import predict_lmdb
from ocp_faenet.cli import main
from ocp_faenet.data.dense_oracle import adsorption_energy
from ocp_faenet.data.dense_prepare import SPLITS
from ocp_faenet.data.emt import EmtPotential
from ocp_faenet.data.reader import open_lmdb
from ocp_faenet.data.schema import array_of
from ocp_faenet.metrics.sensitivity import response
from plugin_fixtures import one_at_a_time

CONFIGS = Path(__file__).parent.parent / "configs"
NAMES = sorted(str(p.relative_to(CONFIGS)) for p in (CONFIGS / "oc20_dense").rglob("*.yml"))
SMALL = """
includes: [{base}]
dataset:
  train: {{src: {tiny}/{task}/train/data.lmdb}}
  val: {{src: {tiny}/{task}/val_id/data.lmdb}}
model: {{hidden_channels: 24, num_filters: 8, num_interactions: 1, num_gaussians: 8,
  tag_hidden_channels: 2, pg_hidden_channels: 2{more}}}
{rest}
"""


def small(folder: Path, tiny: Path, base: str, task: str, more: str = "", rest: str = "") -> Path:
    path = folder / f"{task}.yml"
    base = str(CONFIGS / base)
    path.write_text(SMALL.format(base=base, tiny=tiny, task=task, more=more, rest=rest))
    return path


def checkpoint(config: Path, folder: Path, src: Path) -> Path:
    """What a run of ``config`` would save, with weights that were never trained."""
    s2ef = "s2ef" in config.name
    command = ["--mode=train", f"--config-yml={config}", f"--run-dir={folder}", "--cpu"]
    command += ["--timestamp-id=run", "--seed=1", "--optim.num_workers=0"]
    command += [f"--dataset.{split}.src={src}" for split in ("test", "relax")[: 1 + s2ef]]
    built = build_config(*flags.get_parser().parse_known_args(command))
    with new_trainer_context(config=built) as context:
        path = context.trainer.save(training_state=False)
    return Path(path or folder / "checkpoints" / "run" / "checkpoint.pt")


@pytest.fixture
def prepared(dense_tiny) -> Path:
    return dense_tiny / SPLITS


@pytest.mark.parametrize("name", NAMES)
def test_shipped_configurations_are_complete(name):
    """Each reads without contradictions and names what its mode needs; a model without data."""
    config, _, conflicts = load_config(str(CONFIGS / name))
    assert conflicts == []
    split = "relax" if name.endswith("relax.yml") else "test"
    assert config["dataset"][split]["src"].split("/")[-4:-2] == ["dense", "splits"] or (
        config["dataset"][split]["src"].startswith("data/oc20_dense/splits/")
    )
    assert config["outputs"]["energy"]["prediction_dtype"] == "float32"
    if name.endswith("finetune.yml"):
        assert {"backbone", "heads"} & config["model"].keys() == set()
        assert "finetune/train" in config["dataset"]["train"]["src"]
        assert "finetune/val" in config["dataset"]["val"]["src"]


def check_sensitivity(weights: Path, prepared: Path, folder: Path) -> None:
    """The maps are the model's energies and EMT's at the same places, and the score is theirs."""
    src = prepared / "id" / "data.lmdb"
    args = ["dense", "sensitivity", weights, "--data", src, "--grid", 2, "--systems", "1_0"]
    args += ["--reference", "single-point", "--json", folder / "s.json", "--plot", folder / "s.png"]
    done = CliRunner().invoke(main, list(map(str, args)))
    assert done.exit_code == 0, done.output
    report = json.loads((folder / "s.json").read_text())
    with open_lmdb(src) as records:
        first = next(record for record in records if record["system_id"] == "1_0")
    start = array_of(first["pos"]).astype(float)
    maps = report["maps"]["1_0"]
    assert np.shape(maps["slide"]["predicted"]) == (2, 2)
    assert maps["turn"]["reference"][0] == pytest.approx(adsorption_energy(first, start), abs=1e-4)
    alone = predict_lmdb(weights, src, forces=False)
    own = dict(zip(alone["ids"].tolist(), alone["energy"].tolist(), strict=True))
    assert maps["turn"]["predicted"][0] == pytest.approx(own[str(first["sid"])], abs=1e-4)
    pairs = [(maps[n]["predicted"], maps[n]["reference"]) for n in ("slide", "lift", "turn")]
    assert report["scores"]["all"]["explained"] == pytest.approx(response(pairs).explained)
    assert (folder / "s.png").stat().st_size > 10_000


PEER = """
includes: [{base}]
dataset:
  train: {{src: {tiny}/s2ef/train/data.lmdb, transforms: {{graph_rewiring: remove-tag-0}}}}
  val: {{src: {tiny}/s2ef/val_id/data.lmdb, transforms: {{graph_rewiring: remove-tag-0}}}}
model: {{hidden_channels: 16, num_filters: 16, num_interactions: 1, num_gaussians: 8}}
"""


def test_a_peer_relaxes_what_its_loader_leaves(tiny_data, prepared, tmp_path):
    """Forces of a gradient, on records without their fixed atoms: those are where they were."""
    config = tmp_path / "s2ef.yml"
    base = CONFIGS / "oc20_dense" / "emt" / "schnet_relax.yml"
    config.write_text(PEER.format(base=base, tiny=tiny_data))
    src = prepared / "id" / "data.lmdb"
    weights = checkpoint(config, tmp_path / "peer", src)
    args = ["predict", "--config", config, "--checkpoint", weights, "--splits", prepared]
    args += ["--relax-config", config, "--relax-checkpoint", weights, "--relax-steps", 2]
    done = dense(*args, "--relax-fmax", 1e-6, "--only", "id", tmp_path / "out")
    assert done.exit_code == 0, done.output
    with open_lmdb(tmp_path / "out" / "id_relaxed" / "data.lmdb") as records:
        relaxed = {str(r["sid"]): r for r in records}
    with open_lmdb(src) as records:
        for record in records:
            below = array_of(record["tags"]) == 0
            moved = np.abs(array_of(relaxed[str(record["sid"])]["pos"]) - array_of(record["pos"]))
            assert moved[below].max(initial=0.0) == 0.0
            assert moved[~below].max() > 1e-5
    positions = {sid: array_of(record["pos"]) for sid, record in relaxed.items()}
    check_own_relaxations(weights, prepared, positions, fmax=1e-6, steps=2)


def check_own_relaxations(
    weights: Path, prepared: Path, positions: dict, *, fmax: float, steps: int
) -> None:
    """What a study measures relaxes as the host's own command does, lowest energy first."""
    ends = relax_split(weights, prepared / "id" / "data.lmdb", fmax=fmax, steps=steps)
    for ranked in ends.values():
        assert [end.energy for end in ranked] == sorted(end.energy for end in ranked)
        for end in ranked:
            np.testing.assert_allclose(end.positions, positions[str(end.record["sid"])], atol=1e-4)
            assert not end.converged
    assert sum(map(len, ends.values())) == len(positions)


def test_energies_and_relaxations_of_a_split(tiny_data, prepared, tmp_path, monkeypatch):
    energy = small(tmp_path, tiny_data, "oc20_dense/emt/faenet.yml", "is2re")
    weights = checkpoint(energy, tmp_path / "energy", prepared / "id" / "data.lmdb")
    energy.write_text(energy.read_text() + "logger: wandb\n")  # as configurations of OC20 have it
    monkeypatch.setattr("wandb.init", lambda **_: pytest.fail("W&B is asked for a run"))
    args = ["dense", "predict", "--config", energy, "--checkpoint", weights]
    args += ["--splits", prepared, "--only", "id", "--json", tmp_path / "files.json"]
    done = CliRunner().invoke(main, list(map(str, [*args, tmp_path / "out"])))
    assert done.exit_code == 0, done.output
    with np.load(tmp_path / "out" / "id.npz") as file:
        found = dict(zip(file["ids"].tolist(), file["energy"].ravel().tolist(), strict=True))
    ours = predict_lmdb(weights, prepared / "id" / "data.lmdb", forces=False)
    expected = dict(zip(ours["ids"].tolist(), ours["energy"].tolist(), strict=True))
    assert found == pytest.approx(expected, abs=1e-5)
    assert json.loads((tmp_path / "files.json").read_text())[0]["structures"] == len(expected)

    check_sensitivity(weights, prepared, tmp_path)

    forces = small(
        tmp_path, tiny_data, "oc20_dense/emt/relax.yml", "s2ef",
        ", phys_embeds: false, regress_forces: from_energy",
        "task: {relaxation_steps: 200}",
    )  # fmt: skip
    relaxer = checkpoint(forces, tmp_path / "forces", prepared / "id" / "data.lmdb")
    args += ["--relax-config", forces, "--relax-checkpoint", relaxer]
    args += ["--relax-fmax", 0.001, "--relax-steps", 3]
    done = CliRunner().invoke(main, list(map(str, [*args, tmp_path / "relaxed"])))
    assert done.exit_code == 0, done.output
    with np.load(tmp_path / "relaxed" / "id_relaxed_positions.npz") as file:
        places = np.split(file["pos"], file["chunk_idx"])
        positions = dict(zip(file["ids"].tolist(), places, strict=True))
    with open_lmdb(prepared / "id" / "data.lmdb") as records:
        start = {str(r["sid"]): r for r in records}
    with open_lmdb(tmp_path / "relaxed" / "id_relaxed" / "data.lmdb") as records:
        relaxed = {str(r["sid"]): r for r in records}
    assert relaxed.keys() == start.keys() == positions.keys()
    moved = 0.0
    for sid, record in relaxed.items():
        np.testing.assert_allclose(record["pos"], positions[sid], atol=1e-5)
        moved = max(moved, float(np.abs(record["pos"] - start[sid]["pos"]).max()))
        assert record["system_id"] == start[sid]["system_id"]
        edges, cell = array_of(record["edge_index"]), array_of(record["cell"])[0]
        vectors = array_of(record["pos"])[edges[0]] - array_of(record["pos"])[edges[1]]
        vectors = vectors + array_of(record["cell_offsets"]) @ cell
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), record["distances"], atol=1e-4)
        assert np.isfinite(EmtPotential(array_of(record["atomic_numbers"]), cell)(
            array_of(record["pos"]).astype(float)
        ).energy)  # fmt: skip
    assert moved > 1e-3
    check_own_relaxations(relaxer, prepared, positions, fmax=0.001, steps=3)
    with np.load(tmp_path / "relaxed" / "id.npz") as file:
        again = dict(zip(file["ids"].tolist(), file["energy"].ravel().tolist(), strict=True))
    ours = predict_lmdb(weights, tmp_path / "relaxed/id_relaxed/data.lmdb", forces=False)
    assert again == pytest.approx(
        dict(zip(ours["ids"].tolist(), ours["energy"].tolist(), strict=True)), abs=1e-5
    )
    assert max(abs(again[sid] - found[sid]) for sid in found) > 1e-5, "the structures moved"
    # Weights of another model: said in one line, with what differs.
    other = tmp_path / "other.yml"
    other.write_text(energy.read_text().replace("hidden_channels: 24", "hidden_channels: 32"))
    told = refusal(
        dense("predict", "--config", other, "--checkpoint", weights, *args[6:10], tmp_path / "bad"),
        last=True,
    )
    assert "its model has hidden_channels 24, not 32; take the configuration" in told
    assert not (tmp_path / "bad" / "id.npz").exists()


def test_two_ranks_give_the_figures_of_one(tiny_data, prepared, tmp_path):
    """An odd number of structures: the host has one of them predicted by both ranks."""
    counts = json.loads((prepared / "splits.json").read_text())["counts"]
    odd = next(name for name, count in counts.items() if count % 2)
    config = small(tmp_path, tiny_data, "oc20_dense/emt/faenet.yml", "is2re")
    weights = checkpoint(config, tmp_path / "energy", prepared / odd / "data.lmdb")
    reports = []
    for ranks in (1, 2):
        out = tmp_path / f"{ranks}"
        args = ["predict", "--config", config, "--checkpoint", weights, "--splits", prepared]
        with one_at_a_time():
            done = dense(*args, "--only", odd, "--num-gpus", ranks, "--batch-size", 3, out)
        assert done.exit_code == 0, done.output
        with np.load(out / f"{odd}.npz") as file:
            assert len(set(file["ids"].tolist())) == len(file["ids"]) == counts[odd]
        args = ["evaluate", "--predictions", out / f"{odd}.npz", "--splits", prepared]
        for name in ("targets", "mapping", "compute"):
            args += [f"--{name}", tiny_data / "dense" / f"oc20dense_{name}.pkl"]
        done = dense(*args, "--only", odd, "--json", out / "scores.json")
        assert done.exit_code == 0, done.output
        reports.append(json.loads((out / "scores.json").read_text())["splits"][odd])
    one, two = reports
    assert one["configurations"] == two["configurations"] == counts[odd]
    for key, value in one["scores"].items():
        assert two["scores"][key] == pytest.approx(value, abs=1e-6), key
    assert one["scores"]["mae"]["value"] > 1e-3


def test_bad_options_are_one_line(prepared, tmp_path):
    config, path = CONFIGS / "oc20_dense" / "emt" / "faenet.yml", tmp_path / "no.pt"
    base = ["dense", "predict", "--config", config, "--checkpoint", path, "--splits"]
    for more, message in (
        ([prepared, tmp_path / "o"], "no.pt: no such checkpoint"),
        ([tmp_path, tmp_path / "o"], "no summary of splits"),
        ([prepared, "--only", "x", tmp_path / "o"], "--only x: the splits are id"),
        ([prepared, "--relax-config", config, tmp_path / "o"], "both or none"),
        ([prepared, "--relax-fmax", 0.1, tmp_path / "o"], "need --relax-config"),
        ([prepared, "--relax-steps", 9, tmp_path / "o"], "need --relax-config"),
    ):
        done = CliRunner().invoke(main, [str(arg) for arg in [*base, *more]])
        assert done.exit_code == 2
        assert message in done.output
    path.write_bytes(b"no weights")
    done = CliRunner().invoke(main, [*map(str, base), str(prepared), str(tmp_path / "o")])
    assert done.exit_code == 2
    assert "no.pt: cannot be read as a checkpoint" in done.output
    assert torch.is_grad_enabled()
