"""The thin layer between the host and the core, in one process."""

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
from fairchem.core.datasets.base_dataset import create_dataset
from fairchem.core.models.base import HydraModel
from fairchem.core.modules import transforms as host_transforms
from fairchem.core.trainers import base_trainer
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch_geometric.data import Batch

import ocp_faenet
import plugin_fixtures as fx
from ocp_faenet.adapters.frames import FRAMES, frame_averaging
from ocp_faenet.adapters.rewiring import graph_rewiring

FRAMED = {**fx.TINY, "frame_averaging": "2D", "fa_method": "stochastic", "otf_graph": True}
MODES = [None, "direct", "from_energy", "direct_with_gradient_target"]


def batch_of(*seeds: int, edges: bool = False) -> Batch:
    """Records collated as the trainer does."""
    records = [fx.slab_record(seed, edges=edges) for seed in seeds]
    return data_list_collater(records, otf_graph=not edges)


def faenet(**config: Any) -> Any:
    """A seeded model in evaluation mode."""
    torch.manual_seed(0)
    return ocp_faenet.FAENet(**{**FRAMED, **config}).eval()


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


def hydra_like(model: Any, **config: Any) -> HydraModel:
    """The hydra form with the weights of the monolithic ``model``."""
    heads = {"energy": {"module": "ocp_faenet.FAENetEnergyHead"}}
    if model.core.force_head is not None:
        heads["forces"] = {"module": "ocp_faenet.FAENetForceHead"}
    backbone = {"model": "ocp_faenet.FAENetBackbone", **FRAMED, **config}
    hydra = HydraModel(backbone=backbone, heads=heads, pass_through_head_outputs=True)
    names = {
        "core.backbone.": "backbone.core.",
        "core.energy_head.": "output_heads.energy.head.",
        "core.force_head.": "output_heads.forces.head.",
        "seeds.": "backbone.seeds.",
    }
    state = {}
    for key, value in model.state_dict().items():
        old = next(prefix for prefix in names if key.startswith(prefix))
        state[names[old] + key.removeprefix(old)] = value
    hydra.load_state_dict(state, strict=True)
    return hydra


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


@pytest.fixture
def lmdb_path(tmp_path: Path) -> Path:
    """Three records without edges."""
    return fx.write_lmdb(tmp_path / "data.lmdb", [fx.slab_record(seed) for seed in range(3)])


class TestFrameAveragingTransform:
    """``frame_averaging`` from a dataset configuration, under the stock loader."""

    def load(self, path: Path, **config: Any) -> Batch:
        """All records of the dataset, collated."""
        graph = {"otf_graph": True, "cutoff": fx.CUTOFF}
        source = {"src": str(path), "transforms": {"frame_averaging": {**graph, **config}}}
        dataset = create_dataset(source, "train")
        return data_list_collater([dataset[i] for i in range(3)], otf_graph=True)

    def test_training_uses_the_loaders_frames_and_evaluation_its_own(self, lmdb_path: Path) -> None:
        batch = self.load(lmdb_path, frame_averaging="2D", fa_method="all")
        assert batch[FRAMES].shape == (3, 4, 3, 3)
        model = faenet(fa_method="stochastic")
        everything = faenet(fa_method="all")
        expected = everything(batch)["energy"]
        torch.testing.assert_close(model.train()(batch)["energy"], expected)
        assert not torch.allclose(model.eval()(batch)["energy"], expected)
        moved = batch.clone()  # a relaxation moves atoms; stored frames would be stale
        moved.pos = moved.pos @ torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
        moved.cell = moved.cell @ torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
        torch.testing.assert_close(everything(moved)["energy"], expected, rtol=1e-4, atol=1e-5)

    def test_stochastic_frames_are_drawn_anew(self, lmdb_path: Path) -> None:
        config = {"frame_averaging": "3D", "fa_method": "stochastic"}
        draws = torch.stack([self.load(lmdb_path, **config)[FRAMES] for _ in range(8)])
        assert draws.shape == (8, 3, 1, 3, 3)
        assert len(draws.flatten(1).unique(dim=0)) > 1

    @pytest.mark.parametrize("config", ["2D", {"frame": "2D"}, {"frame_averaging": "4D"}])
    def test_bad_configuration(self, config: Any) -> None:
        with pytest.raises(ValueError, match="frame_averaging"):
            frame_averaging(fx.slab_record(0), config)

    def test_a_model_without_frames_is_a_contradiction(self, lmdb_path: Path) -> None:
        batch = self.load(lmdb_path, frame_averaging="2D", fa_method="det")
        model = ocp_faenet.FAENet(**fx.TINY, otf_graph=True).train()
        with pytest.raises(ValueError, match="frame_averaging is null"):
            model(batch)


class TestTagZeroRemoval:
    """``graph_rewiring: remove-tag-0``."""

    def test_atoms_edges_and_counts(self) -> None:
        data = fx.slab_record(1, edges=True)
        data.pos_relaxed = data.pos + 0.1
        before = data.clone()
        out = graph_rewiring(data, "remove-tag-0")
        keep = [i for i in range(data.natoms) if data.tags[i] > 0]
        assert 0 < len(keep) < data.natoms
        assert out.natoms == out.num_nodes == len(keep)
        for key in ("pos", "pos_relaxed", "force", "fixed", "tags", "atomic_numbers"):
            assert torch.equal(out[key], before[key][keep]), key
            assert torch.equal(data[key], before[key]), key
        assert edge_list(out, list(range(len(keep)))) == [
            edge for edge in edge_list(data, keep) if None not in edge
        ]
        assert torch.equal(out.cell, data.cell)
        assert out.y == data.y

    def test_a_graph_left_without_edges_keeps_its_place(self) -> None:
        full = fx.slab_record(1, edges=True)
        bare = fx.slab_record(0, edges=True)
        lonely = (bare.tags[bare.edge_index] == 0).any(0)
        bare.edge_index, bare.cell_offsets = bare.edge_index[:, lonely], bare.cell_offsets[lonely]
        records = [graph_rewiring(record, "remove-tag-0") for record in (full, bare, full)]
        assert records[1].edge_index.shape == (2, 0)
        batch = data_list_collater(records, otf_graph=False)
        edges = records[0].edge_index.shape[1]
        assert batch.neighbors.tolist() == [edges, 0, edges]
        energy = faenet(otf_graph=False, fa_method="all")(batch)["energy"]
        torch.testing.assert_close(energy[0], energy[2])

    @pytest.mark.parametrize("config", [None, False, ""])
    def test_absent(self, config: Any) -> None:
        data = fx.slab_record(0)
        assert graph_rewiring(data, config) is data

    def test_errors(self) -> None:
        data = fx.slab_record(0)
        with pytest.raises(ValueError, match="'remove-tag0' is not known"):
            graph_rewiring(data, "remove-tag0")
        untagged = data.clone()
        untagged.tags = torch.zeros_like(data.tags)
        with pytest.raises(ValueError, match="sid=1000: every tag is 0"):
            graph_rewiring(untagged, "remove-tag-0")
        del untagged.tags
        with pytest.raises(ValueError, match="sid=1000 has no 'tags'"):
            graph_rewiring(untagged, "remove-tag-0")
        with pytest.raises(ValueError, match=r"no 'edge_index' in the batch \(sid 1000\)"):
            frame_averaging(data, {"frame_averaging": "2D", "fa_method": "det"})
        published = {"frame_averaging": "2D", "fa_method": "det", "frame_source": "positions"}
        framed = frame_averaging(data, published)
        with pytest.raises(ValueError, match="before frame_averaging"):
            graph_rewiring(framed, "remove-tag-0")


def edge_list(data: Any, keep: list[int]) -> list[tuple[Any, ...]]:
    """Edges with their images, ends renumbered by their place in ``keep``, ``None`` if gone."""
    number = {atom: place for place, atom in enumerate(keep)}
    ends = [[number.get(atom) for atom in row] for row in data.edge_index.tolist()]
    return list(zip(*ends, map(tuple, data.cell_offsets.tolist()), strict=True))


class TestTrainer:
    """What `FAENetTrainer` adds, on an instance built as the host builds it."""

    def build(self, folder: Path, **sections: Any) -> Any:
        """A trainer on a small data set."""
        if not (folder / "train").exists():
            fx.write_splits(folder, train=3, test=2)
        model = sections.pop("model", {"name": "ocp_faenet.FAENet", **FRAMED})
        config = fx.run_config(folder, model, **sections)
        config["outputs"].pop("forces")
        keys = ("outputs", "dataset", "evaluation_metrics", "model")
        return ocp_faenet.FAENetTrainer(
            **{key: config[key] for key in keys}, optimizer=config["optim"], task={},
            loss_functions=config["loss_functions"][:1], identifier="", local_rank=0,
            logger="tensorboard", cpu=True, seed=0, run_dir=str(folder),
        )  # fmt: skip

    def test_a_checkpoint_survives_the_death_of_its_successor(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trainer = self.build(tmp_path)
        path = Path(trainer.save())
        assert path.name == "checkpoint.pt"
        good = path.read_bytes()

        def killed(state: Any, checkpoint_dir: str, checkpoint_file: str) -> str:
            (Path(checkpoint_dir) / checkpoint_file).write_bytes(good[:100])
            raise KeyboardInterrupt

        monkeypatch.setattr(base_trainer, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            trainer.save()
        assert path.read_bytes() == good

    def test_a_checkpoint_names_its_model_so_that_any_process_finds_it(
        self, tmp_path: Path
    ) -> None:
        heads = {"energy": {"module": "faenet_energy_head"}}
        hydra = {"backbone": {"model": "faenet_backbone", **FRAMED}, "heads": heads}
        for model, expected in (
            ({"name": "faenet", **FRAMED}, {"ocp_faenet.FAENet"}),
            (
                {"name": "hydra", **hydra, "pass_through_head_outputs": True},
                {"hydra", "ocp_faenet.FAENetBackbone", "ocp_faenet.FAENetEnergyHead"},
            ),
        ):
            trainer = self.build(tmp_path, model=model)
            saved = torch.load(trainer.save(), weights_only=False)["config"]["model"]
            backbone = saved.get("backbone", {}).get("model")
            head = saved.get("heads", {}).get("energy", {}).get("module")
            assert {saved["name"], backbone, head} - {None} == expected
            assert saved.get("cutoff", fx.CUTOFF) == fx.CUTOFF

    def test_run_ids_are_unique(self) -> None:
        cpu = torch.device("cpu")
        ids = {ocp_faenet.FAENetTrainer._get_timestamp(cpu, "study") for _ in range(20)}
        assert len(ids) == 20
        assert all(name.endswith("-study") for name in ids)

    def test_a_split_of_which_nothing_is_left(self, tmp_path: Path) -> None:
        fx.write_splits(tmp_path, train=3, test=2)
        dataset = fx.run_config(tmp_path, {})["dataset"]
        dataset["val"]["max_atoms"] = 1
        with pytest.raises(ValueError, match=r"dataset\.val: no record is left"):
            self.build(tmp_path, dataset=dataset)


def test_batch_norm_free_predictions_do_not_see_batch_mates() -> None:
    model = faenet(regress_forces="direct")
    together: dict[str, Tensor] = model(batch_of(0, 1, 2))
    alone = model(batch_of(1))
    torch.testing.assert_close(together["energy"][1:2], alone["energy"])


def test_loader_refuses_frames_that_are_learned() -> None:
    """The network that chooses them lives in the model."""
    with pytest.raises(ValueError, match=r"fa_method 'learned' is learned in the model"):
        frame_averaging(fx.slab_record(0), {"frame_averaging": "2D", "fa_method": "learned"})
