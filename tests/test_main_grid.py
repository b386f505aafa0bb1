"""``ocp-faenet main``: arguments, overrides and sweeps, as the host reads them and better."""

from __future__ import annotations

import json
import math

import pytest
import yaml
from fairchem.core.common.flags import flags
from fairchem.core.common.utils import build_config, create_grid
from hypothesis import given, settings
from hypothesis import strategies as st

from grid_cases import MODEL, arguments, invoke, sweep
from ocp_faenet.adapters.launch import ClusterOptions, complete
from ocp_faenet.adapters.overrides import parse_value, read_arguments
from ocp_faenet.adapters.sweeps import make_grid, read_sweep, unique_id

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


def test_help_shows_slurm_a_sweep_and_a_submission():
    status, stdout, _ = invoke("--help")
    assert status == 0
    for needle in ("--submit --slurm-partition", "--sweep-yml", "submission build", "--gp-gpus"):
        assert needle in stdout
