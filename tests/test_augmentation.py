"""Data augmentation by the loader: a turned record is one the simulation could have written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ase import Atoms
from ase.calculators.emt import EMT
from fairchem.core.common import distutils
from fairchem.core.datasets import data_list_collater
from fairchem.core.datasets.base_dataset import create_dataset
from fairchem.core.trainers import OCPTrainer
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.data import Data

import ocp_faenet
import plugin_fixtures as fx
from ocp_faenet.adapters.frames import FRAMES, frame_averaging

pytestmark = pytest.mark.usefixtures("no_garbage")  # they fork

ocp_faenet.FAENet  # noqa: B018 (registers the transform with the host)
DA = {"frame_averaging": "DA", "augmentation": "3D"}
TURNED = ["pos", "pos_relaxed", "cell", "force", "edge_distance_vec", "dipole", "stress"]


def record(seed: int = 1) -> Data:
    """A record with everything that points somewhere, each computed from the atoms."""
    data = fx.slab_record(seed, edges=True)
    data.pos_relaxed = data.pos + 0.1 * data.force
    data.edge_distance_vec = edge_vectors(data)
    data.dipole = dipole(data)
    data.stress = stress(data)
    return data


def edge_vectors(data: Data) -> Tensor:
    source, target = data.edge_index
    return data.pos[source] - data.pos[target] + data.cell_offsets.float() @ data.cell[0]


def dipole(data: Data) -> Tensor:
    """A vector of the structure: species as charges, about the first atom."""
    return data.atomic_numbers @ (data.pos - data.pos[0])


def stress(data: Data) -> Tensor:
    """A tensor of the structure."""
    return torch.einsum("ni,nj->ij", data.force, data.pos_relaxed - data.pos[0])


def contradictions(data: Data) -> list[str]:
    """Keys of a record that do not fit the rest of it."""
    numbers = data.atomic_numbers.int().tolist()
    atoms = Atoms(numbers, data.pos.double().numpy(), cell=data.cell[0].double().numpy(), pbc=True)
    atoms.calc = EMT()
    force = torch.tensor(atoms.get_forces(), dtype=torch.float32)
    expected = {
        "force": force,
        "pos_relaxed": data.pos + 0.1 * force,
        "edge_distance_vec": edge_vectors(data),
        "dipole": dipole(data),
        "stress": stress(data),
    }
    wrong = [key for key, value in expected.items() if not close(data[key], value)]
    return wrong + (["energy"] if abs(atoms.get_potential_energy() - data.y) > 1e-3 else [])


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=2e-3)


def rotation_of(data: Data, original: Data) -> Tensor:
    """The matrix that took the cell of ``original`` to that of ``data``."""
    return torch.linalg.solve(original.cell[0].double(), data.cell[0].double())


@pytest.mark.parametrize("augmentation", ["2D", "3D"])
def test_a_turned_record_agrees_with_emt(augmentation: str) -> None:
    original = record()
    before = original.clone()
    assert contradictions(original) == []
    data = frame_averaging(original, {**DA, "augmentation": augmentation})
    assert contradictions(data) == []
    assert all(torch.equal(original[key], before[key]) for key in TURNED)
    assert [key for key in TURNED if close(data[key], original[key])] == []
    for key in ("edge_index", "cell_offsets", "tags", "fixed", "atomic_numbers"):
        assert torch.equal(data[key], original[key])
    rotation = rotation_of(data, original)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3).double(), rtol=1e-5, atol=1e-5)
    assert float(torch.linalg.det(rotation)) == pytest.approx(1.0, abs=1e-4)
    keeps_z = torch.allclose(rotation[2], torch.tensor([0.0, 0, 1]).double(), atol=1e-5)
    assert keeps_z == (augmentation == "2D")


@pytest.mark.parametrize("key", TURNED)
def test_a_key_left_behind_is_noticed(key: str) -> None:
    """The negative control: the check above fails if one of them does not turn."""
    original = record()
    data = frame_averaging(original, DA)
    data[key] = original[key]
    assert contradictions(data) != []


def test_rotations_in_space_are_uniform() -> None:
    """Each image of an axis is uniform on the sphere: mean 0, mean square 1/3."""
    torch.manual_seed(0)
    original = Data(pos=torch.eye(3), cell=torch.eye(3).unsqueeze(0))
    draws = torch.stack([frame_averaging(original, DA).pos for _ in range(600)])
    assert float(draws.mean(0).abs().max()) < 0.1
    torch.testing.assert_close(draws.square().mean(0), torch.full((3, 3), 1 / 3), atol=0.06, rtol=0)


def test_the_same_seed_turns_alike_and_other_ranks_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = record()

    def draws(seed: int, rank: int) -> Tensor:
        monkeypatch.setattr(distutils, "get_rank", lambda: rank)
        torch.manual_seed(seed)
        return torch.stack([frame_averaging(original, DA).pos for _ in range(3)])

    first = draws(0, 0)
    assert torch.equal(first, draws(0, 0))
    everything = torch.cat([first, draws(1, 0), draws(0, 1), draws(0, 2)])
    assert len(everything.flatten(1).unique(dim=0)) == 12


def dataset(path: Path, transforms: dict[str, Any]) -> Any:
    if not path.exists():
        fx.write_lmdb(path, [record()] * 4)
    return create_dataset({"src": str(path), "transforms": transforms, "no_shuffle": True}, "train")


@pytest.mark.parametrize("workers", [0, 2])
def test_every_worker_and_epoch_draws_its_own(tmp_path: Path, workers: int) -> None:
    """One structure four times: eight draws in two epochs, all different, alike again by seed."""
    data = dataset(tmp_path / "data.lmdb", {"frame_averaging": DA})

    def epochs(count: int) -> Tensor:
        torch.manual_seed(0)
        loader = DataLoader(data, batch_size=1, num_workers=workers, collate_fn=data_list_collater)
        return torch.stack([batch.pos for _ in range(count) for batch in loader])

    seen = epochs(2)
    assert len(seen.flatten(1).unique(dim=0)) == 8
    assert torch.equal(seen[:4], epochs(1))
    with torch.no_grad():
        assert len(epochs(1).flatten(1).unique(dim=0)) == 1


def trainer_on(folder: Path, transforms: dict[str, Any], model: dict[str, Any]) -> Any:
    """The stock trainer; validation names no transforms, so it is given those of training."""
    config = fx.run_config(folder, model)
    config["dataset"]["train"]["transforms"] |= transforms
    del config["dataset"]["test"]
    config["optim"]["num_workers"] = 2
    keys = ("outputs", "dataset", "evaluation_metrics", "model", "loss_functions")
    return OCPTrainer(
        **{key: config[key] for key in keys}, optimizer=config["optim"], task={}, identifier="",
        local_rank=0, logger="tensorboard", cpu=True, seed=0, run_dir=str(folder), is_debug=True,
    )  # fmt: skip


@pytest.mark.parametrize("host_model", [False, True], ids=["faenet", "schnet"])
def test_the_stock_trainer_turns_training_and_leaves_validation(
    tmp_path: Path, host_model: bool
) -> None:
    """Under the stock trainer, from its configuration, with workers (trap 5 of the host)."""
    fx.write_splits(tmp_path, train=4, test=2)
    model: dict[str, Any] = {
        "name": "ocp_faenet.FAENet", **fx.TINY, "regress_forces": "direct", "otf_graph": True,
    }  # fmt: skip
    if host_model:
        model = {
            "name": "fairchem.core.models.schnet.SchNetWrap", "hidden_channels": 16,
            "num_filters": 16, "num_interactions": 1, "num_gaussians": 8, "cutoff": 4.0,
            "otf_graph": True,
        }  # fmt: skip
    plain = trainer_on(tmp_path, {}, model)
    turning = trainer_on(tmp_path, {"frame_averaging": DA}, model)
    stored = {int(r.sid): r for r in (fx.slab_record(seed) for seed in (0, 1, 2, 3, 90, 91))}

    def moved(loader: Any) -> list[bool]:
        """Which structures differ from what is on the disk, in positions and in forces."""
        return [
            not torch.equal(graph[key], stored[int(graph.sid)][on_disk])
            for batch in loader
            for graph in batch.to_data_list()
            for key, on_disk in (("pos", "pos"), ("forces", "force"))
        ]

    assert moved(plain.train_loader) == [False] * 8
    assert moved(turning.train_loader) == [True] * 8
    with torch.no_grad():
        assert moved(turning.val_loader) == [False] * 4
    turning.model.load_state_dict(plain.model.state_dict())
    wanted = {key: value["metric"] for key, value in plain.validate("val").items()}
    assert {key: value["metric"] for key, value in turning.validate("val").items()} == wanted
    before = [parameter.clone() for parameter in turning.model.parameters()]
    turning.train(disable_eval_tqdm=True)
    after = list(turning.model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        ({}, {"arrow": torch.zeros(9, 3)}, r"is 'arrow' of shape \(9, 3\) a vector"),
        ({"vectors": ["tags"]}, {}, "'tags' of shape .* holds no vectors"),
        ({"vectors": "dipole"}, {}, "give a list of keys"),
        ({"fa_method": "det"}, {}, "fa_method"),
        ({"cutoff": 4.0}, {}, "cutoff with DA, which has no frames"),
        ({"augmentation": "4D"}, {}, "augmentation: '4D'"),
        ({}, {FRAMES: torch.eye(3).view(1, 1, 3, 3)}, "under its frames"),
        ({"frame_averaging": "2D", "vectors": ["dipole"]}, {}, "only DA turns the record"),
    ],
)
def test_bad_configuration(config: dict[str, Any], change: dict[str, Any], message: str) -> None:
    data = record()
    for key, value in change.items():
        data[key] = value
    with pytest.raises(ValueError, match=message):
        frame_averaging(data, {**DA, **config})


def test_named_vectors_turn() -> None:
    data = record()
    data.arrow = data.pos.clone()
    turned = frame_averaging(data, {**DA, "vectors": ["arrow"]})
    assert torch.equal(turned.arrow, turned.pos)
    assert not close(turned.pos, data.pos)
