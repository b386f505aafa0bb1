"""The plugin in fresh processes, through the real ``fairchem`` executable (issue 2, 4 and 5)."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import plugin_fixtures as fx

pytestmark = pytest.mark.slow

#: Nothing random and no statistics over a rank's atoms: ranks must add up.
DETERMINISTIC = {
    "name": "ocp_faenet.FAENet",
    **fx.TINY,
    "frame_averaging": "2D",
    "fa_method": "all",
    "regress_forces": "direct",
    "otf_graph": True,
    "force_decoder_model_config": {"mlp": {"hidden_channels": 16, "norm": "layer"}},
}
BACKBONE = {
    "model": "ocp_faenet.FAENetBackbone",
    **{key: value for key, value in fx.STOCHASTIC.items() if key != "name"},
}
HEADS = {
    "energy": {"module": "ocp_faenet.FAENetEnergyHead"},
    "forces": {
        "module": "ocp_faenet.FAENetForceHead",
        "force_decoder_model_config": {"mlp": {"hidden_channels": 16, "norm": "layer"}},
    },
}


@pytest.fixture(scope="session")
def area(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all test workers of this run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if base.name.startswith("popen-") else base


@pytest.fixture(scope="session")
def data(area: Path) -> Path:
    """``train/`` and ``test/data.lmdb``."""
    return fx.once(area / "plugin-data", fx.write_splits)


@pytest.fixture(scope="session")
def trained(area: Path, data: Path) -> Path:
    """Run ``short``: dotted model name, stock trainer, 5 steps, checkpoint after step 4."""

    def build(folder: Path) -> None:
        succeed(fx.fairchem(fx.run_config(data, fx.STOCHASTIC), folder, "short"))

    return fx.once(area / "plugin-trained", build)


@pytest.fixture(scope="session")
def hydra(area: Path, data: Path) -> Path:
    """Run ``hydra``: backbone and heads by dotted names, stock trainer."""

    def build(folder: Path) -> None:
        model = {"name": "hydra", "backbone": BACKBONE, "heads": HEADS, "otf_graph": True}
        config = fx.run_config(data, {**model, "pass_through_head_outputs": True})
        succeed(fx.fairchem(config, folder, "hydra"))

    return fx.once(area / "plugin-hydra", build)


def succeed(run: subprocess.CompletedProcess[str]) -> None:
    """Fail with the end of its output if ``run`` did."""
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]


def predictions(folder: Path, name: str) -> dict[str, np.ndarray]:
    """The prediction file of run ``name``, by the host's own keys."""
    with np.load(folder / "results" / name / "ocp_predictions.npz") as file:
        return {key: file[key] for key in file.files}


def test_dotted_name_with_the_stock_trainer(trained: Path) -> None:
    saved = fx.checkpoint(trained, "short")
    assert saved["step"] == 4
    assert saved["config"]["model"]["name"] == "ocp_faenet.FAENet"
    assert saved["state_dict"]["seeds.training_passes"] == 4
    ids = predictions(trained, "short")["ids"].tolist()
    assert ids == ["1090", "1091", "1092", "1093"]


CALCULATOR = """
import sys
import numpy as np
from ase import Atoms
from fairchem.core.common.relaxation.ase_utils import OCPCalculator
from fairchem.core.datasets import LmdbDataset

checkpoint, src, out = sys.argv[1:]
assert not [name for name in sys.modules if name.startswith("ocp_faenet")]
calculator = OCPCalculator(checkpoint_path=checkpoint, cpu=True)
records = LmdbDataset({"src": src})
energies, forces = [], []
for record in (records[i] for i in range(len(records))):
    atoms = Atoms(
        record.atomic_numbers.int().tolist(), record.pos.double().numpy(), tags=record.tags,
        cell=record.cell[0].double().numpy(), pbc=True,
    )
    atoms.calc = calculator
    energies.append(atoms.get_potential_energy())
    forces.append(atoms.get_forces()[(record.fixed == 0).numpy()])
np.savez(out, energy=energies, forces=np.concatenate(forces))
"""


def test_calculator_in_a_process_without_the_plugin_gives_the_trainers_predictions(
    trained: Path, data: Path, tmp_path: Path
) -> None:
    best = trained / "checkpoints" / "short" / "checkpoint.pt"
    config = fx.run_config(data, fx.STOCHASTIC)
    succeed(fx.fairchem(config, trained, "predict", "--checkpoint", str(best), mode="predict"))
    src = data / "test" / "data.lmdb"
    command = [sys.executable, "-c", CALCULATOR, str(best), str(src), str(tmp_path / "calc.npz")]
    succeed(
        subprocess.run(
            command, capture_output=True, text=True, env=fx.one_thread(), cwd=tmp_path, timeout=550
        )
    )
    expected = predictions(trained, "predict")
    with np.load(tmp_path / "calc.npz") as found:
        np.testing.assert_allclose(found["energy"], expected["energy"].ravel(), rtol=1e-5)
        np.testing.assert_allclose(found["forces"], expected["forces"], rtol=1e-4, atol=1e-5)
    # Negative control: the weights of one step later are told apart by the same tolerance.
    later = predictions(trained, "short")["energy"]
    assert not np.allclose(later, expected["energy"], rtol=1e-5)


def test_resumed_training_gives_the_uninterrupted_weights(trained: Path, data: Path) -> None:
    config = fx.run_config(data, fx.STOCHASTIC)
    config["optim"]["max_epochs"] = 2
    config["dataset"].pop("test")
    stopped = trained / "checkpoints" / "short" / "checkpoint.pt"  # in the middle of an epoch
    succeed(fx.fairchem(config, trained, "resumed", "--checkpoint", str(stopped)))
    succeed(fx.fairchem(config, trained, "whole"))
    resumed, whole = (fx.checkpoint(trained, name) for name in ("resumed", "whole"))
    assert resumed["step"] == whole["step"] == 10
    for key, value in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][key], value), key
    # Negative control: training went on after the stop.
    before = fx.checkpoint(trained, "short")["state_dict"]
    weight = "core.energy_head.readout.first.weight"
    assert not torch.equal(before[weight], whole["state_dict"][weight])


def test_hydra_backbone_is_reused_with_new_heads(hydra: Path, data: Path) -> None:
    start = hydra / "checkpoints" / "hydra" / "best_checkpoint.pt"
    model = {
        "name": "hydra",
        "finetune_config": {"starting_checkpoint": str(start)},
        "heads": HEADS,
        "pass_through_head_outputs": True,
        "otf_graph": True,
    }
    config = fx.run_config(data, model)
    config["optim"]["lr_initial"] = 0.0  # what is loaded is what is saved
    succeed(fx.fairchem(config, hydra, "tuned", "--seed", "7"))
    before = fx.checkpoint(hydra, "hydra", "best_checkpoint.pt")["state_dict"]
    after = fx.checkpoint(hydra, "tuned")["state_dict"]
    assert before.keys() == after.keys()
    backbone = [key for key in before if key.startswith("backbone.core.")]
    assert backbone
    for key in backbone:
        assert torch.equal(before[key], after[key]), key
    new = "output_heads.energy.head.readout.first.weight"
    assert not torch.equal(before[new], after[new])


def test_two_ranks_are_one_rank_at_the_doubled_batch(data: Path, tmp_path: Path) -> None:
    config = fx.run_config(data, DETERMINISTIC, trainer="ocp_faenet.FAENetTrainer")
    config["dataset"].pop("test")
    # Plain gradient descent: Adam would blow rounding up where a gradient is zero.
    config["optim"] |= {"optimizer": "SGD", "checkpoint_every": 3, "lr_initial": 1e-2}
    config["optim"] |= {"batch_size": 2, "eval_batch_size": 2, "load_balancing": False}
    succeed(fx.fairchem(config, tmp_path, "two", "--num-gpus", "2"))
    doubled = copy.deepcopy(config)
    doubled["optim"] |= {"batch_size": 4, "eval_batch_size": 4}
    succeed(fx.fairchem(doubled, tmp_path, "one"))
    two, one = (fx.checkpoint(tmp_path, name, "best_checkpoint.pt") for name in ("two", "one"))
    for metric in ("loss", "energy_mae", "forces_mae"):
        pair = [ckpt["val_metrics"][metric]["metric"] for ckpt in (two, one)]
        assert pair[0] == pytest.approx(pair[1], rel=1e-5), metric
    for key, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][key], value, rtol=1e-4, atol=1e-6)
    assert not list(tmp_path.glob("checkpoints/*/*.partial"))
