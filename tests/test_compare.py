"""Studies: what identifies a run, the pool of processes, and the comparison of the models."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.utils.tensorboard import SummaryWriter

from ocp_faenet.adapters import pool, worker
from ocp_faenet.adapters.checkpoints import save_beside
from ocp_faenet.adapters.curves import read_curves
from ocp_faenet.adapters.machine import machine_class
from ocp_faenet.adapters.runs import (
    RunSpec,
    checkpoint_of,
    load_result,
    read_json,
    read_result,
    with_epochs,
    write_json,
)
from ocp_faenet.cli import main
from ocp_faenet.cli.output import markdown_table
from ocp_faenet.metrics.energies import energy_errors, mean_and_std, mean_baseline

EMT = Path(__file__).parent.parent / "configs" / "oc20" / "emt" / "is2re"
SPLITS = ("val_id", "val_ood_ads", "val_ood_cat", "val_ood_both")


def spec(tiny: Path, model: str = "schnet", **overrides) -> RunSpec:
    sources = {
        split: {"src": str(tiny / "is2re" / where / "data.lmdb")}
        for split, where in (("train", "train"), ("val", "val_id"))
    }
    return RunSpec(
        model,
        str(EMT / f"{model}.yml"),
        {"dataset": sources, **overrides},
        splits={"val_id": str(tiny / "is2re" / "val_id" / "data.lmdb")},
    )


def test_errors_by_hand():
    scores = energy_errors([1.0, 2.0, 4.0], [1.0, 0.0, 1.0])
    assert (scores.mae, scores.mse) == pytest.approx((5 / 3, 13 / 3))
    base = mean_baseline([0.0, 2.0], [1.0, 4.0])
    assert (base.mae, base.mse) == pytest.approx((1.5, 4.5))
    assert mean_and_std([1.0, 3.0]) == pytest.approx((2.0, 2**0.5))
    assert mean_and_std([1.0]) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("prediction", "target"),
    [([], []), ([1.0], [1.0, 2.0]), ([np.nan], [0.0]), ([[1.0]], [[1.0]])],
)
def test_errors_refuse_what_has_none(prediction, target):
    with pytest.raises(ValueError):
        energy_errors(prediction, target)


def test_key_is_what_defines_the_run(tiny_data, tmp_path):
    one = spec(tiny_data)
    assert one.key() == replace(one, name="other").key()
    assert one.key() != replace(one, seed=1).key()
    assert one.key() != spec(tiny_data, optim={"lr_initial": 0.5}).key()
    moved = tmp_path / "elsewhere"
    shutil.copytree(tiny_data / "is2re", moved / "is2re")
    assert spec(moved).key() == one.key()
    (moved / "is2re" / "train" / "data.lmdb").write_bytes(b"other")
    assert spec(moved).key() != one.key()
    assert RunSpec.from_json(one.to_json()) == one


def test_schedule_follows_the_epochs():
    cosine = {"optim": {"batch_size": 16, "scheduler": "CosineAnnealingLR"}}
    assert with_epochs(cosine, 33, 4) == {"optim": {"max_epochs": 4, "T_max": 12}}
    cycle = {"optim": {"batch_size": 16, "scheduler": "OneCycleLR"}}
    assert with_epochs(cycle, 32, 4) == {"optim": {"max_epochs": 4, "total_steps": 8}}
    assert with_epochs({"optim": {"batch_size": 1}}, 8, 2) == {"optim": {"max_epochs": 2}}
    each = {"optim": {"batch_size": 16, "eval_every": None}}
    assert with_epochs(each, 33, 4) == {"optim": {"max_epochs": 4, "eval_every": 3}}
    rare = {"optim": {"batch_size": 16, "eval_every": 7}}
    assert with_epochs(rare, 33, 4) == {"optim": {"max_epochs": 4}}


def test_curves_of_a_resumed_run(tmp_path):
    for attempt, steps in enumerate(([1, 2, 3], [3, 4])):
        with SummaryWriter(str(tmp_path), filename_suffix=str(attempt)) as writer:
            for step in steps:
                writer.add_scalar("train/loss", 10.0 * attempt + step, step, walltime=attempt)
    assert read_curves(tmp_path)["train/loss"] == [(1, 1), (2, 2), (3, 13), (4, 14)]


def test_table_reads_as_text():
    lines = markdown_table(["model", "MAE"], [["mean", "0.5"], ["faenet", "0.05"]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1] == "| :----- | ---: |"


def test_failed_run_is_named(tmp_path, tiny_data):
    bad = spec(tiny_data, model="schnet")
    bad = replace(bad, overrides={**bad.overrides, "model": {"hidden_chanels": 3}})
    with pytest.raises(pool.RunFailedError, match=r"schnet, seed 0: .*hidden_chanels.*log\.txt"):
        pool.run_all([bad], tmp_path)
    assert load_result(bad.folder(tmp_path)) is None


def test_a_killed_study_leaves_no_run_behind_and_goes_on(tmp_path, tiny_data):
    long = spec(tiny_data, optim={"max_epochs": 400, "checkpoint_every": 20, "eval_every": 1200})
    folder = long.folder(tmp_path)
    checkpoint = checkpoint_of(folder)
    call = "import sys; from pathlib import Path; from ocp_faenet.adapters import pool; "
    call += "from ocp_faenet.adapters.runs import RunSpec; "
    call += "pool.run_all([RunSpec.from_json(sys.argv[1])], Path(sys.argv[2]))"
    study = subprocess.Popen([sys.executable, "-c", call, long.to_json(), str(tmp_path)])
    try:
        wait_for(lambda: checkpoint.is_file() and (folder / "progress.json").is_file(), study)
        assert zipfile.is_zipfile(checkpoint)
        with (folder / "lock").open("r+") as lock:
            with pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            study.kill()
            fcntl.flock(lock, fcntl.LOCK_EX)  # or the test's time runs out
    finally:
        study.kill()
        study.wait()
    assert load_result(folder) is None
    progress = json.loads((folder / "progress.json").read_text())
    short = replace(long, overrides={**long.overrides, "optim": {"max_epochs": 1}})
    (folder / "spec.json").write_text(short.to_json())  # the rest would take too long
    command = [sys.executable, "-m", "ocp_faenet.adapters.worker", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    done = load_result(folder)
    assert done["training"]["resumed_at_step"] >= 1
    assert done["training"]["seconds"] >= progress["seconds"]
    assert done["training"]["cpu_seconds"] >= progress["cpu_seconds"]


def wait_for(condition, process, seconds: float = 240.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the study ended"
        assert time.monotonic() < end, "no checkpoint"
        time.sleep(0.2)


def test_half_written_result_is_none(tmp_path, monkeypatch):
    write_json(tmp_path / "result.json", {"a": 1})

    def dies(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        write_json(tmp_path / "result.json", {"a": 2})
    assert read_json(tmp_path / "result.json") == {"a": 1}


def cut(path: Path) -> None:
    """As a full disk leaves a file."""
    path.write_bytes(path.read_bytes()[:-40])


def test_what_a_run_lost_is_made_again_and_no_more(tmp_path, tiny_data):
    """Four steps, none of which is one to save at: what is scored is always the fourth."""
    own = {"max_epochs": 1, "batch_size": 12, "eval_every": 1000}
    one = spec(tiny_data, optim=own)
    folder, [first] = one.folder(tmp_path), pool.run_all([one], tmp_path)
    assert first["machine"] == machine_class()
    assert torch.load(checkpoint_of(folder), weights_only=False)["step"] == 4

    def again() -> dict:
        (result,) = pool.run_all([one], tmp_path)
        energy = {key: value for key, value in result["splits"]["val_id"].items() if "mae" in key}
        assert energy == {key: first["splits"]["val_id"][key] for key in energy} != {}
        assert load_result(folder) == result
        return result["training"]

    (folder / "result.json").unlink()  # killed between training and evaluation
    assert again() == first["training"]
    cut(folder / "predictions_val_id.npz")
    assert again() == first["training"]
    assert zipfile.is_zipfile(folder / "predictions_val_id.npz")
    stale = torch.load(checkpoint_of(folder), weights_only=False) | {"step": 3}
    torch.save(stale, checkpoint_of(folder))  # an older one
    (folder / "result.json").unlink()
    measured = folder / "measured_mad_1.json"
    write_json(measured, {"MAD": 1.0})
    (other,) = pool.run_all([one], tmp_path)
    assert other["training"]["resumed_at_step"] == 3
    assert other["training"]["resumed_at_steps"] == [3]
    stale = torch.load(checkpoint_of(folder), weights_only=False) | {"step": 2}
    torch.save(stale, checkpoint_of(folder))
    (folder / "result.json").unlink()
    (older,) = pool.run_all([one], tmp_path)
    assert older["training"]["resumed_at_steps"] == [3, 2]
    assert not measured.is_file(), "it was measured on other weights"
    cut(checkpoint_of(folder))
    assert again()["resumed_at_steps"] == []
    checkpoint_of(folder).unlink()
    assert again()["resumed_at_step"] == 0
    (folder / "training.json").unlink()  # killed between the checkpoint and that
    (folder / "result.json").unlink()
    last = again()
    assert (last["resumed_at_step"], last["samples_per_second"]) == (4, None)


@pytest.mark.parametrize(
    "text", ["", '{"training": {', "{}", "[]", '{"training": {}}', '{"training": {}, "splits": 3}']
)
def test_a_broken_result_is_none_and_named(tmp_path, caplog, text):
    (tmp_path / "result.json").write_text(text)
    assert load_result(tmp_path) is None
    assert [str(tmp_path / "result.json") in line for line in caplog.messages] == [True]


@pytest.mark.parametrize(("content", "state"), [(None, "no longer there"), (b"PK", "incomplete")])
def test_a_result_without_its_weights_is_not_finished(tmp_path, caplog, content, state):
    write_json(tmp_path / "result.json", {"training": {}, "splits": {}})
    checkpoint = checkpoint_of(tmp_path)
    if content is not None:
        checkpoint.parent.mkdir(parents=True)
        checkpoint.write_bytes(content)
    assert load_result(tmp_path) is None
    assert f"{checkpoint}: {state}" in caplog.text
    assert read_result(tmp_path) == {"training": {}, "splits": {}}


def test_a_run_killed_while_it_saves_keeps_the_checkpoint_before(tmp_path, tiny_data, monkeypatch):
    from fairchem.core.trainers import base_trainer

    one = spec(tiny_data, optim={"max_epochs": 1, "batch_size": 12, "checkpoint_every": 2})
    save, names = base_trainer.save_checkpoint, []

    def dies(state, checkpoint_dir, checkpoint_file):
        if "best" not in checkpoint_file:
            names.append(checkpoint_file)
        if len(names) == 2:
            (Path(checkpoint_dir) / checkpoint_file).write_bytes(b"half")
            raise KeyboardInterrupt
        return save(state, checkpoint_dir, checkpoint_file)

    monkeypatch.setattr(base_trainer, "save_checkpoint", dies)
    folder = one.folder(tmp_path)
    folder.mkdir()
    (folder / "spec.json").write_text(one.to_json())
    with pytest.raises(KeyboardInterrupt):
        worker.execute(folder)
    assert torch.load(checkpoint_of(folder), weights_only=False)["step"] == 2


def test_a_save_that_writes_nothing_moves_nothing():
    assert save_beside(lambda metrics, checkpoint_file, training_state: None) is None


def compare(*args):
    return CliRunner().invoke(main, ["compare", *map(str, args)])


def test_compare_and_its_cache(tmp_path, tiny_data, monkeypatch):
    out = tmp_path / "report.json"
    arguments = ["--data", tiny_data, "--configs", EMT, "--models", "schnet,faenet"]
    arguments += ["--epochs", 2, "--seeds", 2, "--runs", tmp_path / "runs", "--json", out]
    markdown = tmp_path / "table.md"
    result = compare(*arguments, "--plot", tmp_path / "plot.png", "--markdown", markdown)
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert [row["model"] for row in report["rows"]] == ["training mean", "faenet", "schnet"]
    table = [line for line in result.stdout.splitlines() if line.startswith("|")]
    assert len(table) == 5
    assert all(split in table[0] for split in SPLITS)
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    faenet = report["rows"][1]
    assert faenet["epochs"] == 2
    for split in SPLITS:
        assert_scores_are_those_of_the_predictions(tmp_path / "runs", faenet, split)

    def never(*_args, **_kwargs):
        raise AssertionError("a finished run was started again")

    monkeypatch.setattr(pool, "_start", never)
    again = compare(*arguments)
    assert again.exit_code == 0
    assert json.loads(out.read_text()) == report


def assert_scores_are_those_of_the_predictions(runs: Path, row: dict, split: str) -> None:
    """The host's metrics against plain numpy on the predictions it made."""
    maes = []
    for folder in sorted(runs.glob("faenet-seed*")):
        saved = np.load(folder / f"predictions_{split}.npz")
        maes.append(np.abs(saved["energy"] - saved["target"]).mean())
    assert len(maes) == 2
    assert row["splits"][split]["mae"] == pytest.approx(
        (np.mean(maes), np.std(maes, ddof=1)), rel=1e-4
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "faenet,gemnet"], "--models gemnet"),
        (["--data", "nowhere"], "nowhere/is2re/train/data.lmdb: no such file"),
    ],
)
def test_bad_input_ends_early(arguments, message, tmp_path):
    result = compare("--configs", EMT, "--runs", tmp_path / "runs", *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert result.output.count("\n") == 1
    assert not (tmp_path / "runs").exists()
