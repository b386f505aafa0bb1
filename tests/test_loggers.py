"""W&B and tensorboard: offline without a key, losses apart, speed where asked, one run resumed."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from wandb.proto import wandb_internal_pb2

import faults
import plugin_fixtures as fx
from ocp_faenet.adapters.runner import wandb_offline_without_key

pytestmark = pytest.mark.slow


def records(path: Path) -> Iterator[wandb_internal_pb2.Record]:
    """Of a ``.wandb`` file: a LevelDB log of 32 KiB blocks after a header of 7 bytes."""
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    place, parts = 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        if kind == 0:
            break
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def history(path: Path) -> dict[int, dict[str, float]]:
    """Logged numbers by step."""
    found: dict[int, dict[str, float]] = {}
    for record in records(path):
        if record.WhichOneof("record_type") != "history":
            continue
        row = {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in record.history.item}
        found.setdefault(int(row["_step"]), {}).update(row)
    return found


@pytest.mark.parametrize("how", ["variable", "netrc", "other host", None])
def test_a_key_is_found_where_wandb_login_leaves_it(how, no_account, monkeypatch, tmp_path):
    if how == "variable":
        monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    elif how is not None:
        host = "api.wandb.ai" if how == "netrc" else "example.org"
        (tmp_path / ".netrc").write_text(f"machine {host}\n  login user\n  password {'x' * 40}\n")
        (tmp_path / ".netrc").chmod(0o600)
    wandb_offline_without_key()
    expected = None if how in ("variable", "netrc") else "offline"
    assert os.environ.get("WANDB_MODE") == expected
    monkeypatch.setenv("WANDB_MODE", "online")  # put back by monkeypatch; and respected:
    wandb_offline_without_key()
    assert os.environ["WANDB_MODE"] == "online"


@pytest.fixture
def no_account(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def with_auxiliary(config: Path, **metrics: bool) -> None:
    """The run of a file with Noisy Nodes beside energy and forces, at half its weight."""
    content = yaml.safe_load(config.read_text())
    model = {key: value for key, value in fx.STOCHASTIC.items() if key != "name"}
    heads = {"energy": "Energy", "forces": "Force", "denoising": "Denoising"}
    content["model"] = {
        "name": "hydra",
        "otf_graph": True,
        "pass_through_head_outputs": True,
        "backbone": {"model": "ocp_faenet.FAENetBackbone", **model},
        "heads": {key: {"module": f"ocp_faenet.FAENet{name}Head"} for key, name in heads.items()},
    }
    noise = {"target": "initial", "std": 0.05, "scale": 0.1}
    for split in ("train", "val"):
        content["dataset"][split].setdefault("transforms", {})["noisy_nodes"] = noise
    every_atom = {"train_on_free_atoms": False, "eval_on_free_atoms": False}
    content["outputs"]["denoising"] = {"level": "atom", **every_atom}
    loss = {"fn": "ocp_faenet.NoisyNodesLoss", "coefficient": 0.5}
    content["loss_functions"].append({"denoising": loss})
    content["evaluation_metrics"]["metrics"]["denoising"] = ["denoising_l2mae"]
    content["evaluation_metrics"] |= metrics
    config.write_text(yaml.safe_dump(content, sort_keys=False))


def check_losses(found: dict[str, float]) -> None:
    """The total is the sum of energy, forces and auxiliary, each of which is there by itself."""
    total, energy, forces, auxiliary = (
        found[name] for name in ("loss", "loss_energy", "loss_forces", "loss_denoising")
    )
    assert min(energy, forces, auxiliary) > 0
    assert total == pytest.approx(energy + forces + auxiliary, rel=1e-4)
    assert auxiliary == pytest.approx(0.5 * found["denoising_l2mae"], rel=1e-4)


def test_wandb_without_a_key_is_offline_and_a_resume_is_the_same_run(tmp_path, no_account):
    faults.write_data(tmp_path / "data")
    happens = {"kind": "signal", "at": 11, "signum": int(signal.SIGUSR2)}
    happens["marker"] = str(tmp_path / "marker")
    config = faults.write_config(
        tmp_path / "config.yml",
        tmp_path / "data",
        [happens],
        logger={"name": "wandb", "project": "tests", "group": "grid-1"},
    )
    with_auxiliary(config, throughput=True, symmetry_metrics=True)
    given = faults.arguments(config, tmp_path, "run", "--identifier", "a name")
    log = tmp_path / "log.txt"
    assert faults.run(given, log, method="spawn") == 128 + signal.SIGUSR2, log.read_text()[-3000:]
    assert "W&B: no key, so offline" in log.read_text()
    assert faults.run(given, log, method="spawn") == 0, log.read_text()[-3000:]

    folder = tmp_path / "logs" / "wandb" / "run" / "wandb"
    parts = sorted(folder.glob("offline-run-*/run-*.wandb"))
    assert len(parts) == 2
    for part in parts:
        runs = [r.run for r in records(part) if r.WhichOneof("record_type") == "run"]
        assert {(r.run_id, r.project, r.run_group, r.display_name) for r in runs} == {
            ("run", "tests", "grid-1", "a name")
        }
    first, second = map(history, parts)
    trained = [sorted(s for s, row in h.items() if "train/loss" in row) for h in (first, second)]
    assert trained == [list(range(1, 6)), list(range(6, faults.STEPS + 1))]
    for row in {**first, **second}.values():
        if "train/loss" not in row:
            continue
        check_losses({key.removeprefix("train/"): value for key, value in row.items()})
        rate = row["train/atoms_per_second"] / row["train/samples_per_second"]
        assert 4.999 < rate < 9.001  # atoms of these structures
    validated = second[faults.STEPS]
    check_losses({key.removeprefix("val/"): value for key, value in validated.items()})
    assert any(key.startswith("val/") and "rotation" in key for key in validated), validated

    # What `wandb sync` would send, without an account.
    command = [
        sys.executable,
        "-m",
        "wandb",
        "sync",
        "--dry-run",
        *map(str, sorted(folder.glob("o*"))),
    ]
    told = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    for part in parts:
        assert part.name in told.stdout + told.stderr


def test_tensorboard_holds_the_same(tmp_path):
    faults.write_data(tmp_path / "data")
    config = faults.write_config(tmp_path / "config.yml", tmp_path / "data")
    with_auxiliary(config, throughput=True)
    log = tmp_path / "log.txt"
    assert faults.run(faults.arguments(config, tmp_path, "run"), log, method="spawn") == 0, (
        log.read_text()[-3000:]
    )
    for split, steps in (("train", list(range(1, 13))), ("val", [4, 8, 12])):
        names = ["loss", "loss_energy", "loss_forces", "loss_denoising", "denoising_l2mae"]
        events = [faults.scalars(tmp_path, "run", f"{split}/{name}") for name in names]
        assert [event.step for event in events[0]] == steps
        for row in zip(*events, strict=True):
            check_losses({name: event.value for name, event in zip(names, row, strict=True)})
    speed = faults.scalars(tmp_path, "run", "train/samples_per_second")
    assert len(speed) == faults.STEPS
    assert all(event.value > 0 for event in speed)
