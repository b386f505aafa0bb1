"""``ocp-faenet main``: arguments, overrides and sweeps, as the host reads them and better."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from fairchem.core.common import distutils
from fairchem.core.common.flags import flags
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import build_config, create_grid
from hypothesis import given, settings
from hypothesis import strategies as st

import plugin_fixtures as fx
from ocp_faenet.adapters import launch
from ocp_faenet.adapters.collect import collect
from ocp_faenet.adapters.launch import ClusterOptions, complete, write_manifest
from ocp_faenet.adapters.launch import _parameters as parameters
from ocp_faenet.adapters.overrides import parse_value, read_arguments
from ocp_faenet.adapters.runner import STOCK_TRAINERS, Runner, prepare
from ocp_faenet.adapters.sweeps import Job, make_grid, read_sweep, unique_id
from ocp_faenet.adapters.trainer import FAENetTrainer
from ocp_faenet.cli import main

MODEL = {"name": "ocp_faenet.FAENet", **fx.TINY, "regress_forces": "direct", "otf_graph": True}


@pytest.fixture
def config_yml(tmp_path: Path) -> Path:
    path = tmp_path / "config.yml"
    fx.write_splits(tmp_path / "data", train=4, test=2)
    path.write_text(yaml.safe_dump(fx.run_config(tmp_path / "data", MODEL), sort_keys=False))
    return path


def arguments(config_yml: Path, *more: str) -> list[str]:
    return ["--mode", "train", "--config-yml", str(config_yml), "--cpu", *more]


def sweep(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sweep.yml"
    path.write_text(text)
    return path


def invoke(*args: str) -> tuple[int, str, str]:
    found = CliRunner().invoke(main, ["main", *args])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code, found.stdout, found.stderr


# --- arguments and overrides -----------------------------------------------------------------


def test_every_argument_of_the_host_is_read_as_the_host_reads_it(config_yml, tmp_path):
    given = arguments(
        config_yml, "--identifier", "x", "--debug", "--run-dir", str(tmp_path), "--amp",
        "--print-every", "7", "--seed", "3", "--timestamp-id", "id", "--summit", "--submit",
        "--slurm-partition", "p", "--slurm-account", "a", "--slurm-qos", "q", "--slurm-mem", "9",
        "--slurm-timeout", "5", "--num-gpus", "2", "--num-nodes", "3", "--gp-gpus", "2",
        "--logdir", "l", "--sweep-yml", "s.yml", "--checkpoint", str(config_yml),
        "--optim.lr_initial=0.5", "--dataset.val.first_n=2", "--task.write_pos=True",
        "--model.act=silu", "--optim.eval_every=4",
    )  # fmt: skip
    known = {text for action in flags.get_parser()._actions for text in action.option_strings}
    assert known - set(given) == {"-h", "--help"}, "the host has an argument that is not tried"
    parsed, config = read_arguments(given)
    stock_parsed, rest = flags.get_parser().parse_known_args(given)
    assert vars(parsed) == vars(stock_parsed)
    assert config == build_config(stock_parsed, rest)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=b.lmdb", "a=b.lmdb"),
        ("==", "=="),
        ("1e-3", 1e-3),
        ("[1, 2]", [1, 2]),
        ("true", True),
        ("null", None),
        ("None", None),
        ("swish", "swish"),
        ("__import__('os')", "__import__('os')"),
    ],
)
def test_values_of_overrides(config_yml, text, value):
    _, config = read_arguments(arguments(config_yml, f"--identifier={text}"))
    assert parse_value(text) == value
    _, config = read_arguments(arguments(config_yml, f"--dataset.train.src={text}"))
    assert config["dataset"]["train"]["src"] == value
    # Negative control: the host itself.
    if "=" in text:
        parsed, rest = flags.get_parser().parse_known_args(
            arguments(config_yml, f"--dataset.train.src={text}")
        )
        with pytest.raises(ValueError, match="unpack"):
            build_config(parsed, rest)


@pytest.mark.parametrize(
    ("argument", "needles"),
    [
        ("--optim.lr_inital=1", ["optim.lr_inital", "optim.lr_initial"]),
        ("--model.hiden_channels=8", ["model.hiden_channels", "model.hidden_channels"]),
        ("--optm.lr_initial=1", ["'optm'", "'optim'"]),
        ("--dataset.tran.src=x", ["dataset.tran", "dataset.train"]),
        ("--dataset.val.sorce=x", ["dataset.val.sorce", "dataset.val.src"]),
        ("--loss_functions.2.energy.fn=mae", ["loss_functions.2", "0 to 1"]),
        ("--optim.lr_initial.x=1", ["optim.lr_initial", "0.001", "'x'"]),
        ("--sede", ["--sede", "--seed"]),
        ("--num-gpus=0", ["--num-gpus", "1"]),
        ("--mode=trian", ["--mode", "train"]),
        ("--checkpoint=none.pt", ["none.pt"]),
        ("--config-yml=none.yml", ["none.yml"]),
        ("--dataset.train.src=none.lmdb", ["dataset.train.src", "none.lmdb"]),
    ],
)
def test_one_line_and_status_2_for_what_is_wrong(config_yml, argument, needles):
    status, _, stderr = invoke(*arguments(config_yml, argument))
    assert status == 2
    assert len(stderr.strip().splitlines()) == 1
    for needle in needles:
        assert needle in stderr
    assert not (config_yml.parent / "checkpoints").exists()


def test_a_loss_in_a_list_can_be_overridden(config_yml):
    _, config = read_arguments(arguments(config_yml, "--loss_functions.1.forces.coefficient=50"))
    assert config["loss_functions"][1] == {"forces": {"fn": "l2mae", "coefficient": 50}}
    assert config["loss_functions"][0] == {"energy": {"fn": "mae", "coefficient": 1}}


# --- sweeps ----------------------------------------------------------------------------------


def test_a_sweep_file(config_yml, tmp_path):
    path = sweep(
        tmp_path,
        """
        optim:
          lr_initial: [1e-3, 0.01]
          optimizer_params: {weight_decay: [0, 0.1]}
        model.act: swish
        model: {cutoff: 4.5}
        seed: [0, 1, 2]
        """,
    )
    values = read_sweep(path)
    assert values == {
        "optim.lr_initial": [0.001, 0.01],
        "optim.optimizer_params.weight_decay": [0, 0.1],
        "model.act": ["swish"],
        "model.cutoff": [4.5],
        "seed": [0, 1, 2],
    }
    _, base = read_arguments(arguments(config_yml, "--identifier", "lr test"))
    jobs = make_grid(base, path)
    assert len(jobs) == 2 * 2 * 3
    assert len({job.run_id for job in jobs}) == 12
    for job in jobs:
        config = job.config
        assert config["optim"]["lr_initial"] == job.varied["optim.lr_initial"]
        decay = config["optim"]["optimizer_params"]["weight_decay"]
        assert decay == job.varied["optim.optimizer_params.weight_decay"]
        assert config["seed"] == job.varied["seed"]
        assert config["model"] == {**MODEL, "act": "swish", "cutoff": 4.5}
        assert config["timestamp_id"] == job.run_id
    assert base["optim"]["lr_initial"] == 1e-3
    assert "optimizer_params" not in base["optim"]
    # Negative control: what the host makes of it on Python 3.10 and newer.
    with pytest.raises(AttributeError):
        create_grid(base, path)


@given(
    st.dictionaries(
        st.sampled_from(["identifier", "seed", "optim.lr_initial", "model.act", "task.write_pos"]),
        st.lists(
            st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
            min_size=1,
            max_size=3,
        ),
        min_size=1,
    )
)
@settings(max_examples=40, deadline=None)
def test_any_values_make_the_whole_grid(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("sweep") / "sweep.yml"
    path.write_text(yaml.safe_dump(values))
    base = {"model": dict(MODEL), "optim": {"lr_initial": 1.0}, "seed": 0, "identifier": "x"}
    jobs = make_grid(base, path)
    assert len(jobs) == math.prod(len(options) for options in values.values())
    for job in jobs:
        for key, value in job.varied.items():
            level = job.config
            for name in key.split("."):
                level = level[name]
            if key != "identifier":  # becomes the run's name
                assert level == value


@pytest.mark.parametrize(
    ("text", "needles"),
    [
        ("optim: {lr: [1]}", ["optim.lr", "nearest"]),
        ("optim: {lr_initial: []}", ["optim.lr_initial", "no values"]),
        ("optims: {lr_initial: [1]}", ["optims", "optim"]),
        ("- 1", ["mapping"]),
        ("seed: [1", ["not YAML"]),
        ("seed: [1]\nseed: [2]", ["seed"]),
        ("optim: {lr_initial: [1]}\noptim.lr_initial: [2]", ["optim.lr_initial", "twice"]),
        ("seed: [0, 1]\nmodel: {cutoff: [4, -1]}", ["-run1", "cutoff", "-1"]),
    ],
)
def test_bad_sweeps(config_yml, tmp_path, text, needles):
    path = sweep(tmp_path, text)
    status, _, stderr = invoke(*arguments(config_yml, "--sweep-yml", str(path), "--dry-run"))
    assert status == 2
    assert len(stderr.strip().splitlines()) == 1
    for needle in needles:
        assert needle in stderr


def test_dry_run_prints_the_grid_and_writes_nothing(config_yml, tmp_path):
    path = sweep(tmp_path, "optim.lr_initial: [0.1, 0.2]\nseed: [5, 6]")
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path.parent / f"{tmp_path.name}.json"
    status, stdout, _ = invoke(
        *arguments(config_yml, "--sweep-yml", str(path), "--run-dir", str(tmp_path)),
        *("--logdir", str(tmp_path / "logs"), "--dry-run", "--json", str(out)),
    )
    assert status == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert stdout.strip().splitlines()[-1] == "4 jobs, none started (--dry-run)"
    shown = [yaml.safe_load(part) for part in stdout.split("\n\n") if part.startswith("# ")]
    told = json.loads(out.read_text())
    assert told["count"] == len(shown) == 4
    pairs = [(c["optim"]["lr_initial"], c["seed"]) for c in shown]
    assert pairs == [(0.1, 5), (0.1, 6), (0.2, 5), (0.2, 6)]
    assert [run["config"] for run in told["runs"]] == shown


def test_ids_of_one_second_differ():
    ids = {unique_id("a/b c") for _ in range(200)}
    assert len(ids) == 200
    assert all(name.endswith("-a_b_c") and "/" not in name for name in ids)


def test_a_given_id_names_every_run(config_yml, tmp_path):
    path = sweep(tmp_path, "seed: [0, 1]")
    _, base = read_arguments(arguments(config_yml, "--timestamp-id", "mine"))
    assert [job.run_id for job in make_grid(base, path)] == ["mine-run0", "mine-run1"]
    assert make_grid(base, None)[0].config["timestamp_id"] == "mine"


def test_runs_of_a_sweep_are_a_group(config_yml, tmp_path):
    path = sweep(tmp_path, "seed: [0, 1]")
    _, base = read_arguments(arguments(config_yml, "--identifier", "x"))
    jobs = complete(make_grid({**base, "logger": "wandb"}, path), ClusterOptions())
    groups = {job.config["logger"]["group"] for job in jobs}
    assert len(groups) == 1
    assert [job.config["identifier"] for job in jobs] == ["x_run0 seed=0", "x_run1 seed=1"]
    kept = {"name": "wandb", "project": "p", "group": "mine"}
    jobs = complete(make_grid({**base, "logger": kept}, path), ClusterOptions())
    assert jobs[0].config["logger"] == kept
    single = complete(make_grid({**base, "logger": "wandb"}, None), ClusterOptions())
    assert single[0].config["logger"] == "wandb"


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


def test_help_shows_slurm_a_sweep_and_a_submission():
    status, stdout, _ = invoke("--help")
    assert status == 0
    for needle in ("--submit --slurm-partition", "--sweep-yml", "submission build", "--gp-gpus"):
        assert needle in stdout


# --- what a job does before the host does anything ---------------------------------------------


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


# --- runs ------------------------------------------------------------------------------------


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
