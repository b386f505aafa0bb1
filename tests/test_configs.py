"""Every shipped YAML, built by the host's own loader, takes a training step."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fairchem.core.common import distutils
from fairchem.core.common.flags import flags
from fairchem.core.common.utils import build_config, load_config, new_trainer_context
from fairchem.core.models.base import HydraModel
from fairchem.core.modules.scheduler import LRScheduler

from ocp_faenet.adapters.schedules import fitted_schedule
from plugin_fixtures import checkpoint, one_thread

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
FILES = sorted((CONFIGS / "oc20").rglob("*.yml"))
NAMES = [str(path.relative_to(CONFIGS)) for path in FILES]
#: Training sizes of OC20 IS2RE.
SIZES = {"10k": 10_000, "100k": 100_000, "all": 460_328}
#: What a split other than train may be given by the loader: nothing random.
DETERMINISTIC = {"graph_rewiring"}
#: What gives other splits a target and no noise (tests/test_noisy_nodes.py).
TARGETS = {"noisy_nodes", "denoising", "relaxed_positions"}


def load(path: Path) -> dict:
    config, _, conflicts = load_config(str(path))
    assert conflicts == []
    return config


RUNS = [
    name for name, path in zip(NAMES, FILES, strict=True) if {"model", "optim"} <= load(path).keys()
]


def to_tiny(src: str, tiny: Path) -> str:
    """The tiny set's LMDB of the same task and split."""
    folder = Path(src) if not src.endswith(".lmdb") else Path(src).parent
    task = "s2ef" if "s2ef" in folder.parts else "is2re"
    return str(tiny / task / folder.name / "data.lmdb")


def starting_checkpoint(config: dict, folder: Path) -> Path:
    """What pre-training would leave, with random weights."""
    network = HydraModel(**{key: value for key, value in config["model"].items() if key != "name"})
    torch.save({"config": config, "state_dict": network.state_dict()}, folder / "start.pt")
    return folder / "start.pt"


def build(name: str, tiny: Path, run_dir: Path) -> dict:
    """As ``fairchem --mode train --debug`` builds it: two structures, one step.

    The model is the shipped one, but for DimeNet++'s angular basis: the host derives it
    symbolically each time, which takes 20 s for the published seven orders and 1 s for two.
    """
    overrides = ["--optim.batch_size=2", "--optim.eval_batch_size=2", "--optim.num_workers=0"]
    overrides += ["--optim.max_epochs=1", "--dataset.train.first_n=2"]
    config = load(CONFIGS / name)
    if config["model"]["name"] == "dimenetplusplus":
        overrides.append("--model.num_spherical=2")
    for split, section in config["dataset"].items():
        if "src" in section:
            overrides.append(f"--dataset.{split}.src={to_tiny(section['src'], tiny)}")
    if "finetune_config" in config["model"]:
        started = starting_checkpoint(load((CONFIGS / name).with_name("faenet.yml")), run_dir)
        overrides.append(f"--model.finetune_config.starting_checkpoint={started}")
    command = ["--mode=train", f"--config-yml={CONFIGS / name}", f"--run-dir={run_dir}"]
    command += ["--timestamp-id=run", "--debug", "--cpu"]
    return build_config(*flags.get_parser().parse_known_args(command + overrides))


def test_nothing_is_left_out():
    """Each YAML is a run of its own or the base of one."""
    included = {
        (path.parent / include).resolve()
        for path in FILES
        for include in yaml.safe_load(path.read_text()).get("includes", [])
    }
    bases = {path.resolve() for name, path in zip(NAMES, FILES, strict=True) if name not in RUNS}
    assert RUNS
    assert bases <= included


@pytest.fixture
def leave_group():
    """The host leaves its process group open when a run fails; the next test needs it closed."""
    yield
    distutils.cleanup()


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.usefixtures("leave_group")
def test_one_training_step(name, tiny_data, tmp_path):
    config = build(name, tiny_data, tmp_path)
    with new_trainer_context(config=config) as context:
        trainer = context.trainer
        context.task.setup(trainer)
        before = {key: value.clone() for key, value in trainer.model.named_parameters()}
        context.task.run()
        after = dict(trainer.model.named_parameters())
        assert trainer.step == 1
        assert math.isfinite(trainer.best_val_metric)
        trained = {key: value for key, value in after.items() if value.requires_grad}
        assert [key for key, value in trained.items() if value.grad is None] == []
        assert all(torch.isfinite(value).all() for value in after.values())
        learns = config["model"]["name"] != "ocp_faenet.Baseline"
        assert learns == any(not torch.equal(value, before[key]) for key, value in after.items())


@pytest.mark.slow
def test_a_published_configuration_as_it_stands(tiny_data, tmp_path):
    """The stock command in a fresh process: its worker processes, batch size and logger.

    All other tests load their data in the process that trains.
    """
    name = CONFIGS / "oc20" / "is2re" / "10k" / "faenet.yml"
    for place, split in (("10k/train", "train"), ("all/val_id", "val_id")):
        folder = tmp_path / "data" / "is2re" / place
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(tiny_data / "is2re" / split)
    command = [str(Path(sys.executable).with_name("fairchem")), "--mode=train", "--cpu"]
    command += [f"--config-yml={name}", "--timestamp-id=run", "--optim.max_epochs=1"]
    command += ["--dataset.test.src=data/is2re/all/val_id/data.lmdb"]
    done = subprocess.run(
        command, cwd=tmp_path, env=one_thread(), capture_output=True, text=True, timeout=550
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    saved = checkpoint(tmp_path, "run")
    assert saved["step"] == 1
    published = load(name)["optim"] | {"max_epochs": 1, "total_steps": 1}
    assert published["num_workers"] > 0
    assert saved["config"]["optim"] == published
    assert list((tmp_path / "logs" / "wandb" / "run").rglob("*.wandb"))
    with np.load(tmp_path / "results" / "run" / "ocp_predictions.npz") as file:
        assert len(set(file["ids"].tolist())) == 16
        assert np.isfinite(file["energy"]).all()


@pytest.mark.parametrize("name", RUNS)
def test_no_training_transform_in_other_splits(name):
    """The host copies train's transforms to a split that names none (its trap 5)."""
    config = load(CONFIGS / name)
    for split, section in config["dataset"].items():
        transforms = set(section["transforms"])  # a split without the key would inherit
        if split != "train":
            assert transforms <= DETERMINISTIC | TARGETS
            assert "seed" in section["transforms"].get("denoising", {"seed": 0})
            of_train = set(config["dataset"]["train"]["transforms"])
            assert transforms - TARGETS == of_train & DETERMINISTIC


@pytest.mark.parametrize(
    ("size", "peak", "warmup", "epochs"),
    [("10k", 5e-3, 468, 20), ("100k", 5e-3, 468, 20), ("all", 2e-3, 6000, 12)],
)
def test_published_schedule_of_faenet(size, peak, warmup, epochs):
    """From .2 of the peak to the peak in the published warm-up, then to zero at the last step."""
    optim = load(CONFIGS / "oc20" / "is2re" / size / "faenet.yml")["optim"]
    steps = epochs * math.ceil(SIZES[size] / 256)
    assert (optim["max_epochs"], optim["batch_size"]) == (epochs, 256)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=optim["lr_initial"])
    scheduler = LRScheduler(optimizer, fitted_schedule(optim, steps))
    rates = [scheduler.get_lr()]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_lr())
    assert rates[0] == pytest.approx(0.2 * peak)
    assert max(rates) == pytest.approx(peak, rel=1e-6)
    assert abs(rates.index(max(rates)) - warmup) <= 2
    assert rates[steps - 1] < 1e-4 * peak
    momenta = {group["betas"] for group in optimizer.param_groups}
    assert momenta == {(0.9, 0.999)}


@pytest.mark.parametrize(
    ("size", "frames"),
    [("200k", 200_000), ("2M", 2_000_000), ("20M", 20_000_000), ("all", 133_934_018)],
)
def test_published_schedule_of_s2ef(size, frames):
    """12 epochs; 30000 steps of warm-up, or their share in 2M where that is all there is."""
    config = load(CONFIGS / "oc20" / "s2ef" / size / "faenet.yml")
    optim, steps = config["optim"], 12 * math.ceil(frames / 192)
    assert (optim["max_epochs"], optim["batch_size"]) == (12, 192)
    assert "total_steps" not in optim
    assert optim["max_lr"] == optim["lr_initial"] == 2.5e-4
    expected = 30_000 if steps > 30_000 else steps * 30_000 / 125_004
    assert optim["pct_start"] * steps == pytest.approx(expected, rel=1e-3)
    weights = {k: v["coefficient"] for entry in config["loss_functions"] for k, v in entry.items()}
    assert weights == {"energy": 1, "forces": 30, "energy_conservation": 10}
