"""OC20-Dense: bad input is one line, and no score is of a part (issue 7, point 9)."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dense_cases import dense, refusal, split_args, table
from ocp_faenet.cli.dense import dense as dense_group
from ocp_faenet.data.dense_prepare import SPLITS
from ocp_faenet.data.reader import open_lmdb
from ocp_faenet.data.unpickle import restricted_loads


@pytest.fixture(scope="module")
def good(tiny_data, dense_tiny, tmp_path_factory) -> dict[str, object]:
    """Options of a good evaluation, by name."""
    folder = tmp_path_factory.mktemp("good")
    mapping, targets = table(tiny_data, "mapping"), table(tiny_data, "targets")
    ids = [
        sid for sid, entry in mapping.items()
        if entry["config_id"] in dict(targets[entry["system_id"]])
    ]  # fmt: skip
    energy = [dict(targets[mapping[i]["system_id"]])[mapping[i]["config_id"]] for i in ids]
    np.savez(folder / "p.npz", ids=np.array(ids).astype(str), energy=np.array(energy))
    own = {n: tiny_data / "dense" / f"oc20dense_{n}.pkl" for n in ("targets", "mapping", "compute")}
    return {"predictions": folder / "p.npz", **own, "splits": dense_tiny / SPLITS}


def evaluated(options: dict[str, object], *more: object):
    given = [part for key, value in options.items() for part in (f"--{key}", value)]
    return dense("evaluate", *given, *more)


def test_true_energies_are_a_success_in_every_split(good, tmp_path):
    done = evaluated(good, "--json", tmp_path / "r.json")
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "r.json").read_text())
    assert {"id", "ood_cat", "overall"} <= set(report["splits"])
    assert {s["scores"]["success_proxy"]["value"] for s in report["splits"].values()} == {1.0}
    assert report["splits"]["overall"]["configurations"] == 46
    parts = [row for name, row in report["splits"].items() if name != "overall"]
    assert sum(row["configurations"] for row in parts) == 46
    assert "SR % (proxy)" in done.output
    assert "ml_success" not in report["splits"]["overall"]["scores"]


def _npz(**arrays):
    def make(path: Path) -> None:
        with np.load(path) as file:
            content = {key: file[key] for key in file.files}
        for key, change in arrays.items():
            content[key] = change(content[key])
        np.savez(path, **content)

    return make


def _nan(energy):
    energy = energy.copy()
    energy[3] = np.nan
    return energy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _npz(ids=lambda v: v[:-2], energy=lambda v: v[:-2]),
            "2 of 46 configurations",
        ),
        (_npz(ids=lambda v: np.r_[v[:-1], v[:1]]), "is there twice"),
        (_npz(energy=_nan), "the energy is nan"),
        (_npz(ids=lambda v: np.r_[v[:-1], ["7"]]), "id 7 is not in the mapping"),
        (_npz(energy=lambda v: v[:-1]), "45 energies for 46 ids"),
        (_npz(energy=lambda v: v.astype(str)), "not numbers"),
        (_npz(energy=lambda v: v.astype(object)), "holds object arrays"),
        (_npz(ids=lambda v: v.astype(object)), "holds object arrays"),
        (lambda path: path.write_bytes(b"nothing"), "p.npz: "),
        (lambda path: path.write_bytes(b""), "p.npz: "),
        (lambda path: path.unlink(), "p.npz: no such file"),
    ],
)
def test_bad_predictions_are_one_line(good, tmp_path, change, message):
    path = tmp_path / "p.npz"
    path.write_bytes(Path(str(good["predictions"])).read_bytes())
    change(path)
    done = evaluated({**good, "predictions": path}, "--json", tmp_path / "r.json")
    assert message in refusal(done)
    assert not (tmp_path / "r.json").exists()


class Call:
    """Unpickled naively, this runs a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (exec, (f"open({str(self.path)!r}, 'w').close()",))


def test_pickles_run_nothing(good, tmp_path):
    (tmp_path / "t.pkl").write_bytes(pickle.dumps({"s": Call(tmp_path / "ran")}))
    for name in ("targets", "mapping", "compute"):
        assert "asks for builtins.exec" in refusal(evaluated({**good, name: tmp_path / "t.pkl"}))
    assert "asks for builtins.exec" in refusal(
        evaluated({**good, "predictions": tmp_path / "t.pkl"})
    )
    assert not (tmp_path / "ran").exists()
    pickle.loads((tmp_path / "t.pkl").read_bytes())  # the negative control
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("targets", lambda t: t.pop("1_1"), "system 1_1 is not in the targets"),
        ("targets", lambda t: t["1_0"].append(t["1_0"][0]), "is there twice"),
        ("targets", lambda t: t["1_0"].append(("rand9", math.nan)), "rand9: nan is no energy"),
        ("targets", lambda t: t.update({"1_0": []}), "system 1_0 has no targets"),
        ("targets", lambda t: t.update({"1_0": "abc"}), "a list of (config_id, energy)"),
        ("mapping", lambda t: t.update({5: next(iter(t.values()))}), "and 5 are both"),
        ("mapping", lambda t: next(iter(t.values())).pop("mpid"), "mpid are needed"),
        ("mapping", lambda t: next(iter(t.values())).update(mpid="Fe"), "system 1_0 is both"),
        ("compute", lambda t: t.pop("3_0"), "system 3_0 is not in it"),
        ("compute", lambda t: t["3_0"]["heur0"].pop("scf"), "counts no steps"),
        ("mapping", lambda t: t.clear(), "a filled dictionary is needed"),
        ("mapping", lambda t: t.update({5: "1_0"}), "sid 5: system_id, config_id"),
        ("targets", lambda t: t.update({"1_0": [("rand9", "low")]}), "'low' is no energy"),
        ("compute", lambda t: t.update({"3_0": [1, 2]}), "a dictionary by configuration"),
    ],
)
def test_bad_tables_are_one_line(good, tmp_path, name, change, message):
    content = restricted_loads(Path(str(good[name])).read_bytes())
    change(content)
    (tmp_path / "t.pkl").write_bytes(pickle.dumps(content))
    assert message in refusal(evaluated({**good, name: tmp_path / "t.pkl"}))


def test_other_bad_options(good, tmp_path, tiny_data):
    assert "--only here: the splits are id" in refusal(evaluated(good, "--only", "here"))
    assert "no summary of splits" in refusal(evaluated({**good, "splits": tmp_path}))
    assert "no such file" in refusal(evaluated({**good, "targets": tmp_path / "no.pkl"}))
    assert "give --train" in refusal(dense(*split_args(tiny_data), "--by", "training", tmp_path))
    only = {k: v for k, v in good.items() if k != "splits"}
    assert "needs --splits" in refusal(evaluated(only, "--only", "id"))
    assert "needs --references" in refusal(evaluated(good, "--references-key", "x"))
    both = evaluated(good, "--predictions", good["predictions"])
    assert "is there twice" in refusal(both)
    assert evaluated(good, "--only", "id,ood_cat").exit_code == 0


def relaxed_file(dense_tiny: Path, path: Path) -> Path:
    """`relaxed_positions.npz` of the ID split: every structure where it was."""
    records = read_records(dense_tiny / SPLITS / "id" / "data.lmdb")
    ids = np.array([str(record["sid"]) for record in records])
    positions = [np.asarray(record["pos"]) for record in records]
    cuts = np.cumsum([len(each) for each in positions])[:-1]
    np.savez(path, ids=ids, pos=np.concatenate(positions), chunk_idx=cuts)
    return path


def read_records(path: Path) -> list[dict]:
    with open_lmdb(path) as records:
        return list(records)


def _flown(positions):
    positions = positions.copy()
    positions[5, 1] = np.nan
    return positions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_npz(pos=_flown), "its positions are not all numbers"),
        (_npz(ids=lambda v: np.r_[v[:-1], v[:1]]), "is there twice"),
        (_npz(ids=lambda v: v[:-1]), "structures for"),
        (_npz(chunk_idx=lambda v: v + 1), "atoms"),
        (_npz(pos=lambda v: v[:-1]), "were relaxed"),
        (_npz(pos=lambda v: v.ravel()[:-1]), "not a relaxed_positions.npz"),
        (_npz(chunk_idx=lambda v: v.astype(str)), "not a relaxed_positions.npz"),
        (lambda path: path.write_bytes(b""), "not a relaxed_positions.npz"),
        (lambda path: path.unlink(), "not a relaxed_positions.npz"),
    ],
)
@pytest.mark.parametrize("verb", ["export", "oracle"])
def test_bad_relaxed_positions_are_one_line(
    good, dense_tiny, tmp_path, verb, change: Callable[[Path], None], message
):
    relaxed = relaxed_file(dense_tiny, tmp_path / "r.npz")
    change(relaxed)
    own = id_predictions(good, dense_tiny, tmp_path / "p.npz")
    given = [verb, "--predictions", own, "--relaxed", relaxed]
    given += ["--data", dense_tiny / SPLITS / "id" / "data.lmdb"]
    out = [tmp_path / "out"] if verb == "export" else []
    assert message in refusal(dense(*given, *out))
    assert not (tmp_path / "out").exists()


def id_predictions(good: dict[str, object], dense_tiny: Path, path: Path) -> Path:
    """The good predictions of the ID split alone."""
    records = read_records(dense_tiny / SPLITS / "id" / "data.lmdb")
    wanted = [str(record["sid"]) for record in records]
    with np.load(str(good["predictions"])) as file:
        chosen = np.isin(file["ids"], wanted)
        np.savez(path, ids=file["ids"][chosen], energy=file["energy"][chosen])
    return path


def test_structures_and_predictions_that_do_not_go_together(good, dense_tiny, tmp_path):
    src, out = dense_tiny / SPLITS / "id" / "data.lmdb", tmp_path / "out"
    own = id_predictions(good, dense_tiny, tmp_path / "p.npz")
    twice = dense("export", "--predictions", own, "--data", src, "--data", src, out)
    assert "is in the LMDBs twice" in refusal(twice)
    other = dense("export", "--predictions", good["predictions"], "--data", src, out)
    assert "is not in the LMDBs of --data" in refusal(other)
    assert not out.exists()
    figure = ["plot", "--predictions", good["predictions"], "--targets", good["targets"]]
    figure += ["--mapping", good["mapping"]]
    (tmp_path / "file").write_text("")
    assert "not written" in refusal(dense(*figure, tmp_path / "file" / "f.png"))
    _npz(energy=_nan)(own)
    figure[2] = own
    assert "the energy is nan" in refusal(dense(*figure, tmp_path / "f.png"))
    assert not (tmp_path / "f.png").exists()


@pytest.mark.parametrize("verb", sorted(dense_group.commands))
def test_every_verb_helps_with_an_example(verb):
    done = dense(verb, "--help")
    assert done.exit_code == 0
    assert f"ocp-faenet dense {verb} " in done.output
