"""The thin layer between the host and the models, in one process."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from fairchem.core.common import distutils
from fairchem.core.common.registry import registry
from fairchem.core.datasets import data_list_collater
from fairchem.core.modules import transforms as host_transforms
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import ocp_faenet
import plugin_fixtures as fx
from ocp_faenet.adapters.frames import frame_averaging
from ocp_faenet.adapters.rewiring import graph_rewiring
from plugin_cases import FRAMED, batch_of, faenet, hydra_like

MODES = [None, "direct", "from_energy", "direct_with_gradient_target"]


def test_importing_the_package_loads_nothing() -> None:
    code = (
        "import sys, ocp_faenet; heavy = {'torch', 'fairchem', 'numpy', 'pydantic'};"
        "sys.exit(str(heavy & set(sys.modules) or ''))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stderr.strip() == ""
    with pytest.raises(AttributeError, match="FAENett"):
        _ = ocp_faenet.FAENett


def test_touching_a_name_registers_everything() -> None:
    for name, cls in {
        "faenet": ocp_faenet.FAENet,
        "faenet_backbone": ocp_faenet.FAENetBackbone,
        "faenet_energy_head": ocp_faenet.FAENetEnergyHead,
        "faenet_force_head": ocp_faenet.FAENetForceHead,
    }.items():
        assert registry.get_model_class(name) is cls
        assert registry.get_model_class(f"ocp_faenet.{cls.__name__}") is cls
    assert registry.get_trainer_class("faenet") is ocp_faenet.FAENetTrainer
    assert registry.get_dataset_class("lmdb") is ocp_faenet.CheckedLmdbDataset
    assert host_transforms.frame_averaging is frame_averaging
    assert host_transforms.graph_rewiring is graph_rewiring


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_hydra_form_gives_the_numbers_of_the_monolithic_model(
    mode: str | None, training: bool
) -> None:
    decoder = {"mlp": {"hidden_channels": 16, "norm": "layer"}}
    model = faenet(regress_forces=mode, force_decoder_model_config=decoder).train(training)
    hydra = hydra_like(model, regress_forces=mode, force_decoder_model_config=decoder).train(
        training
    )
    batch = batch_of(0, 1, 2)
    with torch.set_grad_enabled(training):
        expected, found = model(batch), hydra(batch)
    assert set(found) == set(expected) - {"hidden_state"}
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0)
        assert value.requires_grad == expected[key].requires_grad
    # Negative control: another pass draws other frames.
    if training:
        assert not torch.equal(hydra(batch)["energy"], expected["energy"])


@pytest.mark.parametrize("mode", MODES)
def test_stored_edges_and_edges_made_here_agree_and_the_batch_stays_as_it_was(
    mode: str | None,
) -> None:
    batch = batch_of(0, 1, 2, edges=True)
    before = copy.deepcopy(batch)
    made = faenet(regress_forces=mode, max_num_neighbors=1000)
    stored = faenet(regress_forces=mode, otf_graph=False)
    with torch.no_grad():
        expected = made(batch)
        found = stored(batch)
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)
        assert not value.requires_grad
    assert batch.keys() == before.keys()
    for key in before.keys():  # noqa: SIM118 (a batch is not a dict)
        assert torch.equal(torch.as_tensor(batch[key]), torch.as_tensor(before[key])), key
    # Negative control: fewer edges are other numbers.
    few = faenet(regress_forces=mode, max_num_neighbors=3)
    assert not torch.allclose(few(batch)["energy"], expected["energy"], rtol=1e-4)


def test_gradient_forces_under_no_grad_are_minus_the_slope_of_the_energy() -> None:
    model = faenet(regress_forces="from_energy", fa_method="all", cutoff=6.0).double()
    batch = batch_of(0)
    batch.pos, step = batch.pos.double(), 1e-4

    def energy(shift: float) -> float:
        moved = batch.clone()
        moved.pos[1, 2] += shift
        return model(moved)["energy"].item()

    with torch.no_grad():
        force = model(batch)["forces"][1, 2].item()
        slope = (energy(step) - energy(-step)) / (2 * step)
    assert force == pytest.approx(-slope, rel=1e-5)
    assert abs(force) > 1e-4


def test_single_atoms_and_graphs_without_edges() -> None:
    single = fx.slab_record(0)
    atom = single.clone()
    for key in ("pos", "atomic_numbers", "tags", "fixed", "force"):
        atom[key] = single[key][-1:]
    atom.natoms, atom.cell = 1, 20 * torch.eye(3).unsqueeze(0)
    model = faenet(regress_forces="direct")
    alone = model(data_list_collater([atom], otf_graph=True))
    beside = model(data_list_collater([single, atom], otf_graph=True))
    torch.testing.assert_close(beside["energy"][1:], alone["energy"])
    assert alone["forces"].shape == (1, 3)
    assert torch.isfinite(alone["energy"]).all()


def test_old_records_hold_atomic_numbers_as_floats() -> None:
    batch = batch_of(0, 1)
    assert batch.atomic_numbers.is_floating_point()
    model = faenet()
    expected = model(batch)["energy"]
    batch.atomic_numbers = batch.atomic_numbers.to(torch.uint8)  # what ``AtomsToGraphs`` writes
    torch.testing.assert_close(model(batch)["energy"], expected, rtol=0, atol=0)


def test_periodicity_of_a_record_is_respected() -> None:
    batch = batch_of(0)
    model = faenet()
    full = model(batch)["energy"]
    batch.pbc = torch.tensor([True, True, True])
    torch.testing.assert_close(model(batch)["energy"], full, rtol=0, atol=0)
    batch.pbc = torch.tensor([False, False, False])
    assert not torch.allclose(model(batch)["energy"], full)


class TestSeeds:
    """Randomness that a resumed run repeats."""

    CONFIG: ClassVar[dict[str, Any]] = {"dropout_lin": 0.2, "dropout_edge": 0.2}

    def test_a_pass_is_decided_by_run_seed_and_count(self) -> None:
        batch = batch_of(0, 1, 2)
        model = faenet(**self.CONFIG).train()
        saved = copy.deepcopy(model.state_dict())
        first, second = model(batch)["energy"], model(batch)["energy"]
        assert model.seeds.training_passes == 2
        assert not torch.allclose(first, second)
        torch.rand(7)  # whatever else the process draws
        model.load_state_dict(saved)
        assert torch.equal(model(batch)["energy"], first)
        torch.manual_seed(1)  # another run
        other = ocp_faenet.FAENet(**FRAMED, **self.CONFIG).train()
        other.load_state_dict(saved)
        assert not torch.allclose(other(batch)["energy"], first)

    def test_ranks_differ(self, monkeypatch: pytest.MonkeyPatch) -> None:
        batch = batch_of(0, 1, 2)
        model = faenet(**self.CONFIG).train()
        saved = copy.deepcopy(model.state_dict())
        first = model(batch)["energy"]
        model.load_state_dict(saved)
        monkeypatch.setattr(distutils, "get_rank", lambda: 1)
        assert not torch.allclose(model(batch)["energy"], first)

    def test_the_processs_own_generator_is_left_alone(self) -> None:
        model = faenet(**self.CONFIG).train()
        torch.manual_seed(3)
        expected = torch.rand(3)
        torch.manual_seed(3)
        model(batch_of(0))
        assert torch.equal(torch.rand(3), expected)

    def test_evaluation_counts_nothing(self) -> None:
        model = faenet(**self.CONFIG)
        batch = batch_of(0, 1)
        assert torch.equal(model(batch)["energy"], model(batch)["energy"])
        assert model.seeds.training_passes == 0


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"skip_co": None, "energy_head": "weighted-av-initial-embeds"},
        {"skip_co": "add", "mp_type": "simple", "regress_forces": "direct"},
        {"skip_co": "concat_atom", "mp_type": "base", "regress_forces": "from_energy"},
        {"mp_type": "updown_local_env", "complex_mp": True, "graph_norm": False},
        {"mp_type": "updownscale", "energy_head": "weighted-av-final-embeds"},
    ],
    ids=str,
)
def test_every_weight_gets_a_gradient(config: dict[str, Any]) -> None:
    """The host wraps even one rank in DDP, which refuses weights that a loss does not reach."""
    model = faenet(**config).train()
    out = model(batch_of(0, 1, 2))
    loss = out["energy"].sum() + sum(out[key].square().sum() for key in ("forces",) if key in out)
    loss.backward()
    idle = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert idle == []


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    """A process group of one, as the host makes for every local run."""
    rendezvous = (tmp_path / "rendezvous").as_uri()
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.usefixtures("one_rank")
def test_training_under_ddp_gives_the_gradients_of_the_bare_model(mode: str | None) -> None:
    bare = faenet(regress_forces=mode).train()
    wrapped = DistributedDataParallel(copy.deepcopy(bare))
    batch = batch_of(0, 1, 2)
    for model in (bare, wrapped, wrapped):  # a weight that is left out shows in the second pass
        model.zero_grad()
        out = model(batch)
        loss = out["energy"].sum()
        loss = loss if mode is None else loss + out["forces"].square().sum()
        loss.backward()
        if model is wrapped and bare.seeds.training_passes == model.module.seeds.training_passes:
            for mine, theirs in zip(bare.parameters(), model.parameters(), strict=True):
                torch.testing.assert_close(theirs.grad, mine.grad)


def test_batch_norm_free_predictions_do_not_see_batch_mates() -> None:
    model = faenet(regress_forces="direct")
    together: dict[str, Tensor] = model(batch_of(0, 1, 2))
    alone = model(batch_of(1))
    torch.testing.assert_close(together["energy"][1:2], alone["energy"])
