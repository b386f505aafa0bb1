"""The energy conservation loss: values, branches, schedule, errors (issue 4, point 2)."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from fairchem.core.common import distutils
from fairchem.core.common.flags import flags
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import build_config, new_trainer_context
from fairchem.core.datasets import data_list_collater
from fairchem.core.trainers import OCPTrainer

import plugin_fixtures as fx
from ocp_faenet.adapters import hydra
from ocp_faenet.adapters.conservation import Conservation, Scales, Term, split_losses
from ocp_faenet.adapters.plugin import PUBLIC
from ocp_faenet.adapters.preflight import check_run_config, check_scales
from ocp_faenet.models.faenet import FAENetCore
from ocp_faenet.nn.conservation import (
    Branch,
    ConservationNorm,
    EnergyConservationLoss,
    GradientOrder,
)

CONFIG = Path(__file__).parent.parent / "configs/oc20/emt/s2ef/faenet_conservation.yml"
SMALL = {key: value for key, value in fx.TINY.items() if key != "cutoff"}


def test_value_is_equation_9():
    generator = torch.Generator().manual_seed(0)
    forces, gradient = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    slow = sum(sum((forces[i, k] - gradient[i, k]) ** 2 for k in range(3)) ** 0.5 for i in range(5))
    found = EnergyConservationLoss()(forces, gradient)
    assert float(found.sum()) == pytest.approx(float(slow), rel=1e-12)
    difference = forces - gradient
    mae = EnergyConservationLoss(ConservationNorm.MAE)(forces, gradient)
    mse = EnergyConservationLoss(ConservationNorm.MSE)(forces, gradient)
    assert torch.equal(mae, difference.abs())
    assert torch.equal(mse, difference**2)


@pytest.mark.parametrize("norm", list(ConservationNorm))
def test_copies_and_pickles(norm):
    """As the host's own losses: a study's processes hand them on."""
    loss = Conservation.of(Term(fn="energy_conservation", coefficient=1, norm=norm)).loss
    forces, gradient, natoms = torch.randn(5, 3), torch.zeros(5, 3), torch.tensor([5])
    exact = loss(forces, gradient, natoms)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(other(forces, gradient, natoms), exact)


@pytest.mark.parametrize("branch", list(Branch))
def test_only_the_chosen_branch_is_taught(branch):
    forces = torch.ones(2, 3, requires_grad=True)
    gradient = torch.zeros(2, 3, requires_grad=True)
    EnergyConservationLoss(gradient_to=branch)(forces, gradient).sum().backward()
    assert (forces.grad is not None) is (branch is not Branch.ENERGY)
    assert (gradient.grad is not None) is (branch is not Branch.FORCES)
    second = branch is not Branch.FORCES
    assert branch.order is (GradientOrder.SECOND if second else GradientOrder.FIRST)


def test_schedule():
    term = Term(fn="energy_conservation", coefficient=1, from_epoch=1, every=3)
    active = [step for step in range(1, 13) if term.active(step, steps_per_epoch=5)]
    assert active == [6, 9, 11]
    assert not Term(fn="energy_conservation", coefficient=0).active(1, 5)


def config(tiny: Path, run_dir: Path, *extra: str) -> dict:
    """Two epochs of four steps, as ``fairchem --mode train --debug`` builds them."""
    command = ["--mode=train", f"--config-yml={CONFIG}", f"--run-dir={run_dir}", "--cpu"]
    command += ["--timestamp-id=run", "--debug", "--optim.batch_size=2", "--optim.max_epochs=2"]
    command += ["--dataset.train.first_n=8", "--dataset.val.first_n=2", *extra]
    for split, folder in {"train": "train", "val": "val_id"}.items():
        command.append(f"--dataset.{split}.src={tiny / 's2ef' / folder / 'data.lmdb'}")
    built = build_config(*flags.get_parser().parse_known_args(command))
    built["model"] |= SMALL
    return built


def as_hydra(model: dict) -> dict:
    """The same model as a backbone with heads."""
    backbone = {key: value for key, value in model.items() if key != "name"}
    heads = {
        "energy": {"module": "ocp_faenet.FAENetEnergyHead"},
        "forces": {"module": "ocp_faenet.FAENetForceHead"},
    }
    backbone["model"] = "ocp_faenet.FAENetBackbone"
    return {
        "name": "hydra",
        "backbone": backbone,
        "heads": heads,
        "pass_through_head_outputs": True,
    }


@pytest.mark.parametrize("form", ["plain", "hydra"])
def test_the_second_order_graph_is_built_where_it_is_used(tiny_data, tmp_path, monkeypatch, form):
    orders = []
    if form == "plain":
        plain = FAENetCore._predict_with_gradient

        def spy(self, *args, second_order):
            orders.append(second_order)
            return plain(self, *args, second_order=second_order)

        monkeypatch.setattr(FAENetCore, "_predict_with_gradient", spy)
    else:
        taken = hydra.FAENetEnergyHead._gradient

        def spy(self, energy, positions):
            orders.append(self.gradient_order is GradientOrder.SECOND)
            return taken(self, energy, positions)

        monkeypatch.setattr(hydra.FAENetEnergyHead, "_gradient", spy)
    built = config(tiny_data, tmp_path)
    if form == "hydra":
        built["model"] = as_hydra(built["model"])
    logged, steps = [], []
    with new_trainer_context(config=built) as context:
        trainer = context.trainer
        compute = trainer._compute_loss

        def watch(out, batch):
            loss = compute(out, batch)
            if trainer.model.training:
                steps.append(len(orders))
                logged.append("loss_energy_conservation" in trainer.metrics)
            return loss

        trainer._compute_loss = watch
        context.task.setup(trainer)
        context.task.run()
    # From epoch 1, every second step; none in the validations.
    assert orders == [True, True]
    assert steps == [0, 0, 0, 0, 1, 1, 2, 2]
    assert logged == [False] * 4 + [True] * 4


def test_a_constant_gradient_needs_no_second_order(tiny_data, tmp_path, monkeypatch):
    orders = []
    plain = FAENetCore._predict_with_gradient

    def spy(self, *args, second_order):
        orders.append(second_order)
        return plain(self, *args, second_order=second_order)

    monkeypatch.setattr(FAENetCore, "_predict_with_gradient", spy)
    built = config(tiny_data, tmp_path, "--optim.max_epochs=1")
    built["loss_functions"][2]["energy_conservation"] |= {"gradient_to": "forces", "from_epoch": 0}
    with new_trainer_context(config=built) as context:
        context.task.setup(context.trainer)
        context.task.run()
    assert orders == [False, False]


def test_units_are_those_of_the_forces():
    """A model whose forces are the gradient in eV/Å has no loss, whatever the deviations."""
    gradient = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    scales = Scales(energy=3.0, forces=0.5)
    forces = gradient * 3.0 / 0.5
    loss = Conservation.of(Term(fn="energy_conservation", coefficient=2.0, reduction="sum"))
    mask, natoms = torch.ones(4, dtype=torch.bool), torch.tensor([4])
    assert float(loss(forces, gradient, mask, natoms, scales)) == pytest.approx(0.0, abs=1e-5)
    mask = torch.tensor([True, False, False, False])
    apart = float(loss(forces + 1.0, gradient, mask, natoms, scales))
    assert apart == pytest.approx(2.0 * 3**0.5, rel=1e-5)


def disagreement(weight: float) -> float:
    """Of forces and gradient, relative, after 40 steps with the term at ``weight``."""
    torch.manual_seed(0)
    options = {**fx.TINY, "otf_graph": True, "regress_forces": "direct_with_gradient_target"}
    model = PUBLIC["FAENet"](**options, force_decoder_type="simple").train()
    model.gradient_order = GradientOrder.SECOND
    batch = data_list_collater([fx.slab_record(seed) for seed in range(2)], otf_graph=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        out = model(batch)
        forces, gradient = out["forces"], out["forces_grad_target"]
        # Forces have a target of their own: zero everywhere would conserve energy too.
        apart = EnergyConservationLoss()(forces, gradient).mean()
        loss = (forces - batch.force).abs().mean() + weight * apart
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(apart.detach() / gradient.detach().norm(dim=-1).mean())


def test_training_on_it_makes_forces_conservative():
    assert disagreement(1.0) < 0.7 * disagreement(0.0)


GOOD = {"fn": "energy_conservation", "coefficient": 1}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"energy_conservation": {"fn": "energy_conservation"}}, "coefficient: .*required"),
        ({"energy_conservation": {**GOOD, "norm": "l3"}}, "norm: 'l3'; input should be 'l2'"),
        ({"energy_conservation": {**GOOD, "gradient_to": "none"}}, "gradient_to: 'none'"),
        ({"energy_conservation": {**GOOD, "every": 0}}, "every: 0"),
        ({"energy_conservation": {**GOOD, "evry": 2}}, "evry: 2; extra"),
        ({"energy_conservation": {**GOOD, "coefficient": -1}}, "coefficient: -1"),
        ({"forces": GOOD}, "it stands under another name"),
    ],
)
def test_bad_entries(entry, message):
    with pytest.raises(ValueError, match=rf"^loss_functions.energy_conservation: {message}"):
        split_losses([{"energy": {"fn": "mae", "coefficient": 1}}, entry])


def run_config(**model) -> dict:
    losses = [{"energy": {"fn": "mae", "coefficient": 1}}, {"energy_conservation": GOOD}]
    forces = {"level": "atom", "train_on_free_atoms": True}
    return {
        "model": {"name": "ocp_faenet.FAENet", **fx.TINY, **model},
        "dataset": {"train": {}},
        "optim": {"batch_size": 1},
        "outputs": {"energy": {"level": "system"}, "forces": forces},
        "loss_functions": losses,
    }


def test_it_needs_a_model_with_both():
    with pytest.raises(ValueError, match="regress_forces is 'direct'; only 'direct_with_gradient"):
        check_run_config(run_config(regress_forces="direct"))
    check_run_config(run_config(regress_forces="direct_with_gradient_target"))
    twice = run_config(regress_forces="direct_with_gradient_target")
    twice["loss_functions"].append({"energy_conservation": GOOD})
    with pytest.raises(ValueError, match="2 entries energy_conservation"):
        check_run_config(twice)


def test_forces_from_the_energy_share_its_deviation():
    model = {"name": "ocp_faenet.FAENet", "regress_forces": "from_energy"}
    check_scales(model, Scales(2.0, 2.0))
    check_scales({**model, "regress_forces": "direct"}, Scales(2.0, 1.0))
    with pytest.raises(ValueError, match="stdev 2 of the energy, 1 of the forces"):
        check_scales(model, Scales(2.0, 1.0))


def test_the_stock_trainer_says_which_one_is_needed(tiny_data, tmp_path, monkeypatch):
    # `ocp-faenet main` in the same process puts ours in its place.
    monkeypatch.setitem(registry.mapping["trainer_name_mapping"], "ocp", OCPTrainer)
    built = config(tiny_data, tmp_path, "--trainer=ocp")
    built["trainer"] = "ocp"
    try:
        with (
            pytest.raises(ValueError, match=r"trainer: ocp_faenet\.FAENetTrainer"),
            new_trainer_context(config=built),
        ):
            pass
    finally:
        distutils.cleanup()
