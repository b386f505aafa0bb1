"""``ocp-faenet main``: what a job is asked to be, what it does first, what is left of it."""

from __future__ import annotations

import json
import os

import pytest
from fairchem.core.common import distutils
from fairchem.core.common.registry import registry

import plugin_fixtures as fx
from grid_cases import arguments, invoke, sweep
from ocp_faenet.adapters import launch
from ocp_faenet.adapters.collect import collect
from ocp_faenet.adapters.launch import ClusterOptions, write_manifest
from ocp_faenet.adapters.launch import _parameters as parameters
from ocp_faenet.adapters.overrides import read_arguments
from ocp_faenet.adapters.runner import STOCK_TRAINERS, Runner, prepare
from ocp_faenet.adapters.sweeps import Job, make_grid
from ocp_faenet.adapters.trainer import FAENetTrainer


@pytest.mark.parametrize("cpu", [True, False])
def test_what_slurm_is_asked_for(config_yml, cpu):
    given = arguments(config_yml, "--num-gpus", "2", "--slurm-mem", "7", "--slurm-timeout", "3")
    given += ["--optim.num_workers=4", "--slurm.exclude=node7"]
    parsed, config = read_arguments([g for g in given if cpu or g != "--cpu"])
    asked = parameters([Job("a", config)], parsed, ClusterOptions(signal_delay=33))
    assert asked.get("gpus_per_node") == (None if cpu else 2)
    assert asked["tasks_per_node"] == 2
    assert asked["cpus_per_task"] == 5
    assert asked["mem_gb"] == 7
    assert asked["timeout_min"] == 180
    assert asked["slurm_signal_delay_s"] == 33
    assert asked["slurm_additional_parameters"] == {"exclude": "node7"}


def test_submitting_without_slurm_says_so(config_yml, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    status, _, stderr = invoke(*arguments(config_yml, "--submit", "--logdir", str(tmp_path)))
    assert status == 2
    assert "sbatch" in stderr
    assert len(stderr.strip().splitlines()) == 1


@pytest.fixture
def slurm_job(monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    told = {
        "SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "70012", "SLURM_NTASKS": "4",
        "SLURM_JOB_NUM_NODES": "2", "SLURM_NODEID": "1", "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1", "SLURM_JOB_NODELIST": "node[7-8]", "WANDB_MODE": "offline",
    }  # fmt: skip
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distutils, "DISTRIBUTED_PORT", distutils.DISTRIBUTED_PORT)
    trainers = registry.mapping["trainer_name_mapping"]
    for name in STOCK_TRAINERS:
        monkeypatch.setitem(trainers, name, trainers[name])


def test_a_cpu_job_on_slurm_meets_over_gloo(config_yml, slurm_job, monkeypatch):
    given = arguments(config_yml, "--submit", "--num-gpus", "2", "--num-nodes", "2")
    _, config = read_arguments(given)
    job = make_grid(config, None)[0].config
    ready = prepare(job)
    assert ready["submit"] is False  # the host would take NCCL otherwise
    assert job["submit"] is True
    assert ready["distributed_backend"] == "gloo"
    assert ready["world_size"] == 4
    where = {name: os.environ[name] for name in ("MASTER_ADDR", "RANK", "LOCAL_RANK")}
    assert where == {"MASTER_ADDR": "node7", "RANK": "3", "LOCAL_RANK": "1"}
    first = os.environ["MASTER_PORT"]
    monkeypatch.setenv("SLURM_JOB_ID", "70013")
    prepare(job)
    assert os.environ["MASTER_PORT"] != first  # two jobs on one node
    assert registry.get_trainer_class("ocp") is FAENetTrainer
    # A GPU job is left to the host.
    _, config = read_arguments([text for text in given if text != "--cpu"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert prepare(make_grid(config, None)[0].config)["submit"] is True
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="--cpu"):
        prepare(make_grid(config, None)[0].config)


def test_a_local_run_without_a_gpu_takes_the_cpu(config_yml, slurm_job, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    given = [text for text in arguments(config_yml) if text != "--cpu"]
    job = make_grid(read_arguments(given)[1], None)[0].config
    assert (job["cpu"], job["distributed_backend"]) == (False, "nccl")
    ready = prepare(job)
    assert (ready["cpu"], ready["distributed_backend"]) == (True, "gloo")


def test_a_job_that_starts_again_prefers_its_own_checkpoint(config_yml, slurm_job, monkeypatch):
    start = config_yml.parent / "start.pt"
    start.touch()
    given = arguments(config_yml, "--submit", "--checkpoint", str(start), "--timestamp-id", "run")
    _, config = read_arguments([*given, "--run-dir", str(config_yml.parent)])
    job = make_grid(config, None)[0].config
    own = config_yml.parent / "checkpoints" / "run" / "checkpoint.pt"
    own.parent.mkdir(parents=True)
    assert prepare(job)["checkpoint"] == str(start)
    own.touch()
    assert prepare(job)["checkpoint"] == str(start)  # its first attempt
    assert prepare({**job, "cluster": {"requeued": 1}})["checkpoint"] == str(own)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert prepare(job)["checkpoint"] == str(own)
    assert prepare({**job, "mode": "predict"})["checkpoint"] == str(start)


def test_requeues_are_counted_whatever_the_signal():
    config = {"cluster": {"requeues": 2, "requeued": 0}, "timestamp_id": "run"}
    for count in (1, 2):
        again = Runner().checkpoint(config)
        assert again is not None
        config = again.args[0]
        assert config["cluster"]["requeued"] == count
    assert Runner().checkpoint(config) is None


def test_collect_refuses_what_is_no_logdir(tmp_path):
    status, _, stderr = invoke("--collect", str(tmp_path))
    assert status == 2
    assert str(tmp_path) in stderr
    assert invoke("--collect", str(tmp_path), "--mode", "train")[0] == 2


def test_a_job_that_slurm_no_longer_knows_is_killed(tmp_path, monkeypatch):
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text("#!/bin/sh\necho 7_1\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
    config = {"run_dir": str(tmp_path)}
    jobs = [Job(f"run{i}", config, {"seed": i}) for i in range(4)]
    write_manifest(tmp_path, jobs, ["7_0", "7_1", "7_2", "7_3"])
    for name, record in {
        "run2": {"state": "running", "best": 0.25, "primary_metric": "energy_mae"},
        "run3": {"state": "finished", "best": 0.2, "primary_metric": "energy_mae"},
    }.items():
        path = tmp_path / "results" / name / "run.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(record))
    states = [(row["run"], row["state"]) for row in collect(tmp_path)]
    # The best first, those without a score last.
    assert states == [
        ("run3", "finished"),
        ("run2", "killed"),
        ("run0", "killed"),
        ("run1", "pending"),
    ]


@pytest.mark.slow
def test_a_sweep_runs_in_turn_and_is_collected(config_yml, tmp_path, capfd, monkeypatch):
    for name, value in fx.one_thread().items():
        monkeypatch.setenv(name, value)
    path = sweep(tmp_path, "optim.lr_initial: [0.001, nope]\nidentifier: a=b")
    logdir = tmp_path / "logs"
    status, stdout, stderr = invoke(
        *arguments(config_yml, "--sweep-yml", str(path), "--run-dir", str(tmp_path)),
        *("--logdir", str(logdir), "--seed", "4"),
    )
    # The second one fails, the first is none the worse.
    assert status == 1
    assert "1 of 2 runs finished" in stdout
    good, bad = collect(logdir)
    assert bad["run"] in stderr
    assert (good["state"], bad["state"]) == ("finished", "failed")
    assert good["varied"] == {"optim.lr_initial": 0.001, "identifier": "a=b"}
    assert "nope" in bad["error"] or "'str'" in bad["error"]
    saved = fx.checkpoint(tmp_path, good["run"])
    assert saved["config"]["cmd"]["seed"] == 4
    best = fx.checkpoint(tmp_path, good["run"], "best_checkpoint.pt")["val_metrics"]
    assert best["energy_mae"]["metric"] == good["best"]
    assert good["step"] == 2
    status, stdout, _ = invoke("--collect", str(logdir))
    rows = [line for line in stdout.splitlines() if line.startswith("| ")][2:]
    assert status == 0
    assert good["run"] in rows[0]
    assert bad["run"] in rows[1]


def test_runs_on_one_machine_do_not_meet(monkeypatch):
    """Several local ranks meet in a store of their own: a free port, an id that no other has."""
    asked = []
    monkeypatch.setattr(launch, "elastic_launch", lambda config, _: lambda _: asked.append(config))
    for _ in range(2):
        launch.run_here({"optim": {}}, 2)
    assert [config.rdzv_endpoint for config in asked] == ["localhost:0"] * 2
    assert len({config.run_id for config in asked} - {""}) == 2
