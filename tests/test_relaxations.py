"""Relaxations: resumed, seen from a turned and wrapped start, scored (issue 4, point 4)."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fairchem.core.common.flags import flags
from fairchem.core.common.utils import build_config, new_trainer_context
from fairchem.core.datasets import data_list_collater
from fairchem.core.modules.evaluator import Evaluator

from ocp_faenet.adapters.plugin import PUBLIC
from ocp_faenet.adapters.relaxation import check_options, resumable_relax
from ocp_faenet.adapters.trajectories import MARK, Relaxed, Trajectories
from ocp_faenet.cli import main
from ocp_faenet.data.reader import open_lmdb
from ocp_faenet.metrics import relaxations as scores

CONFIG = Path(__file__).parent.parent / "configs" / "oc20" / "emt" / "s2ef" / "relax.yml"
STEPS = 6
SMALL = {
    "hidden_channels": 32,
    "num_filters": 16,
    "num_interactions": 2,
    "num_gaussians": 16,
    "tag_hidden_channels": 4,
    "pg_hidden_channels": 4,
    "regress_forces": "from_energy",
}


def relaxation_config(tiny: Path, run_dir: Path, model: dict) -> dict:
    """As ``fairchem --mode run-relaxations`` builds it, with weights that were never trained."""
    command = ["--mode=run-relaxations", f"--config-yml={CONFIG}", f"--run-dir={run_dir}"]
    command += ["--timestamp-id=run", "--cpu", "--seed=3", "--optim.eval_batch_size=4"]
    command += [f"--task.relaxation_steps={STEPS}", f"--task.relax_opt.traj_dir={run_dir / 'traj'}"]
    command += [f"--dataset.relax.src={tiny / 'is2re' / 'val_id' / 'data.lmdb'}"]
    for split, folder in {"train": "train", "val": "val_id"}.items():
        command.append(f"--dataset.{split}.src={tiny / 's2ef' / folder / 'data.lmdb'}")
    config = build_config(*flags.get_parser().parse_known_args(command))
    config["model"] |= SMALL | model
    config["task"]["relaxation_fmax"] = 1e-3
    # Weights that were never trained make small forces: as large as those of a start.
    config["dataset"]["train"]["transforms"]["normalizer"]["forces"]["stdev"] = 20.0
    return config


class Metrics:
    """Keeps what the host logs."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}

    def log(self, values, step, split):
        self.found |= values


def run(tiny: Path, run_dir: Path, **model) -> tuple[dict, dict]:
    """Arrays of ``relaxed_positions.npz`` and the host's metrics."""
    with new_trainer_context(config=relaxation_config(tiny, run_dir, model)) as context:
        trainer = context.trainer
        trainer.logger = Metrics()
        trainer.run_relaxations()
        metrics = trainer.logger.found
    with np.load(run_dir / "results" / "run" / "relaxed_positions.npz") as file:
        return {key: file[key] for key in file.files}, metrics


@pytest.fixture(scope="module")
def whole(tiny_data, tmp_path_factory) -> tuple[Path, dict, dict]:
    """An uninterrupted run: its folder, what it wrote and logged."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, *run(tiny_data, folder)


def test_a_resumed_run_writes_every_system(tiny_data, whole, tmp_path):
    folder, written, metrics = whole
    shutil.copytree(folder / "traj", tmp_path / "traj")
    trajectories = sorted((tmp_path / "traj").glob("*.traj"))
    assert len(trajectories) == len(written["ids"]) == 16
    for path in trajectories[:6]:  # a whole batch of four and half of the next
        path.unlink()
    trajectories[6].write_bytes(trajectories[6].read_bytes()[:200])  # a disk was full
    kept = {path: path.read_bytes() for path in trajectories[7:]}
    again, logged = run(tiny_data, tmp_path)
    assert again["ids"].tolist() == written["ids"].tolist()
    np.testing.assert_array_equal(again["chunk_idx"], written["chunk_idx"])
    np.testing.assert_allclose(again["pos"], written["pos"], atol=1e-4)
    assert {path: path.read_bytes() for path in kept} == kept  # taken, not made again
    assert logged.keys() == metrics.keys()
    for key, value in metrics.items():
        assert logged[key] == pytest.approx(value, abs=1e-3), key
    # Negative control: the atoms did move, by more than the tolerance.
    with open_lmdb(tiny_data / "is2re" / "val_id" / "data.lmdb") as records:
        start = {str(record["sid"]): np.asarray(record["pos"]) for record in records}
    moved = np.concatenate([start[name] for name in written["ids"].tolist()]) - written["pos"]
    assert np.abs(moved).max() > 0.02


def test_the_metrics_are_those_of_the_structures_written(tiny_data, whole):
    """The host compares energies pairwise where shapes differ; and each system counts once."""
    folder, written, metrics = whole
    distance, energy = [], []
    positions = dict(
        zip(written["ids"].tolist(), np.split(written["pos"], written["chunk_idx"]), strict=True)
    )
    with open_lmdb(tiny_data / "is2re" / "val_id" / "data.lmdb") as records:
        for record in records:
            name = str(record["sid"])
            free = np.asarray(record["fixed"]) == 0
            target = np.asarray(record["pos_relaxed"])[free]
            cell = np.asarray(record["cell"])
            distance.append(scores.mean_distance(positions[name][free], target, cell))
            last = ase.io.read(folder / "traj" / f"{name}.traj", -1)
            energy.append(abs(last.get_potential_energy() - record["y_relaxed"]))
    adwt = scores.average_below(distance, scores.DISTANCES)
    assert metrics["is2rs_positions_average_distance_within_threshold"] == pytest.approx(adwt)
    assert metrics["is2re_energy_mae"] == pytest.approx(np.mean(energy), rel=1e-4)


class Predictor:
    """What the host's relaxation asks of a trainer."""

    def __init__(self, **options) -> None:
        torch.manual_seed(0)
        self.device = torch.device("cpu")
        settings = {"frame_averaging": "2D", "fa_method": "all", "graph_rewiring": "remove-tag-0"}
        settings |= {"max_num_neighbors": 50, "frame_source": "edges", **SMALL, **options}
        self._unwrapped_model = PUBLIC["FAENet"](**settings).double().eval()

    def predict(self, batch, per_image, disable_tqdm):
        with torch.no_grad():
            out = self._unwrapped_model(batch)
        # Never trained: made as large as at a start.
        return {"energy": out["energy"], "forces": 20.0 * out["forces"]}


def records(tiny: Path, n: int = 3) -> list:
    dataset = PUBLIC["CheckedLmdbDataset"]({"src": str(tiny / "is2re" / "val_id" / "data.lmdb")})
    return [dataset[i] for i in range(n)]


def turned_and_wrapped(record, angle: float):
    """The record turned about z, moved along a lattice vector's part and wrapped into the cell."""
    c, s = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    out = record.clone()
    cell = record.cell[0].double() @ turn
    fractional = torch.linalg.solve(cell.T, (record.pos.double() @ turn).T).T
    fractional[:, :2] = (fractional[:, :2] + torch.tensor([0.37, 0.61])) % 1.0
    out.pos, out.cell = (fractional @ cell).float(), cell.float().unsqueeze(0)
    return out, turn


def apart(relaxed, again, turn) -> float:
    """Largest distance between the turned result and the result of the turned start, up to the
    shift that both started with, nearest images."""
    cell = again.cell[0].double()
    moved = relaxed.pos.double() @ turn - again.pos.double()
    fractional = torch.linalg.solve(cell.T, moved.T).T
    fractional = fractional - fractional[0]
    return float(((fractional - fractional.round()) @ cell).norm(dim=1).max())


@pytest.mark.parametrize("mode", ["from_energy", "direct"])
def test_a_turned_and_wrapped_start_ends_turned_and_wrapped(tiny_data, mode):
    trainer = Predictor(regress_forces=mode)
    broken = Predictor(regress_forces=mode, frame_source="positions")
    worst = {True: 0.0, False: 0.0}
    for record in records(tiny_data):
        other, turn = turned_and_wrapped(record, 0.7)
        for exact, predictor in ((True, trainer), (False, broken)):
            both = [
                resumable_relax(data_list_collater([start]), predictor, steps=8, fmax=1e-4)
                for start in (record, other)
            ]
            worst[exact] = max(worst[exact], apart(*both, turn))
    assert worst[True] < 2e-4  # the host keeps positions in float32
    assert worst[False] > 2e-2  # frames of stored positions change with the periodic image


def test_edges_are_those_of_the_step(tiny_data):
    """A model that reads stored edges makes its own in a relaxation, and reads them after it."""
    stored, made = Predictor(otf_graph=False), Predictor(otf_graph=True)
    batch = data_list_collater(records(tiny_data))
    ends = [resumable_relax(batch, trainer, steps=4, fmax=1e-4).pos for trainer in (stored, made)]
    assert torch.equal(*ends)
    assert stored._unwrapped_model.otf_graph is False
    assert "edge_index" in batch  # not changed


def test_frames_end_where_the_relaxation_ends(whole):
    folder, written, _ = whole
    positions = np.split(written["pos"], written["chunk_idx"])
    for name, end in zip(written["ids"].tolist(), positions, strict=True):
        frames = ase.io.read(folder / "traj" / f"{name}.traj", ":")
        shift = frames[-1].cell.scaled_positions(frames[-1].positions - end)
        assert np.abs(shift - shift.round()).max() < 1e-5
        assert [MARK in frame.info for frame in frames] == [False] * (len(frames) - 1) + [True]
    assert not list((folder / "traj").glob("unfinished/*"))


def test_trajectories_of_other_weights_are_made_again(tiny_data, tmp_path):
    batch, options = data_list_collater(records(tiny_data, 1)), {"traj_dir": tmp_path}
    first = resumable_relax(batch, Predictor(), 2, 1e-4, options)
    again = resumable_relax(batch, Predictor(), 2, 1e-4, options)
    other = resumable_relax(batch, Predictor(num_interactions=1), 2, 1e-4, options)
    torch.testing.assert_close(again.pos, first.pos, atol=1e-6, rtol=0)
    assert (other.pos - first.pos).abs().max() > 1e-3


def test_another_structure_under_the_same_sid_is_refused(tiny_data, tmp_path):
    record = records(tiny_data, 1)[0]
    options = {"traj_dir": tmp_path}
    resumable_relax(data_list_collater([record]), Predictor(), 2, 1e-4, options)
    record.atomic_numbers = record.atomic_numbers + 1
    with pytest.raises(ValueError, match=rf"{record.sid}.traj: .*not the structure .*traj_dir"):
        resumable_relax(data_list_collater([record]), Predictor(), 2, 1e-4, options)


def test_options():
    assert check_options({"name": "LBFGS", "memory": 50}) == {"memory": 50}
    with pytest.raises(ValueError, match=r"relax_opt: unknown key 'maxsteps' \(value 3\)"):
        check_options({"maxsteps": 3})
    with pytest.raises(ValueError, match="lbfgs alone"):
        check_options({"name": "bfgs"})


def test_scores_against_a_loop_and_against_the_host():
    generator = np.random.default_rng(0)
    cell = np.array([[5.0, 0.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 20.0]])
    values = generator.uniform(0, 0.6, 9)
    slow = [sum(v < t for v in values) / 9 for t in np.arange(0.01, 0.5, 0.001)]
    assert scores.average_below(values, scores.DISTANCES) == pytest.approx(np.mean(slow))
    target = generator.uniform(0, 4, (6, 3))
    moved = target + generator.normal(0, 0.1, (6, 3)) + np.array([1, -2, 0]) @ cell
    natoms = torch.tensor([6])
    shared = {"cell": torch.tensor(cell)[None], "pbc": torch.tensor([True] * 3), "natoms": natoms}
    host = Evaluator(task="is2rs").eval(
        {"positions": torch.tensor(moved), **shared}, {"positions": torch.tensor(target), **shared}
    )[
        "average_distance_within_threshold"
        if False
        else "positions_average_distance_within_threshold"
    ]
    distance = scores.mean_distance(moved, target, cell)
    assert scores.average_below([distance], scores.DISTANCES) == pytest.approx(host["metric"])
    assert 0.05 < distance < 0.4
    assert scores.max_force(np.zeros((0, 3))) == 0.0


def verb(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["relaxations", *map(str, arguments)])
    return result.exit_code, result.output


def test_verb(tiny_data, whole, tmp_path):
    folder, _, metrics = whole
    src = tiny_data / "is2re" / "val_id" / "data.lmdb"
    npz = folder / "results" / "run" / "relaxed_positions.npz"
    code, output = verb(npz, "--src", src, "--json", tmp_path / "scores.json")
    assert code == 0, output
    report = json.loads((tmp_path / "scores.json").read_text())
    assert report["structures"] == 16
    assert report["missing"] == []
    adwt = metrics["is2rs_positions_average_distance_within_threshold"]
    assert report["relaxed"]["adwt"] == pytest.approx(100 * adwt)
    assert report["reference"]["fbt"] == 100.0  # EMT relaxed them to 0.03 eV/Å
    assert report["reference"]["energy"] == 0.0
    assert report["initial"]["energy"] > 0.0
    assert report["initial"]["fbt"] < 50.0
    code, output = verb(npz, "--src", tiny_data / "is2re" / "train" / "data.lmdb")
    assert code == 2
    assert "none of its structures" in output
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK")
    code, output = verb(broken, "--src", src)
    assert code == 2
    assert "relaxed_positions.npz" in output


def test_two_ranks_may_relax_the_same_structure(tiny_data, tmp_path):
    """The host fills up the last batch of a rank with a structure of another one."""
    record = records(tiny_data, 1)[0]
    end = Relaxed(record.pos, torch.tensor(-1.0), torch.zeros_like(record.pos))
    stores = [Trajectories(tmp_path, {"fmax": 0.1}, rank) for rank in (0, 1)]
    for store in stores:  # both have relaxed it before either has saved it
        store.unfinished.mkdir()
        (store.unfinished / "7.traj").write_bytes(b"")
    for store in stores:
        store.save("7", record, end)
    found = stores[0].load("7", record)
    torch.testing.assert_close(found.positions, record.pos)
    assert [path.name for path in tmp_path.iterdir()] == ["7.traj"]
