"""Saving the reference's steps: export, oracle, anomalies, pictures (issue 7, points 4, 7, 8)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import ase.io
import numpy as np
import pytest
from click.testing import CliRunner

from dense_cases import ANOMALIES, anomaly_case
from ocp_faenet.cli import main
from ocp_faenet.cli.dense_validation import check_by_emt
from ocp_faenet.data import dense_moves as moves
from ocp_faenet.data.adsorbml_anomalies import Anomaly, anomalies
from ocp_faenet.data.dense_oracle import adsorption_energy, relax_from
from ocp_faenet.data.dense_prepare import SPLITS
from ocp_faenet.data.reader import open_lmdb
from ocp_faenet.data.schema import array_of
from ocp_faenet.data.unpickle import restricted_loads
from ocp_faenet.metrics.sensitivity import response

INITIALS = {
    Anomaly.DESORBED: "d",
    Anomaly.INTERCALATED: "i",
    Anomaly.DISSOCIATED: "x",
    Anomaly.SURFACE_CHANGED: "s",
}


def test_anomalies_are_those_of_fairchems_detector():
    assert set("dixs") == set("".join(ANOMALIES.values()))
    for seed in range(48):
        before, after, clean = anomaly_case(seed)
        found = anomalies(before, after, before.get_tags(), clean)
        assert {INITIALS[each] for each in found} == set(ANOMALIES.get(seed, "")), seed
    with pytest.raises(ValueError, match="of the adsorbate"):
        anomalies(before, after, np.ones(len(before), int))
    with pytest.raises(ValueError, match="13 after"):
        anomalies(before, after[:-1], before.get_tags())


@pytest.fixture(scope="module")
def split(dense_tiny, tmp_path_factory) -> Path:
    """LMDB of the tiny set's dense ID split, in a folder with predictions and relaxed positions.

    `p.npz`: the true energies; `r.npz`: where the oracle itself relaxes to.
    """
    folder = tmp_path_factory.mktemp("splits") / "id"
    shutil.copytree(dense_tiny / SPLITS, folder.parent, dirs_exist_ok=True)
    with open_lmdb(folder / "data.lmdb") as records:
        every = list(records)
    ids = np.array([str(record["sid"]) for record in every])
    np.savez(folder / "p.npz", ids=ids, energy=np.array([r["y_relaxed"] for r in every]))
    ends = [relax_from(record, array_of(record["pos"])) for record in every]
    sizes = np.cumsum([len(end.positions) for end in ends])[:-1]
    pos = np.concatenate([end.positions for end in ends])
    np.savez(folder / "r.npz", ids=ids, pos=pos, chunk_idx=sizes)
    return folder


def command(verb: str, split: Path, *more: object):
    given = ["--predictions", split / "p.npz", "--data", split / "data.lmdb", *more]
    return CliRunner().invoke(main, ["dense", verb, *map(str, given)])


def test_the_oracle_repeats_the_data(tiny_data, split):
    """Energies and numbers of steps are those of the tables, whoever computed them."""
    compute = restricted_loads((tiny_data / "dense" / "oc20dense_compute.pkl").read_bytes())
    with open_lmdb(split / "data.lmdb") as records:
        for record in records:
            done = relax_from(record, array_of(record["pos"]))
            assert done.converged
            assert done.energy == pytest.approx(record["y_relaxed"], abs=1e-5)
            steps = compute[record["system_id"]][record["config_id"]]["ionic"]
            assert done.calls == steps
            assert adsorption_energy(record, done.positions) == pytest.approx(done.energy)
            assert adsorption_energy(record, array_of(record["pos"])) >= done.energy - 1e-6


def test_steps_and_minima_by_k(tiny_data, split, tmp_path):
    compute = restricted_loads((tiny_data / "dense" / "oc20dense_compute.pkl").read_bytes())
    with open_lmdb(split / "data.lmdb") as records:
        place = [(r["system_id"], r["config_id"], r["y_relaxed"]) for r in records]
    done = command(
        "oracle", split, "--relaxed", split / "r.npz", "--top-k", 2, "--json", tmp_path / "o.json"
    )
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "o.json").read_text())["rows"]
    systems = sorted({system for system, _, _ in place})
    best = {s: sorted((e, c) for system, c, e in place if system == s) for s in systems}
    for k, row in enumerate(rows, 1):
        calls = [sum(compute[s][c]["ionic"] for _, c in best[s][:k]) for s in systems]
        total = sum(compute[s][c]["ionic"] for s, c, _ in place)
        assert row["initial"]["calls"] == pytest.approx(np.mean(calls))
        assert row["initial"]["of_all"] == pytest.approx(sum(calls) / total)
        assert row["model"]["calls"] == k  # a converged structure takes one look
        assert row["initial"]["found"] == row["model"]["found"] == 1.0
    assert rows[0]["initial"]["calls"] > 1.0
    # Negative control: the worst first finds less.
    with np.load(split / "p.npz") as file:
        np.savez(tmp_path / "bad.npz", ids=file["ids"], energy=-file["energy"])
    arguments = ["dense", "oracle", "--predictions", tmp_path / "bad.npz", "--top-k", 1]
    arguments += ["--data", split / "data.lmdb", "--json", tmp_path / "bad.json"]
    assert CliRunner().invoke(main, list(map(str, arguments))).exit_code == 0
    assert json.loads((tmp_path / "bad.json").read_text())["rows"][0]["initial"]["found"] < 1.0


def scored(tiny_data: Path, split: Path, tmp_path: Path, *more: object, predictions: str = "p.npz"):
    """Report of ``dense evaluate --validation emt`` on the ID split."""
    tables = [
        part
        for name in ("targets", "mapping", "compute")
        for part in (f"--{name}", tiny_data / "dense" / f"oc20dense_{name}.pkl")
    ]
    given = ["dense", "evaluate", "--predictions", split / predictions, *tables, "--only", "id"]
    given += ["--splits", split.parent, "--validation", "emt", "--data", split / "data.lmdb"]
    done = CliRunner().invoke(main, list(map(str, [*given, *more, "--json", tmp_path / "e.json"])))
    assert done.exit_code == 0, done.output
    return json.loads((tmp_path / "e.json").read_text()), done.output


def test_emt_validates_what_is_proposed(tiny_data, split, tmp_path):
    """The chosen structure's own energy decides, not the target of its configuration."""
    report, output = scored(tiny_data, split, tmp_path)
    own = report["splits"]["id"]["scores"]
    assert own["ml_success"]["value"] == own["hybrid@5"]["value"] == 1.0
    assert own["ionic_speedup@1"]["value"] > 1.0
    assert "SR % " in output
    assert "EMT, relaxing" in output
    # At the ends of EMT's own relaxations its energies are the targets, at one call each.
    relaxed, output = scored(tiny_data, split, tmp_path, "--relaxed", split / "r.npz")
    at = relaxed["splits"]["id"]["scores"]
    assert at["ml_success"]["value"] == 1.0
    assert at["ionic_speedup@1"]["value"] > own["ionic_speedup@1"]["value"]
    assert "that the model relaxed" in output
    # Negative control: the same energies promised for structures that were never relaxed.
    with open_lmdb(split / "data.lmdb") as records:
        every = list(records)
    with np.load(split / "r.npz") as file:
        content = {key: file[key] for key in file.files}
    content["pos"] = np.concatenate([array_of(record["pos"]) for record in every])
    np.savez(split / "initial.npz", **content)
    lied, _ = scored(tiny_data, split, tmp_path, "--relaxed", split / "initial.npz")
    assert lied["splits"]["id"]["scores"]["ml_success"]["value"] < 1.0


def test_an_adsorbate_that_flew_off_is_not_valid(tiny_data, split, tmp_path):
    with open_lmdb(split / "data.lmdb") as records:
        every = list(records)
    with np.load(split / "r.npz") as file:
        content = {key: file[key].copy() for key in file.files}
    high = [np.where(array_of(r["tags"])[:, None] == 2, [0.0, 0.0, 6.0], 0.0) for r in every]
    content["pos"] = content["pos"] + np.concatenate(high)
    np.savez(split / "flown.npz", **content)
    # Predictions that EMT confirms to the last digit: only the anomaly speaks against them.
    ends = np.split(content["pos"], content["chunk_idx"])
    energy = [adsorption_energy(r, end) for r, end in zip(every, ends, strict=True)]
    np.savez(split / "flown_p.npz", ids=content["ids"], energy=np.array(energy))
    report, output = scored(
        tiny_data, split, tmp_path, "--relaxed", split / "flown.npz", predictions="flown_p.npz"
    )
    assert report["anomalies"]["desorbed"] > 0
    # Not for its energy alone: EMT's energy of what flew off is not taken at all.
    place = {str(record["system_id"]) for record in every}
    checked = check_by_emt(
        [split / "flown_p.npz"], [split / "data.lmdb"], [split / "flown.npz"], place
    )
    assert all(checked.calls.values())
    assert not any(checked.energies.values())
    assert "desorbed" in output
    assert report["splits"]["id"]["scores"]["ml_success"]["value"] == 0.0
    assert report["splits"]["id"]["scores"]["hybrid@5"]["value"] == 0.0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "--validation emt: needs the structures"),
        (("--data", "d", "--references", "r.pkl"), "leave one out"),
        (("--data", "missing.lmdb"), "missing.lmdb"),
    ],
)
def test_emt_needs_its_structures(tiny_data, split, more, message):
    given = ["dense", "evaluate", "--predictions", split / "p.npz", "--validation", "emt"]
    for name in ("targets", "mapping"):
        given += [f"--{name}", tiny_data / "dense" / f"oc20dense_{name}.pkl"]
    given += ["--splits", split.parent, "--only", "id", *more]
    done = CliRunner().invoke(main, list(map(str, given)))
    assert done.exit_code == 2
    assert message in done.output
    assert len(done.output.strip().splitlines()) == 1


@pytest.mark.parametrize("form", ["extxyz", "traj", "vasp"])
def test_exported_structures(split, tmp_path, form):
    done = command(
        "export", split, "--relaxed", split / "r.npz", "--top-k", 3, "--format", form,
        "--json", tmp_path / "e.json", tmp_path / "out",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    with open_lmdb(split / "data.lmdb") as records:
        every = {str(record["sid"]): record for record in records}
    with np.load(split / "r.npz") as file:
        parts = np.split(file["pos"], file["chunk_idx"])
        positions = dict(zip(file["ids"].tolist(), parts, strict=True))
    rows = json.loads((tmp_path / "e.json").read_text())
    for system in {row["system"] for row in rows}:
        mine = [row for row in rows if row["system"] == system]
        energies = sorted(r["y_relaxed"] for r in every.values() if r["system_id"] == system)
        assert [row["predicted"] for row in mine] == pytest.approx(energies[:3])
        for row in mine:
            place, index = tmp_path / "out" / f"{system}.{form}", row["rank"] - 1
            if form == "vasp":
                name = f"{row['rank']}_{row['config']}"
                place, index = tmp_path / "out" / system / name / "POSCAR", 0
            atoms = ase.io.read(place, index=index)
            record, wanted = every[row["sid"]], positions[row["sid"]]
            order = np.argsort(array_of(record["atomic_numbers"]), kind="stable")
            found = np.argsort(atoms.numbers, kind="stable")
            np.testing.assert_array_equal(
                atoms.numbers[found], array_of(record["atomic_numbers"])[order]
            )
            np.testing.assert_allclose(atoms.positions[found], wanted[order], atol=1e-6)
            fixed = np.zeros(len(atoms), dtype=int)
            fixed[atoms.constraints[0].index] = 1
            np.testing.assert_array_equal(fixed[found], array_of(record["fixed"])[order])
            assert atoms.pbc.all()
    again = command("export", split, tmp_path / "out")
    assert again.exit_code == 2
    assert "is there already" in again.output


def test_incomplete_input_is_one_line(split, tmp_path, tiny_data):
    with np.load(split / "p.npz") as file:
        np.savez(tmp_path / "p.npz", ids=file["ids"][:-1], energy=file["energy"][:-1])
    with np.load(split / "r.npz") as file:
        np.savez(
            tmp_path / "r.npz", ids=file["ids"][:1], pos=file["pos"][: file["chunk_idx"][0]],
            chunk_idx=file["chunk_idx"][:0],
        )  # fmt: skip
    for predictions, lmdb, more, message in (
        (tmp_path / "p.npz", split / "data.lmdb", [], "has no prediction"),
        (split / "p.npz", split / "data.lmdb", ["--relaxed", tmp_path / "r.npz"], "no relaxed pos"),
        (split / "p.npz", tiny_data / "dense" / "data.lmdb", [], "no system_id"),
        (split / "p.npz", tmp_path / "no.lmdb", [], "no such file"),
        (split / "p.npz", split / "data.lmdb", ["--relaxed", split / "p.npz"], "not a relaxed_pos"),
    ):
        args = [
            "dense",
            "export",
            "--predictions",
            predictions,
            "--data",
            lmdb,
            *more,
            tmp_path / "o",
        ]
        done = CliRunner().invoke(main, list(map(str, args)))
        assert done.exit_code == 2
        assert message in done.output
        assert not (tmp_path / "o").exists()


def test_figure_5(tiny_data, split, tmp_path):
    own = tiny_data / "dense" / "oc20dense_"
    args = ["dense", "plot", "--predictions", split / "p.npz", "--targets", f"{own}targets.pkl"]
    args += ["--mapping", f"{own}mapping.pkl"]
    done = CliRunner().invoke(main, list(map(str, [*args, tmp_path / "f.png"])))
    assert done.exit_code == 0, done.output
    assert done.output.startswith("1_1, 1_0: ")  # most configurations first
    assert (tmp_path / "f.png").stat().st_size > 10_000
    done = CliRunner().invoke(main, list(map(str, [*args, "--systems", "4_0", tmp_path / "g.png"])))
    assert done.exit_code == 2
    assert "--systems 4_0: predicted are 1_1, 1_0" in done.output


def test_responses_by_hand():
    truth = np.array([0.0, 1.0, -1.0, np.nan])
    same = response([(truth + 5.0, truth), (truth[:2] - 1.0, truth[:2])])  # offsets do not count
    assert (same.explained, same.amplitude, same.points) == (1.0, 1.0, 5)
    assert response([(np.zeros(4), truth)]).explained == 0.0
    assert response([(np.zeros(4), truth)]).amplitude == 0.0
    against = response([(-truth, truth)])
    assert (against.explained, against.amplitude) == (-3.0, 1.0)
    assert response([(0.5 * truth, truth)]).explained == pytest.approx(0.75)
    assert response([(truth, truth)]).spread == pytest.approx(np.sqrt(2 / 3))
    with pytest.raises(ValueError, match="does not change"):
        response([([1.0, 2.0], [3.0, 3.0])])
    with pytest.raises(ValueError, match="2 predicted energies for 3"):
        response([([1.0, 2.0], [3.0, 3.0, 4.0])])


def test_motions_of_the_adsorbate(split):
    with open_lmdb(split / "data.lmdb") as records:
        record = next(r for r in records if (array_of(r["tags"]) == 2).sum() > 1)
    start, cell = array_of(record["pos"]).astype(float), array_of(record["cell"])[0].astype(float)
    adsorbate = array_of(record["tags"]) == 2
    inner = np.linalg.norm(start[adsorbate][1:] - start[adsorbate][:1], axis=1)

    def gap(positions):
        apart = positions[adsorbate][:, None] - positions[~adsorbate][None]
        images = [apart + i * cell[0] + j * cell[1] for i in (-1, 0, 1) for j in (-1, 0, 1)]
        return min(float(np.linalg.norm(each, axis=-1).min()) for each in images)

    grid = moves.slid(record, 4)
    rise, turn = moves.lifted(record), moves.turned(record, 8)
    for each in (*grid.reshape(-1, *start.shape), *rise, *turn):
        np.testing.assert_array_equal(each[~adsorbate], start[~adsorbate])
        np.testing.assert_allclose(
            np.linalg.norm(each[adsorbate][1:] - each[adsorbate][:1], axis=1), inner, atol=1e-9
        )
    for i, j in np.ndindex(4, 4):
        across = grid[i, j, adsorbate] - start[adsorbate] - i / 4 * cell[0] - j / 4 * cell[1]
        np.testing.assert_allclose(across[:, :2], 0.0, atol=1e-9)
        assert gap(grid[i, j]) == pytest.approx(gap(start), abs=1e-6)
    np.testing.assert_allclose(rise[:, adsorbate, 2].T - start[adsorbate, 2][:, None],
                               np.tile(moves.HEIGHTS, (adsorbate.sum(), 1)), atol=1e-9)  # fmt: skip
    np.testing.assert_allclose(turn[0], start, atol=1e-12)
    heights = turn[:, adsorbate, 2]
    np.testing.assert_allclose(heights, np.tile(heights[0], (8, 1)), atol=1e-9)
    # A whole lattice vector changes nothing for the oracle, and a part of one does.
    whole = start.copy()
    whole[adsorbate] += cell[0]
    here = adsorption_energy(record, start)
    assert adsorption_energy(record, whole) == pytest.approx(here, abs=1e-6)
    assert abs(adsorption_energy(record, grid[1, 2]) - here) > 1e-3
