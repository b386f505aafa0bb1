"""Bad input ends in one clear error that names it and the remedy (issue 2, 13)."""

from __future__ import annotations

import logging
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fairchem.core.datasets import data_list_collater
from fairchem.core.datasets.base_dataset import create_dataset
from torch_geometric.data import Batch, Data

import ocp_faenet
import plugin_fixtures as fx
from ocp_faenet.adapters.datasets import check_lmdb
from ocp_faenet.adapters.preflight import check_run_config
from ocp_faenet.adapters.schema import validate_config

MODEL = {**fx.TINY, "frame_averaging": "2D", "fa_method": "det"}


class TestConfiguration:
    """Unknown and contradictory keys, wrong types."""

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"hiden_channels": 8}, "unknown key 'hiden_channels' (value 8); the nearest known "
             "key is 'hidden_channels'"),
            ({"frame_averging": "2D"}, "nearest known key is 'frame_averaging'"),
            ({"mp_type": "updown"}, "mp_type: 'updown'; input should be 'base', 'simple', "
             "'updownscale', 'updownscale_base' or 'updown_local_env'"),
            ({"skip_co": "cat"}, "skip_co: 'cat'; input should be 'add', 'concat' or "
             "'concat_atom' or null"),
            ({"skip_co": 0}, "skip_co: 0; "),
            ({"regress_forces": True}, "regress_forces: True; input should be 'direct'"),
            ({"graph_norm": "yes"}, "graph_norm: 'yes'; input should be a valid boolean"),
            ({"graph_norm": 1}, "graph_norm: 1; "),
            ({"graph_norm": None}, "graph_norm: None; "),
            ({"hidden_channels": "384"}, "hidden_channels: '384'; input should be a valid int"),
            ({"hidden_channels": 384.0}, "hidden_channels: 384.0; "),
            ({"hidden_channels": True}, "hidden_channels: True; "),
            ({"num_interactions": 0}, "num_interactions: 0 is not positive"),
            ({"cutoff": math.nan}, "cutoff: nan"),
            ({"cutoff": "6"}, "cutoff: '6'; input should be a valid number"),
            ({"dropout_lin": 1.5}, "dropout_lin: 1.5 is not in [0, 1)"),
            ({"act": "swich"}, "act: unknown activation 'swich'"),
            ({"cutoff": object()}, "not JSON serializable; use plain YAML values"),
            ({"hidden_channels": 32, "tag_hidden_channels": 32}, "hidden_channels: 32 leaves "
             "nothing for the species embedding"),
            ({"fa_method": "det"}, "fa_method: 'det' needs frame_averaging 2D or 3D"),
            ({"phys_embeds": False, "phys_hidden_channels": 8}, "without phys_embeds"),
            ({"out_dim": 2, "regress_forces": "from_energy"}, "forces from_energy need one"),
            ({"dropout_lowest_layer": "inter-9"}, "dropout_lowest_layer: 'inter-9'"),
            ({"force_decoder_model_config": {"mlpp": {}}}, "force_decoder_model_config.mlpp: "),
            ({"force_decoder_model_config": {"mlp": {"hidden_chanels": 8}}}, "nearest known key "
             "is 'force_decoder_model_config.mlp.hidden_channels'"),
            ({"force_decoder_model_config": {"mlp": {"norm": "batch"}}},
             "force_decoder_model_config.mlp.norm: 'batch'; input should be 'batch1d' or 'layer'"),
            ({"force_decoder_model_config": {"res": {"norm": None}}}, "no entry for 'mlp'"),
        ],
    )  # fmt: skip
    def test_refused(self, config: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            ocp_faenet.FAENet(**config)
        assert "\n" not in str(caught.value)

    def test_several_errors_in_one_line(self) -> None:
        with pytest.raises(ValueError, match=r"cutoff: 'six'.*; graph_norm: 'no'"):
            validate_config({"cutoff": "six", "graph_norm": "no"})

    @pytest.mark.parametrize("absent", [False, "", "none", "None", None])
    def test_published_spellings_of_absence(self, absent: Any) -> None:
        keys = ("skip_co", "energy_head", "regress_forces", "frame_averaging", "fa_method")
        config = validate_config(dict.fromkeys(keys, absent))
        assert [getattr(config, key) for key in keys] == [None] * 5

    def test_published_spellings(self) -> None:
        config = validate_config(
            {
                "cutoff": 6,
                "frame_averaging": "3D",
                "fa_method": "se3-random",
                "force_decoder_model_config": {
                    "mlp": {"hidden_channels": 256, "norm": "batch1d"},
                    "simple": {"hidden_channels": 128},
                    "res": {"hidden_channels": 128, "norm": ""},
                },
            }
        )
        assert config.fa_method == "se3-stochastic"
        assert isinstance(config.cutoff, float)
        decoders = config.force_decoder_model_config
        assert [size.norm for size in decoders.values()] == ["batch1d", "batch1d", None]

    def test_heads_of_the_hydra_form(self) -> None:
        backbone = ocp_faenet.FAENetBackbone(**MODEL)
        with pytest.raises(ValueError, match="unknown key 'energy_heads'"):
            ocp_faenet.FAENetEnergyHead(backbone, energy_heads=None)
        with pytest.raises(ValueError, match="backbone is a Linear"):
            ocp_faenet.FAENetEnergyHead(torch.nn.Linear(1, 1))
        gradient = ocp_faenet.FAENetBackbone(**MODEL, regress_forces="from_energy")
        with pytest.raises(ValueError, match="'from_energy' takes forces from the energy head"):
            ocp_faenet.FAENetForceHead(gradient)


def drop(*keys: str) -> Callable[[Data], None]:
    """A fault: the keys are missing."""

    def apply(record: Data) -> None:
        for key in keys:
            del record[key]

    return apply


def put(key: str, index: Any, value: float) -> Callable[[Data], None]:
    """A fault: one entry has another value."""

    def apply(record: Data) -> None:
        record[key][index] = value

    return apply


def recount(record: Data) -> None:
    """A fault: ``natoms`` is off by one."""
    record.natoms += 1


FAULTS = [
    ({}, drop("tags"), "no 'tags' in the batch (sid 1000, sid 1001); add tags .*_channels: 0"),
    ({}, drop("cell"), "no 'cell' in the batch (sid 1000, sid 1001); .* use_pbc: false"),
    ({}, drop("edge_index", "cell_offsets"), "no 'edge_index' .*sid 1000, .*otf_graph: true"),
    ({}, drop("cell_offsets"), "no 'cell_offsets' .*sid 1000, .*otf_graph: true"),
    ({}, drop("pos"), "no 'pos'"),
    ({}, drop("natoms"), "no 'natoms'"),
    ({}, drop("atomic_numbers"), "no 'atomic_numbers'"),
    ({}, put("pos", (1, 2), math.nan), "positions are not finite: sid 1000, sid 1001; repair"),
    ({}, put("pos", (1, 2), math.inf), "positions are not finite"),
    ({"otf_graph": True}, put("pos", (1, 2), math.nan), "positions are not finite: sid 1000"),
    ({}, put("cell", (0, 0, 0), math.nan), "cell is not finite: sid 1000, sid 1001"),
    ({}, put("atomic_numbers", 0, 0), "atomic number 0 is not in 1 to 118: sid 1000"),
    ({}, put("atomic_numbers", 0, 119), "atomic number 119 is not in 1 to 118: sid 1000"),
    ({}, put("atomic_numbers", 0, 6.5), "atomic number 6.5 is not in 1 to 118: sid 1000"),
    ({}, put("atomic_numbers", 0, math.nan), "atomic number nan is not in 1 to 118"),
    ({}, put("tags", 0, 3), "tags: 3 of atom 0"),
    ({}, put("edge_index", (0, 0), 99), "edge_index: "),
    ({}, recount, "natoms is not the number of positions: sid 1000, sid 1001"),
]


def literal(message: str) -> str:
    """A pattern in which ``.*`` alone is special."""
    return re.escape(message).replace(r"\.\*", ".*")


class TestRecords:
    """Records that the model cannot use, in a batch as the trainer collates it."""

    def batch(self, fault: Callable[[Data], None], *, otf_graph: bool = False) -> Batch:
        """Two records with the same fault."""
        records = [fx.slab_record(seed, edges=True) for seed in (0, 1)]
        for record in records:
            fault(record)
        return data_list_collater(records, otf_graph=otf_graph)

    @pytest.mark.parametrize(("config", "fault", "message"), FAULTS)
    def test_refused(
        self, config: dict[str, Any], fault: Callable[[Data], None], message: str
    ) -> None:
        model = ocp_faenet.FAENet(**MODEL, **config)
        sound = self.batch(lambda record: None)
        assert torch.isfinite(model(sound)["energy"]).all()
        with pytest.raises(ValueError, match=literal(message)):
            model(self.batch(fault))

    @pytest.mark.parametrize(
        ("config", "missing"),
        [
            ({"tag_hidden_channels": 0}, ("tags",)),
            ({"otf_graph": True}, ("edge_index", "cell_offsets")),
            ({"use_pbc": False, "otf_graph": True}, ("cell", "edge_index", "cell_offsets")),
        ],
    )
    def test_the_remedies_work(self, config: dict[str, Any], missing: tuple[str, ...]) -> None:
        """What the messages of `FAULTS` advise: the same records give energies."""
        batch = self.batch(drop(*missing), otf_graph="edge_index" in missing)
        energy = ocp_faenet.FAENet(**{**MODEL, **config})(batch)["energy"]
        assert energy.shape == (2, 1)
        assert torch.isfinite(energy).all()
        assert energy[0] != energy[1]

    def test_tags_that_were_never_set_are_told(self, caplog: pytest.LogCaptureFixture) -> None:
        from ocp_faenet.adapters import unpack

        unpack._warn_untagged.cache_clear()
        caplog.set_level("WARNING")  # verbs of other tests quieten the host
        caplog.set_level(logging.WARNING)
        batch = self.batch(lambda record: record.tags.zero_())
        ocp_faenet.FAENet(**MODEL)(batch)
        assert "Every tag of a batch is 0" in caplog.text

    def test_tags_that_ase_sets_are_told(self, caplog: pytest.LogCaptureFixture) -> None:
        from ocp_faenet.adapters import unpack

        caplog.set_level(logging.WARNING)
        right = fx.slab_record(1)
        as_ase = right.clone()
        as_ase.tags = torch.tensor([2, 1, 0])[right.tags]  # layers from the top
        for record, told in ((right, False), (as_ase, True)):
            unpack._warn_tagged_as_ase.cache_clear()
            model = ocp_faenet.FAENet(**MODEL, otf_graph=True)
            model(data_list_collater([record], otf_graph=True))
            assert ("as with ASE's tags" in caplog.text) == told


class TestFiles:
    """LMDBs that cannot be read, through the host's own ``create_dataset``."""

    @pytest.fixture
    def good(self, tmp_path: Path) -> Path:
        """Six records."""
        return fx.write_lmdb(tmp_path / "data.lmdb", [fx.slab_record(i) for i in range(6)])

    def load(self, path: Path) -> Any:
        """The dataset as the stock trainer builds it, once a model of ours has been named."""
        assert ocp_faenet.FAENet
        return create_dataset({"src": str(path), "format": "lmdb"}, "train")

    def test_a_good_file_is_read(self, good: Path) -> None:
        assert len(self.load(good)) == check_lmdb(good) == check_lmdb(good.parent) == 6

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="nowhere: no such file or folder; set the split's"):
            self.load(tmp_path / "nowhere")
        with pytest.raises(ValueError, match=r"no \*\.lmdb in this folder"):
            self.load(tmp_path)

    @pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.7, 0.99])
    def test_truncated(self, good: Path, share: float) -> None:
        whole = good.read_bytes()
        good.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ValueError, match=r"data\.lmdb: (truncated, \d+ bytes of|not a read)"):
            self.load(good)

    def test_not_an_lmdb(self, tmp_path: Path) -> None:
        path = tmp_path / "data.lmdb"
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 400)
        with pytest.raises(ValueError, match=r"data\.lmdb: not a readable LMDB"):
            self.load(path)

    def test_empty(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="the LMDB holds no records"):
            self.load(fx.write_lmdb(tmp_path / "a.lmdb", []))
        with pytest.raises(ValueError, match="the LMDB holds no records"):
            self.load(fx.write_lmdb(tmp_path / "b.lmdb", [], length=0))

    def test_not_written_to_its_end(self, tmp_path: Path) -> None:
        path = fx.write_lmdb(tmp_path / "data.lmdb", [fx.slab_record(0)], length=5)
        with pytest.raises(ValueError, match="'length' says 5 records, 1 are there"):
            self.load(path)

    def test_a_record_that_cannot_be_unpickled(self, tmp_path: Path) -> None:
        broken = pickle.dumps(fx.slab_record(1), protocol=-1)[:200]
        path = fx.write_lmdb(tmp_path / "data.lmdb", [fx.slab_record(0), broken])
        (tmp_path / "metadata.npz").unlink()
        dataset = self.load(path)
        with pytest.raises(ValueError, match=r"data\.lmdb: record at index 1 cannot be read"):
            list(dataset)

    @pytest.mark.parametrize("key", ["tags", "cell", "fixed"])
    def test_one_record_without_a_key(self, tmp_path: Path, key: str) -> None:
        records = [fx.slab_record(i) for i in range(3)]
        del records[2][key]
        dataset = self.load(fx.write_lmdb(tmp_path / "data.lmdb", records))
        message = rf"record sid=1002 \(index 2\) has no {key}, unlike the first record"
        with pytest.raises(ValueError, match=message):
            list(dataset)

    def test_one_record_with_a_key_too_many(self, tmp_path: Path) -> None:
        records = [fx.slab_record(0), fx.slab_record(1, edges=True)]
        dataset = self.load(fx.write_lmdb(tmp_path / "data.lmdb", records))
        with pytest.raises(ValueError, match="has cell_offsets, edge_index, unlike the first"):
            list(dataset)


class TestPreflight:
    """`check_run_config` on the configuration that the host would get."""

    def config(self, folder: Path) -> dict[str, Any]:
        """A sound run."""
        fx.write_splits(folder, train=2, test=1)
        model = {"name": "ocp_faenet.FAENet", **MODEL, "regress_forces": "direct"}
        return {**fx.run_config(folder, model), "mode": "train"}

    def test_a_sound_run_passes(self, tmp_path: Path) -> None:
        check_run_config(self.config(tmp_path))

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            ("model", None, "no 'model' section"),
            ("model.cutof", 6, "nearest known key is 'cutoff'"),
            ("model.regress_forces", "", "outputs.forces: the model predicts none"),
            ("loss_functions", [{"energy": {"fn": "mae"}}], "energy: no 'coefficient'"),
            ("loss_functions", [{"stress": {"fn": "mae", "coefficient": 1}}], "not among the"),
            ("loss_functions", [{"energy": {"fn": "mae", "coefficient": 1}}], "no loss trains"),
            ("dataset.train.src", "nowhere.lmdb", "dataset.train.src: nowhere.lmdb: no such"),
            ("dataset.val.src", None, "dataset.val.src: None; must be the path"),
            ("dataset.test.src", "", "dataset.test.src: ''; must be the path"),
        ],
    )
    def test_refused(self, tmp_path: Path, path: str, value: Any, message: str) -> None:
        config = self.config(tmp_path)
        *parents, last = path.split(".")
        section = config
        for key in parents:
            section = section[key]
        section[last] = value
        with pytest.raises(ValueError, match=re.escape(message)):
            check_run_config(config)

    def test_hydra_backbones_are_checked(self, tmp_path: Path) -> None:
        backbone = {"model": "faenet_backbone", **MODEL, "cutof": 6}
        config = {**self.config(tmp_path), "model": {"name": "hydra", "backbone": backbone}}
        with pytest.raises(ValueError, match="nearest known key is 'cutoff'"):
            check_run_config(config)


@pytest.mark.slow
def test_a_truncated_split_ends_a_stock_run_with_one_clear_line(tmp_path: Path) -> None:
    fx.write_splits(tmp_path, train=3, test=2)
    path = tmp_path / "test" / "data.lmdb"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    model = {"name": "ocp_faenet.FAENet", **MODEL, "otf_graph": True, "regress_forces": "direct"}
    run = fx.fairchem(fx.run_config(tmp_path, model), tmp_path, "truncated")
    assert run.returncode == 1  # and not -7, the bus error of the stock loader
    last = run.stderr.strip().splitlines()[-1]
    assert re.search(r"ValueError: .*test/data\.lmdb: truncated, \d+ bytes of \d+; fetch", last)
