"""``ocp-faenet symmetry``: the promises of trained models, measured through the host."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports
from fairchem.core.datasets import data_list_collater

from ocp_faenet.adapters.host_model import batches, open_model, open_records, to_batch
from ocp_faenet.adapters.measurements import MEASUREMENTS
from ocp_faenet.adapters.runs import RunSpec
from ocp_faenet.adapters.symmetry import validation_errors
from ocp_faenet.cli import main
from plugin_fixtures import TINY, slab_record, write_lmdb

MODEL = {
    **TINY,
    "name": "ocp_faenet.FAENet",
    "regress_forces": "direct",
    "energy_head": "weighted-av-final-embeds",
    "force_decoder_type": "simple",
    "use_pbc": True,
}


def write_checkpoint(path, model):
    """A checkpoint of the host with random weights and a normalizer."""
    setup_imports()
    torch.manual_seed(0)
    config = {k: v for k, v in model.items() if k != "name"}
    network = registry.get_model_class(model["name"])(**config)
    forces = {"irrep_dim": 1, "level": "atom"}
    scale = {"mean": torch.tensor(0.0), "rmsd": torch.tensor(1.0)}
    torch.save(
        {
            "state_dict": network.state_dict(),
            "normalizers": {"energy": {**scale, "rmsd": torch.tensor(10.0)}, "forces": scale},
            "elementrefs": {},
            "config": {
                "task": {},
                "trainer": "ocp",
                "model": model,
                "outputs": {"energy": {"shape": 1, "level": "system"}, "forces": forces},
                "optim": {},
                "loss_functions": [{"energy": {"fn": "mae", "coefficient": 1}}],
                "evaluation_metrics": {"metrics": {"energy": ["mae"]}},
                "dataset": {"src": "unused"},
                "cmd": {"seed": 0},
            },
        },
        path,
    )
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("symmetry")
    write_lmdb(root / "stored" / "data.lmdb", [slab_record(s, edges=True) for s in range(6)])
    write_lmdb(root / "bare" / "data.lmdb", [slab_record(s) for s in range(4)])
    return root


def run(place, model, *args, src="stored"):
    checkpoint = write_checkpoint(place / "checkpoint.pt", model)
    data = str(place / src / "data.lmdb")
    out = place / "report.json"
    command = ["symmetry", str(checkpoint), "--src", data, "--json", str(out), "--batch-size", "3"]
    result = CliRunner().invoke(main, [*command, *args])
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    return result.output, report, {row["symmetry"]: row for row in report["symmetries"]}


def test_report_of_exact_frames(place):
    model = {**MODEL, "frame_averaging": "2D", "fa_method": "det", "frame_source": "edges"}
    picture = place / "errors.png"
    text, report, rows = run(place, model, "--double", "--plot", str(picture))
    assert report["structures"] == 6
    for row in rows.values():
        worst = max(row["energy"]["worst"], row["forces"]["worst"])
        if row["declared"] == "exact":
            assert worst < 1e-7, row
        else:
            assert worst > 1e-3, row
    assert rows["rotation about z"]["declared"] == "exact"
    assert rows["rotation in space"]["declared"] == "none"
    assert rows["rotation in space"]["energy"]["worst_sid"] in {str(1000 + s) for s in range(6)}
    assert set(report["frames"]) == {"positions", "edges", "lattice"}
    assert "edges (this model)" in text
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_report_of_published_frames_on_the_fly(place):
    model = {**MODEL, "frame_averaging": "2D", "otf_graph": True, "frame_source": "positions"}
    _, report, rows = run(place, model, "--double", src="bare")
    assert report["structures"] == 4
    assert rows["rotation about z"]["energy"]["worst"] < 1e-7
    assert rows["translation and wrap"]["declared"] == "none"
    assert rows["translation and wrap"]["energy"]["worst"] > 1e-3
    assert rows["other cell of the lattice"]["energy"]["worst"] < 1e-7


def test_report_of_a_model_of_the_host(place):
    """An invariant network declares nothing to us and shows rounding errors alone."""
    model = {
        "name": "schnet", "hidden_channels": 16, "num_filters": 16, "num_interactions": 1,
        "num_gaussians": 8, "cutoff": 4.0, "use_pbc": True, "otf_graph": False,
        "regress_forces": True,
    }  # fmt: skip
    text, report, rows = run(place, model, "--double")
    assert report["frames"] == {}
    for row in rows.values():
        assert row["declared"] is None
        # The host rounds to float32 on its way.
        assert max(row["energy"]["worst"], row["forces"]["worst"]) < 1e-2, row
    assert "this model" not in text


def test_batches_go_to_the_host_and_back_unchanged(place):
    checkpoint = write_checkpoint(place / "plain.pt", MODEL)
    model = open_model(checkpoint)
    records = open_records(place / "stored" / "data.lmdb", model)
    ((graph, ids),) = batches(records, model, 8)
    assert ids == [str(1000 + s) for s in range(6)]
    batch = to_batch(graph, edges=True)
    for index in range(6):
        stored = records[index]
        atoms = batch.batch == index
        assert torch.equal(batch.pos[atoms], stored.pos)
        assert int(batch.natoms[index]) == stored.natoms
        assert int(batch.neighbors[index]) == stored.edge_index.shape[1]
    direct = model.trainer.predict(batch, per_image=False, disable_tqdm=True)
    torch.testing.assert_close(model(graph)["energy"], direct["energy"])


def test_numbers_for_the_log_of_a_validation(place):
    """The trainer's own loader, weights and mode; exact changes near zero, others not."""
    model = {**MODEL, "frame_averaging": "2D", "fa_method": "det", "frame_source": "edges"}
    trainer = open_model(write_checkpoint(place / "live.pt", model), double=True).trainer
    records = [slab_record(seed, edges=True) for seed in range(5)]
    trainer.val_loader = [
        data_list_collater(records[:3], otf_graph=False),
        data_list_collater(records[3:], otf_graph=False),
    ]
    trainer.model.train()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    errors = validation_errors(trainer)
    assert trainer.model.training
    assert all(torch.equal(before[k], v) for k, v in trainer.model.state_dict().items())
    assert errors["symmetry/rotation_z_energy_mev"] < 1e-7
    assert errors["symmetry/image_forces_mev_per_a"] < 1e-7
    assert errors["symmetry/rotation_energy_mev"] > 1e-3
    assert errors["symmetry/rotation_energy_mev_worst"] > errors["symmetry/rotation_energy_mev"]
    assert errors == validation_errors(trainer)


@pytest.mark.parametrize(
    ("checkpoint", "src", "message"),
    [
        ("nowhere.pt", "stored", "nowhere.pt: no such checkpoint"),
        ("text.pt", "stored", "text.pt: cannot be read as a checkpoint"),
        ("weights.pt", "stored", "not a checkpoint of the host"),
        ("foreign.pt", "stored", "cannot be read as a checkpoint (No module named 'elsewhere')"),
        ("empty.pt", "stored", "not a checkpoint of the host (no config.model)"),
        ("good.pt", "nowhere", "no such file or folder"),
        ("good.pt", "bare", "records without edges"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(place, checkpoint, src, message):
    (place / "text.pt").write_text("not a checkpoint")
    torch.save({"a": torch.zeros(1)}, place / "weights.pt")
    torch.save({"config": {}, "state_dict": {}}, place / "empty.pt")
    (place / "foreign.pt").write_bytes(b"celsewhere\nThing\n.")  # a pickle of another package's
    write_checkpoint(place / "good.pt", MODEL)
    command = ["symmetry", str(place / checkpoint), "--src", str(place / src / "data.lmdb")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_what_a_study_measures_of_a_checkpoint(place):
    """Nothing changes with exact frames, so the error on moved structures is that on others."""
    spec = RunSpec("x", "x.yml", splits={"val": str(place / "stored" / "data.lmdb")})

    def measured(**choices):
        path = write_checkpoint(place / "measured.pt", {**MODEL, **choices})
        model = open_model(path, double=True)
        records = open_records(place / "stored" / "data.lmdb", model)
        ((graph, _),) = batches(records, model, 8)
        target = torch.tensor([record.y for record in records], dtype=torch.float64)
        off = model(graph)["energy"].flatten() - target
        result = {"checkpoint": str(path)}
        values = MEASUREMENTS["symmetry"][0](spec, result)
        shares = MEASUREMENTS["frames"][0](spec, result)
        return values, shares, values["val moved MAE (eV)"] - float(off.abs().mean())

    frames = {"frame_averaging": "2D", "fa_method": "det"}
    values, shares, moved = measured(**frames, frame_source="edges")
    assert max(v for k, v in values.items() if "meV" in k) < 1e-7
    assert abs(moved) < 1e-9
    assert shares == {"equal axes (%)": 0.0, "open sign (%)": 0.0, "several frames (%)": 0.0}
    values, shares, moved = measured(**frames, frame_source="positions")
    assert values["rotation about z (meV)"] < 1e-7
    assert values["translate and wrap (meV)"] > 1
    assert abs(moved) > 1e-4
    values, shares, moved = measured()
    assert values["translate and wrap (meV)"] < 1e-7
    assert min(values["rotation about z (meV)"], values["reflection (meV)"]) > 1
    assert abs(moved) > 1e-4
    assert shares == {}


@pytest.mark.parametrize("wanted", [True, False])
def test_the_trainer_logs_them_where_asked(monkeypatch, wanted):
    import ocp_faenet.adapters.trainer as module

    logged = []

    class Logger:
        def log(self, values, step, split):
            logged.append((values, step, split))

    monkeypatch.setattr(
        module.ConservingTrainer, "validate", lambda self, split, quiet: {"loss": 1}
    )
    monkeypatch.setattr(module, "validation_errors", lambda trainer, split: {"symmetry/x": 2.0})
    trainer = object.__new__(module.FAENetTrainer)
    trainer.config = {"evaluation_metrics": {"symmetry_metrics": wanted}}
    trainer.logger, trainer.step = Logger(), 7
    trainer._throughput = trainer.ema = trainer.val_loader = None
    assert trainer.validate("val", True) == {"loss": 1}
    assert logged == ([({"symmetry/x": 2.0}, 7, "val")] if wanted else [])
