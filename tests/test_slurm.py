"""The real thing: SLURM of one node, started by ``tests/slurm/slurm.sh install`` and ``start``.

`docs/cluster.md` is run as it is written; then jobs are stopped, killed and broken.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import faults
import plugin_fixtures as fx
from ocp_faenet.adapters.collect import collect

ROOT = Path(__file__).parents[1]
SLURM = ("--submit", "--slurm-partition", "debug", "--slurm-mem", "2")


def absence() -> str:
    """Why there is no SLURM to test with, or nothing. Never the queue of a real cluster."""
    if shutil.which("scontrol") is None:
        return "no SLURM here: tests/slurm/slurm.sh install, then start, as root"
    try:  # scontrol would ask for seconds
        socket.create_connection(("localhost", 6817), timeout=2).close()
    except OSError:
        return "SLURM does not answer here: tests/slurm/slurm.sh start, as root"
    shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True)
    if shown.returncode != 0:
        return "SLURM does not answer: tests/slurm/slurm.sh start, as root"
    if not re.search(r"ClusterName\s*=\s*ocp_faenet_tests", shown.stdout):
        return "this SLURM is not the one of tests/slurm/slurm.sh, so it is left alone"
    return ""


REASON = absence()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(REASON), reason=REASON or "SLURM is here")]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """What jobs inherit."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}")


def submit(given: Sequence[str], logdir: Path, *more: str) -> str:
    """Number of the one job that ``ocp-faenet main --submit`` started."""
    command = [str(Path(fx.sys.executable).with_name("ocp-faenet")), "main", *given, *SLURM]
    command += ["--logdir", str(logdir), *more]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return collect(logdir)[0]["job"]


def queued(job: str) -> str:
    """State of a job in the queue, or nothing when it has left it."""
    command = ["squeue", "--noheader", "--array", "--format", "%i %T"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(line.split() for line in listed.splitlines()).get(job, "")


def outputs(logdir: Path, job: str) -> str:
    """Standard error and output of a job, all its attempts and ranks."""
    files = sorted((logdir / job).glob("*_log.*"))
    return "\n".join(f"--- {file.name}\n{file.read_text()}" for file in files)


def hasten(job: str) -> None:
    """SLURM has a job that is queued again wait for two minutes; here it need not.

    A few seconds it must: a node does not start a job in the second in which it ended it.
    """
    if queued(job) == "PENDING":
        time.sleep(4)
        command = ["scontrol", "update", f"JobId={job}", "StartTime=now"]
        subprocess.run(command, capture_output=True)


def ended(logdir: Path, job: str, limit: float = 300) -> str:
    """Wait until ``job`` has left the queue; its output."""
    faults.wait_for(
        lambda: not queued(job), limit, lambda: outputs(logdir, job)[-3000:], lambda: hasten(job)
    )
    return outputs(logdir, job)


def record(folder: Path, name: str) -> dict:
    return json.loads((folder / "results" / name / "run.json").read_text())


# --- docs/cluster.md -------------------------------------------------------------------------


def commands() -> list[str]:
    """The blocks of the page that are marked as commands."""
    text = (ROOT / "docs" / "cluster.md").read_text()
    return re.findall(r"^```bash\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.timeout(1500)
def test_the_page_as_it_is_written(tiny_data, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "data" / "emt").mkdir(parents=True)
    (tmp_path / "data" / "emt" / "tiny").symlink_to(tiny_data)
    blocks = commands()
    # The fixture has run this very command.
    assert blocks.pop(0) == "ocp-faenet data emt data/emt/tiny --preset tiny\n"
    environment = {**os.environ, "PATH": f"{Path(fx.sys.executable).parent}:{os.environ['PATH']}"}
    script = "set -euo pipefail\n" + "\n".join(blocks)
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    grid = json.loads((tmp_path / "grid.json").read_text())
    assert grid["count"] == 4
    rows = json.loads((tmp_path / "lr.json").read_text())["runs"]
    assert [row["state"] for row in rows] == ["finished"] * 4
    assert [row["best"] for row in rows] == sorted(row["best"] for row in rows)
    varied = {(row["varied"]["optim.lr_initial"], row["varied"]["seed"]) for row in rows}
    assert varied == {(0.001, 0), (0.001, 1), (0.003, 0), (0.003, 1)}
    for row in rows:
        saved = fx.checkpoint(tmp_path, row["run"])
        assert saved["config"]["optim"]["lr_initial"] == row["varied"]["optim.lr_initial"]
        assert saved["config"]["cmd"]["seed"] == row["varied"]["seed"]
        assert saved["config"]["cmd"]["identifier"].startswith("lr_run")
        assert saved["step"] == row["step"] == 9
        output = outputs(tmp_path / "logs" / "lr", row["job"])
        assert f"checkpoint_dir: {tmp_path}/checkpoints/{row['run']}" in output
        assert f"standard output: {tmp_path}/logs/lr/{row['job']}" in output
    weights = [fx.checkpoint(tmp_path, row["run"])["state_dict"] for row in rows]
    for one, two in itertools.pairwise(weights):
        key = "core.energy_head.readout.first.weight"
        assert not torch.equal(one[key], two[key])
    table = [line for line in done.stdout.splitlines() if "finished" in line]
    assert [row["run"] in line for row, line in zip(rows, table[:4], strict=True)] == [True] * 4

    assert "submission.npz: a good is2re file" in done.stdout
    built, direct = (np.load(tmp_path / name) for name in ("submission.npz", "direct.npz"))
    for split in ("id", "ood_ads", "ood_cat", "ood_both"):
        order = np.argsort(built[f"{split}_ids"]), np.argsort(direct[f"{split}_ids"])
        np.testing.assert_array_equal(
            built[f"{split}_ids"][order[0]], direct[f"{split}_ids"][order[1]]
        )
        np.testing.assert_allclose(
            built[f"{split}_energy"][order[0]], direct[f"{split}_energy"][order[1]], atol=1e-4
        )


# --- accidents -------------------------------------------------------------------------------


def test_a_preempted_job_of_a_sweep_goes_on_at_the_same_step(tmp_path):
    faults.write_data(tmp_path / "data")
    gate = tmp_path / "gate"
    closed = [{"kind": "gate", "at": 11, "file": str(gate)}]
    config = faults.write_config(tmp_path / "config.yml", tmp_path / "data", closed)
    # Two runs that differ in their log alone: the one that is left alone shows how both must end.
    (tmp_path / "sweep.yml").write_text("print_every: [1, 2]")
    logdir = tmp_path / "logs"
    given = faults.arguments(config, tmp_path, "a", "--sweep-yml", str(tmp_path / "sweep.yml"))
    submit(given, logdir)
    # The jobs need nothing but the package and the data.
    config.unlink()
    (tmp_path / "sweep.yml").unlink()
    jobs = {row["run"]: row["job"] for row in collect(logdir)}
    job = jobs["a-run0"]
    # In the second epoch, whose first step is the fifth; at the gate, before the sixth.
    faults.wait_for(
        lambda: "step: 5.00e+00" in outputs(logdir, job), 240, lambda: outputs(logdir, job)[-3000:]
    )
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    time.sleep(2)
    gate.touch()
    output = ended(logdir, job)
    told = re.findall(r"Stopped after step (\d+)", output)
    assert len(told) == 1
    assert faults.EPOCH < int(told[0]) < 2 * faults.EPOCH
    assert "Requeued job" in output
    assert faults.steps_logged(tmp_path, "a-run0") == list(range(1, faults.STEPS + 1))
    found = record(tmp_path, "a-run0")
    assert (found["state"], found["requeued"], found["job"]) == ("finished", 1, job)
    # The other run of the sweep was left alone.
    ended(logdir, jobs["a-run1"])
    assert record(tmp_path, "a-run1")["requeued"] == 0
    assert fx.checkpoint(tmp_path, "a-run1")["step"] == faults.STEPS
    faults.same_weights(tmp_path, "a-run0", tmp_path, "a-run1")


def test_the_number_of_requeues_is_an_option(tmp_path):
    faults.write_data(tmp_path / "data")
    config = faults.write_config(
        tmp_path / "config.yml",
        tmp_path / "data",
        [{"kind": "signal", "at": 6, "signum": int(signal.SIGUSR2)}],
    )
    logdir = tmp_path / "logs"
    given = faults.arguments(config, tmp_path, "run")
    job = submit(given, logdir, "--requeues", "1")
    output = ended(logdir, job)
    # Each attempt makes two steps before the signal; the second ends the job.
    assert re.findall(r"Stopped after step (\d+)", output) == ["2", "4"]
    assert "Queued again 1 times of 1" in output
    assert "--timestamp-id run goes on" in output
    assert record(tmp_path, "run")["state"] == "stopped"
    assert fx.checkpoint(tmp_path, "run")["step"] == 4


def test_two_ranks_one_is_killed_then_both_are_preempted(tmp_path):
    faults.write_data(tmp_path / "data")
    happens = {"kind": "signal", "at": 5, "signum": int(signal.SIGKILL), "rank": 1}
    happens["marker"] = str(tmp_path / "marker")
    optim = {**faults.OPTIM, "batch_size": 1, "load_balancing": False}
    # Rank 0 is held at a gate of the second attempt, so the signal finds the ranks apart.
    gate = tmp_path / "gate"
    gate.touch()
    closed = {"kind": "gate", "at": 3, "file": str(gate), "rank": 0}
    config = faults.write_config(
        tmp_path / "config.yml", tmp_path / "data", [happens, closed], optim=optim
    )
    logdir = tmp_path / "logs"
    began = time.monotonic()
    given = faults.arguments(config, tmp_path, "run", "--num-gpus", "2")
    job = submit(given, logdir)
    output = ended(logdir, job)
    assert time.monotonic() - began < 280  # not the half hour of a collective's time-out
    assert (tmp_path / "marker").exists(), output[-3000:]
    assert fx.checkpoint(tmp_path, "run")["step"] == 4
    gate.unlink()
    subprocess.run(["scontrol", "requeue", job], check=True)
    faults.wait_for(lambda: queued(job), 20, lambda: "not queued again")
    # This time SLURM asks it to stop: both ranks get the signal, wherever each of them is.
    faults.wait_for(
        lambda: queued(job) == "RUNNING" and "step: 6.00e+00" in outputs(logdir, job),
        240,
        lambda: outputs(logdir, job)[-3000:],
        lambda: hasten(job),
    )
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    time.sleep(2)
    gate.touch()
    output = ended(logdir, job)
    assert len(re.findall(r"Stopped after step (\d+)", output)) == 1
    assert record(tmp_path, "run")["state"] == "finished", output[-3000:]
    assert fx.checkpoint(tmp_path, "run")["step"] == faults.STEPS
    assert collect(logdir)[0]["state"] == "finished"
