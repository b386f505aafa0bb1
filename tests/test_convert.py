"""``ocp-faenet convert``: names and shapes, refusals, and the checkpoint in the host's hands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch_geometric.data import Batch

import plugin_fixtures as fx
import reference_cases as rc
from ocp_faenet.adapters.schema import validate_config
from ocp_faenet.cli import main
from ocp_faenet.models.convert import LAST_TRAINED, convert_state_dict
from ocp_faenet.models.faenet import FAENetCore
from ocp_faenet.models.reference import DEFAULTS, published_options

pytest.importorskip("faenet")

OPTIONS = rc.SMALL | {"mp_type": "updownscale_base", "graph_norm": True, "skip_co": "concat"}
SCALES = {"energy_mean": -1.5, "energy_std": 2.25, "force_std": 3.0}


@pytest.fixture(scope="module")
def reference_model():
    with rc.reference_models() as make:
        yield make


@pytest.fixture(scope="module")
def state(reference_model):
    return reference_model(OPTIONS).state_dict()


def config_of(**change):
    return validate_config(published_options(OPTIONS | change))


# --- the pure function -----------------------------------------------------------------------


def test_every_weight_is_used_once_and_copied(state):
    config = config_of()
    before = {key: value.clone() for key, value in state.items()}
    converted = convert_state_dict(state, config)
    FAENetCore(config).load_state_dict(converted)
    skipped = {"embed_block.phys_emb.group", "embed_block.phys_emb.period"}
    assert len(converted) == len(state.keys() - skipped)
    for value in converted.values():
        value.zero_()
    assert all(torch.equal(state[key], before[key]) for key in state)


def test_the_generator_is_left_alone(state):
    torch.manual_seed(3)
    convert_state_dict(state, config_of())
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))


def test_wrapped_names_are_understood(state):
    wrapped = {f"module.module.{key}": value for key, value in state.items()}
    plain, config = convert_state_dict(state, config_of()), config_of()
    for key, value in convert_state_dict(wrapped, config).items():
        assert torch.equal(value, plain[key])


def test_new_rows_are_means_of_trained_ones(state):
    converted = convert_state_dict(state, config_of())
    prefix = "backbone.atom_embedding."
    tables = {
        "embedding.weight": ("emb", LAST_TRAINED + 1, 119),
        "period_group.group_embedding.weight": ("group_embedding", 19, 20),
        "period_group.period_embedding.weight": ("period_embedding", 7, 8),
    }
    for name, (theirs, trained, rows) in tables.items():
        ours, reference = converted[prefix + name], state[f"embed_block.{theirs}.weight"]
        assert len(ours) == rows
        assert torch.equal(ours[:trained], reference)
        assert torch.allclose(ours[trained:], reference[1:].mean(0))
    table = converted[prefix + "properties.table"]
    fresh = FAENetCore(config_of()).state_dict()[prefix + "properties.table"]
    assert torch.equal(table, fresh)


def test_any_element_can_be_predicted_afterwards(reference_model):
    options = OPTIONS | {"phys_hidden_channels": 4}
    ours = rc.ours_like(reference_model(options), options, torch.float32).eval()
    s = rc.structures((118,), torch.float32)
    s.numbers = torch.arange(1, 119)
    with torch.no_grad():
        assert all(value.isfinite().all() for value in ours(rc.our_graph(s)).values())


CHANGES = {
    "hidden_channels": 48,
    "num_filters": 16,
    "num_gaussians": 11,
    "num_interactions": 1,
    "tag_hidden_channels": 0,
    "pg_hidden_channels": 0,
    "phys_embeds": False,
    "phys_hidden_channels": 3,
    "second_layer_MLP": True,
    "mp_type": "base",
    "complex_mp": True,
    "graph_norm": False,
    "skip_co": "concat_atom",
    "energy_head": "weighted-av-final-embeds",
    "regress_forces": None,
    "force_decoder_type": "simple",
    "force_decoder_model_config": {"mlp": {"hidden_channels": 16, "norm": "batch1d"}},
    "cutoff": 5.0,
}


@pytest.mark.parametrize("option", CHANGES)
@pytest.mark.parametrize("way", ["state has it", "configuration has it"])
def test_a_misfit_names_the_option(reference_model, option, way):
    change = {option: CHANGES[option]}
    if option == "force_decoder_type":
        change["force_decoder_model_config"] = {"simple": {"hidden_channels": 16}}
    changed = way == "state has it"
    weights = reference_model(OPTIONS | (change if changed else {})).state_dict()
    with pytest.raises(ValueError, match=rf"^[a-z_0-9.]+: .*\b{option}\b"):
        convert_state_dict(weights, config_of(**({} if changed else change)))


def test_other_weights_are_refused(state):
    key = "output_block.lin1.weight"
    without = {k: v for k, v in state.items() if k != key}
    with pytest.raises(ValueError, match=rf"^{key}: missing"):
        convert_state_dict(without, config_of())
    with pytest.raises(ValueError, match=r"^other\.weight: not expected"):
        convert_state_dict({**state, "other.weight": torch.zeros(1)}, config_of())
    with pytest.raises(ValueError, match=rf"^{key}: .*not finite"):
        convert_state_dict({**state, key: state[key] * float("nan")}, config_of())
    group = "embed_block.phys_emb.group"
    with pytest.raises(ValueError, match=rf"^{group}: .*another table"):
        convert_state_dict({**state, group: state[group] + 1}, config_of())


# --- the reference's constructor arguments ---------------------------------------------------


def test_defaults_are_those_of_the_reference():
    import inspect

    from faenet.model import FAENet

    theirs = {
        name: parameter.default
        for name, parameter in inspect.signature(FAENet.__init__).parameters.items()
        if name not in ("self", "preprocess", "force_decoder_model_config")
    }
    assert theirs == DEFAULTS


def test_arguments_become_published_options():
    plain = validate_config(published_options({}))
    assert plain.use_pbc
    assert plain.graph_norm_scope.value == "batch"
    assert plain.second_layer_MLP
    free = validate_config(published_options({"preprocess": "base_preprocess"}))
    assert (free.use_pbc, free.otf_graph) == (False, True)
    frames = published_options({"frame_averaging": "2D", "fa_method": "all"})
    assert validate_config(frames).eval_fa_method.value == "all"
    off = published_options(
        {"phys_embeds": False, "phys_hidden_channels": 7, "regress_forces": "", "skip_co": False}
    )
    assert validate_config(off).phys_hidden_channels == 0
    with pytest.raises(ValueError, match=r"preprocess: 'mine'; known are pbc_preprocess"):
        published_options({"preprocess": "mine"})


# --- the command -----------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, state):
    torch.save(state, tmp_path / "weights.pt")
    (tmp_path / "kwargs.yml").write_text(yaml.safe_dump(OPTIONS))
    return tmp_path


def convert(folder: Path, *args: str, weights="weights.pt", kwargs="kwargs.yml", out="out.pt"):
    paths = [str(folder / name) for name in (weights, kwargs, out)]
    return CliRunner().invoke(
        main, ["convert", paths[0], "--config", paths[1], "--out", paths[2], *args]
    )


def test_command_writes_a_checkpoint_of_plain_content(files, state):
    run = convert(files, "--energy-std", "2.25", "--json", str(files / "table.json"))
    assert run.exit_code == 0, run.output
    assert "graph_norm_scope" in run.stdout
    assert "no frame_averaging" in run.stderr
    saved = torch.load(files / "out.pt", weights_only=True)
    assert saved["config"]["model"]["name"] == "ocp_faenet.FAENet"
    assert float(saved["normalizers"]["energy"]["rmsd"]) == 2.25
    ours = saved["state_dict"]["core.energy_head.readout.first.weight"]
    assert torch.equal(ours, state["output_block.lin1.weight"])
    names = {path.name for path in files.iterdir()}
    assert names == {"weights.pt", "kwargs.yml", "out.pt", "table.json"}


def test_a_training_checkpoint_will_do(files, state):
    torch.save({"epoch": 3, "state_dict": state}, files / "run.pt")
    assert convert(files, weights="run.pt").exit_code == 0


class Stranger:
    """An object that only executing a file could bring back."""


def bad_files(folder: Path, state) -> dict[str, tuple[dict, tuple[str, ...], str]]:
    """Case -> (file names, further arguments, what the message says)."""
    whole = (folder / "weights.pt").read_bytes()
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "text.pt").write_text("not weights")
    torch.save({"model": Stranger()}, folder / "object.pt")
    torch.save([1, 2], folder / "list.pt")
    torch.save({"state_dict": {"a": 1}}, folder / "number.pt")
    (folder / "bad.yml").write_text("a: [")
    (folder / "list.yml").write_text("- 1")
    (folder / "key.yml").write_text(yaml.safe_dump(OPTIONS | {"mptype": "base"}))
    (folder / "type.yml").write_text(yaml.safe_dump(OPTIONS | {"num_filters": "24"}))
    (folder / "other.yml").write_text(yaml.safe_dump(OPTIONS | {"complex_mp": True}))
    (folder / "there.pt").write_text("precious")
    return {
        "no weights": ({"weights": "none.pt"}, (), "none.pt: No such file"),
        "cut": ({"weights": "cut.pt"}, (), "cut.pt: not a PyTorch file"),
        "text": ({"weights": "text.pt"}, (), "text.pt: not a PyTorch file"),
        "object": ({"weights": "object.pt"}, (), "object.pt: not a PyTorch file of plain"),
        "list": ({"weights": "list.pt"}, (), "list.pt: holds no state dict"),
        "number": ({"weights": "number.pt"}, (), "'a' is not a tensor"),
        "no config": ({"kwargs": "none.yml"}, (), "none.yml: No such file"),
        "bad yaml": ({"kwargs": "bad.yml"}, (), "bad.yml: not YAML"),
        "yaml list": ({"kwargs": "list.yml"}, (), "list.yml: not a mapping"),
        "unknown key": ({"kwargs": "key.yml"}, (), "'mptype'"),
        "wrong type": ({"kwargs": "type.yml"}, (), "num_filters"),
        "misfit": ({"kwargs": "other.yml"}, (), "complex_mp"),
        "no folder": ({"out": "none/out.pt"}, (), "none/out.pt: No such file"),
        "exists": ({"out": "there.pt"}, (), "there.pt: exists already; give --force"),
        "zero": ({}, ("--energy-std", "0"), "--energy-std 0.0: "),
        "nan": ({}, ("--energy-mean", "nan"), "--energy-mean nan: "),
    }


def test_bad_input_is_one_line_and_leaves_nothing(files, state):
    cases = bad_files(files, state)
    before = {path.name: path.read_bytes() for path in files.iterdir()}
    for case, (names, args, message) in cases.items():
        run = convert(files, *args, **names)
        assert run.exit_code == 2, (case, run.output)
        assert run.stdout == "", case
        assert message in run.stderr, (case, run.stderr)
        assert len(run.stderr.strip().splitlines()) == 1, (case, run.stderr)
    assert {path.name: path.read_bytes() for path in files.iterdir()} == before


def test_force_replaces(files):
    (files / "out.pt").write_text("old")
    assert convert(files, "--force").exit_code == 0
    assert "config" in torch.load(files / "out.pt", weights_only=True)


# --- the host --------------------------------------------------------------------------------

CALCULATOR = """
import sys
import numpy as np
from fairchem.core.common.relaxation.ase_utils import OCPCalculator
import plugin_fixtures as fx

checkpoint, out = sys.argv[1:]
calculator = OCPCalculator(checkpoint_path=checkpoint, cpu=True, seed=0)
energies, forces = [], []
for seed in range(90, 94):
    atoms = fx.slab_atoms(seed)
    atoms.calc = calculator
    energies.append(atoms.get_potential_energy())
    forces.append(atoms.get_forces())
np.savez(out, energy=np.array(energies), forces=np.concatenate(forces))
"""


@pytest.fixture(scope="module")
def converted(tmp_path_factory, reference_model):
    """Folder with data, ``out.pt``, and the reference's own predictions, one record at a time."""
    folder = tmp_path_factory.mktemp("converted")
    records = [fx.slab_record(90 + seed, edges=True) for seed in range(4)]
    for split in ("train", "test"):
        fx.write_lmdb(folder / split / "data.lmdb", records)
    options = OPTIONS | {"cutoff": fx.CUTOFF, "max_num_neighbors": 200}
    reference = reference_model(options).eval()
    torch.save(reference.state_dict(), folder / "weights.pt")
    (folder / "kwargs.yml").write_text(yaml.safe_dump(options))
    args = [f"--{key.replace('_', '-')}={value}" for key, value in SCALES.items()]
    assert convert(folder, *args).exit_code == 0
    energies, forces = [], []
    for record in records:
        batch = Batch.from_data_list([record])
        batch.neighbors = torch.tensor([record.edge_index.shape[1]])
        with torch.no_grad():
            out = reference(batch, mode="inference")
        energies.append(out["energy"].item() * SCALES["energy_std"] + SCALES["energy_mean"])
        forces.append(out["forces"].numpy() * SCALES["force_std"])
    fixed = np.concatenate([record.fixed.numpy() for record in records])
    return folder, options, np.array(energies), np.concatenate(forces), fixed


@pytest.mark.slow
def test_calculator_gives_the_predictions_of_the_reference(converted):
    folder, _, energies, forces, _ = converted
    command = [sys.executable, "-c", CALCULATOR, str(folder / "out.pt"), str(folder / "calc.npz")]
    env = fx.one_thread() | {"PYTHONPATH": str(Path(__file__).parent)}
    run = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    with np.load(folder / "calc.npz") as found:
        assert np.abs(found["energy"] - energies).max() < 1e-5 * np.abs(energies).max()
        assert np.abs(found["forces"] - forces).max() < 1e-5 * np.abs(forces).max()


@pytest.mark.slow
def test_predict_loads_it(converted):
    folder, options, energies, forces, fixed = converted
    model = {"name": "ocp_faenet.FAENet", **published_options(options)}
    config = fx.run_config(folder, model)
    config["optim"] |= {"batch_size": 1, "eval_batch_size": 1}
    args = ("--checkpoint", str(folder / "out.pt"))
    run = fx.fairchem(config, folder, "predict", *args, mode="predict")
    assert run.returncode == 0, run.stderr[-3000:]
    with np.load(folder / "results" / "predict" / "ocp_predictions.npz") as found:
        assert np.abs(found["energy"].ravel() - energies).max() < 1e-5 * np.abs(energies).max()
        free = forces[fixed == 0]
        assert np.abs(found["forces"] - free).max() < 1e-5 * np.abs(forces).max()
