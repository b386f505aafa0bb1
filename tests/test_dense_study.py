"""A study on OC20-Dense: what it prepares, trains from what, measures, and refers to (issue 7)."""

from __future__ import annotations

import json
import pickle
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from torch_geometric.data import Batch, Data

from ocp_faenet.adapters.dense_residual import adsorbates_of, dense_difference
from ocp_faenet.adapters.dense_study import TOGETHER, dense_of, dense_references, read_targets
from ocp_faenet.adapters.plan import read_plan, specs_of
from ocp_faenet.adapters.runs import RunSpec
from ocp_faenet.cli import main
from ocp_faenet.cli.study_report import differences_of, table_of
from ocp_faenet.cli.study_run import shortened
from ocp_faenet.data.dense_prepare import SPLITS, prepare_dense, prepare_mixed
from ocp_faenet.data.dense_tables import read_mapping
from ocp_faenet.data.reader import open_lmdb
from ocp_faenet.metrics.bootstrap import Estimate
from ocp_faenet.metrics.dense import success

ROOT = Path(__file__).parent.parent
STUDY = ROOT / "configs" / "studies" / "dense.yml"


@pytest.fixture
def prepared(dense_tiny) -> Path:
    return dense_tiny


def specs(data: Path, folder: Path = STUDY.parent) -> dict[str, RunSpec]:
    plan = shortened(read_plan(folder / "dense.yml"), 1, 1, 2, None)
    return {spec.name: spec for spec in specs_of(plan, folder, data)}


def changed(folder: Path, *change: str) -> Path:
    """A folder with another form of the shipped study."""
    text = STUDY.read_text().replace("../oc20", str(ROOT / "configs" / "oc20"))
    (folder / "dense.yml").write_text(text.replace(*change))
    return folder


def test_the_fine_tuned_run_sees_id_systems_alone(prepared, tmp_path):
    found = specs(prepared)
    tuned = found["faenet_ft"]
    assert tuned.stage is not None
    assert "is2re/train" in tuned.stage.config()["dataset"]["train"]["src"]
    source = tuned.config()["dataset"]["train"]["src"]
    assert source.endswith("dense_splits/finetune/train/data.lmdb")
    assert tuned.config()["model"]["heads"] is None  # the trained head goes on
    summary = json.loads((prepared / SPLITS / "splits.json").read_text())
    seen = set(read_targets(source)[1])
    assert seen == set(summary["finetune"][0]) < set(summary["systems"]["id"])
    for split in ("ood_ads", "ood_cat", "ood_both"):
        assert not seen & set(read_targets(tuned.splits[split])[1])
        assert tuned.splits[split].endswith(f"dense_splits/{split}/data.lmdb")


def test_a_variant_may_start_from_another(prepared, tmp_path):
    """One training for both: the stage is the variant's own run."""
    text = "starts_from: pretraining", "starts_from: faenet_noisy"
    found = specs(prepared, changed(tmp_path, *text))
    tuned, base = found["faenet_ft"], found["faenet_noisy"]
    assert tuned.stage.key() == base.key()
    assert tuned.with_seed(2).stage.key() == base.with_seed(2).key() != base.key()


def test_a_chain_of_variants_is_refused(prepared, tmp_path):
    text = "faenet_noisy:\n", "faenet_noisy:\n    starts_from: faenet_ft\n"
    with pytest.raises(ValueError, match="'faenet_ft', only schnet, dimenet, faenet, pretraining"):
        specs(prepared, changed(tmp_path, *text))


def test_preparing_again_writes_nothing(prepared):
    before = {path: path.stat().st_mtime_ns for path in (prepared / SPLITS).rglob("*.lmdb")}
    prepare_dense(prepared)
    assert {path: path.stat().st_mtime_ns for path in (prepared / SPLITS).rglob("*.lmdb")} == before


@pytest.fixture
def own_data(prepared, tmp_path) -> Path:
    """The data set with files of its own, its splits prepared and mixed."""
    data = tmp_path / "own"
    data.mkdir()
    shutil.copytree(prepared / "dense", data / "dense")
    for name in ("is2re", "oc20_data_mapping.pkl"):
        (data / name).symlink_to(prepared / name)
    prepare_mixed(data)
    return data


def written(data: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (data / SPLITS).rglob("*.lmdb")}


def test_other_targets_are_other_splits_and_other_runs(own_data):
    """One energy in the table is another: it is in the splits, and no run or measurement of
    before is taken for one of now."""
    before, source = specs(own_data), own_data / "dense" / "oc20dense_targets.pkl"
    mixed = own_data / SPLITS / "mixed" / "train" / "data.lmdb"
    old = mixed.read_bytes()
    targets = pickle.loads(source.read_bytes())
    seen = read_targets(before["faenet_ft"].config()["dataset"]["train"]["src"])[1]
    system = next(iter(seen))
    config = next(iter(seen[system]))
    targets[system] = [(n, e + 0.5 * (n == config)) for n, e in targets[system]]
    source.write_bytes(pickle.dumps(targets))
    keys = {name: spec.key() for name, spec in before.items()}
    prepare_mixed(own_data)
    after = specs(own_data)
    now = read_targets(after["faenet"].splits["id"])[1]
    assert now[system][config] == pytest.approx(seen[system][config] + 0.5)
    assert mixed.read_bytes() != old
    assert not keys.items() & {name: spec.key() for name, spec in after.items()}.items()
    made = written(own_data)
    prepare_mixed(own_data)
    assert written(own_data) == made


def test_a_split_that_nothing_is_in_any_more_is_gone(own_data):
    source = own_data / "dense" / "oc20dense_targets.pkl"
    both = set(read_targets(str(own_data / SPLITS / "ood_both" / "data.lmdb"))[1])
    targets = pickle.loads(source.read_bytes())
    source.write_bytes(pickle.dumps({key: targets[key] for key in targets.keys() - both}))
    prepare_dense(own_data)
    assert not (own_data / SPLITS / "ood_both").exists()


@pytest.mark.parametrize("summary", [lambda s: {k: s[k] for k in s if k != "sources"}, lambda s: 1])
def test_splits_that_do_not_say_of_what_are_made_anew_and_the_same(own_data, summary):
    """Those of before that was kept: runs on them go on counting."""
    path, made = own_data / SPLITS / "splits.json", written(own_data)
    whole = json.loads(path.read_text())
    keys = {name: spec.key() for name, spec in specs(own_data).items()}
    path.write_text(json.dumps(summary(whole)))
    prepare_dense(own_data)
    assert json.loads(path.read_text()) == whole
    assert written(own_data) != made
    assert {name: spec.key() for name, spec in specs(own_data).items()} == keys


def test_splits_of_another_definition_are_left(own_data):
    path, made = own_data / SPLITS / "splits.json", written(own_data)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"definition": "validation"}))
    (own_data / "dense" / "oc20dense_targets.pkl").write_bytes(b"other")
    prepare_dense(own_data)
    assert written(own_data) == made


@pytest.fixture(scope="module")
def finished(dense_tiny, tmp_path_factory) -> tuple[RunSpec, dict, dict[str, float]]:
    """A run's folder with random predictions, its spec, result, and the predictions by sid."""
    folder = tmp_path_factory.mktemp("run")
    spec = specs(dense_tiny)["faenet"]
    rng = np.random.default_rng(0)
    every = {}
    for split, src in spec.splits.items():
        places, targets = read_targets(src)
        energy = {
            sid: targets[system][config] + 0.1 * rng.normal()
            for sid, (system, config) in places.items()
        }
        np.savez(
            folder / f"predictions_{split}.npz",
            ids=np.array(list(energy)),
            energy=np.array(list(energy.values())),
        )
        every |= energy
    return spec, {"checkpoint": str(folder / "checkpoints" / "run" / "checkpoint.pt")}, every


def test_the_measurement_says_what_evaluate_says(prepared, finished, tmp_path):
    spec, result, every = finished
    found = dense_of(spec, result)
    ids, energy = np.array(list(every)), np.array(list(every.values()))
    np.savez(tmp_path / "p.npz", ids=ids, energy=energy)
    own = prepared / "dense" / "oc20dense_"
    args = ["--predictions", tmp_path / "p.npz", "--targets", f"{own}targets.pkl"]
    args += ["--mapping", f"{own}mapping.pkl", "--splits", prepared / SPLITS]
    args += ["--json", tmp_path / "r.json"]
    done = CliRunner().invoke(main, ["dense", "evaluate", *map(str, args)])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "r.json").read_text())["splits"]
    for split in spec.splits:
        rate = report[split]["scores"]["success_proxy"]["value"]
        assert found[f"{split} SR (proxy) %"] == pytest.approx(100 * rate)
        share = report[split]["scores"]["found@1"]["value"]
        assert found[f"{split} minimum found %"] == pytest.approx(100 * share)
    for key, heading, factor in TOGETHER:
        value = report["overall"]["scores"][key]["value"]
        assert found[heading] == pytest.approx(factor * value)


def test_reference_rows(finished):
    spec, result, _ = finished
    perfect, chance = dense_references(spec)
    targets = read_targets(spec.splits["ood_cat"])[1]
    shares = [
        np.mean([success(energy, min(own.values()))[0] for energy in own.values()])
        for own in targets.values()
    ]
    assert perfect["measured"]["ood_cat SR (proxy) %"] == 100.0
    assert perfect["splits"]["id"] == {"energy_mae": 0.0}
    assert chance["measured"]["ood_cat SR (proxy) %"] == pytest.approx(100 * np.mean(shares))
    assert 0 < np.mean(shares) < 1
    row = {
        "label": "ours", "parameters": 10, "train_rate": None, "eval_rate": (1.0, 0.0),
        "splits": {split: {"energy_mae": (0.5, 0.1)} for split in spec.splits},
        "average": (0.5, 0.1), "measured": {k: (v, 0.0) for k, v in dense_of(spec, result).items()},
    }  # fmt: skip
    report = {
        "split_sizes": dict.fromkeys(spec.splits, 1), "metrics": {"energy_mae": "MAE (eV)"},
        "rows": [row], "references": [perfect, chance],
    }  # fmt: skip
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table_of(report).splitlines()
    ]
    assert {len(line) for line in lines} == {len(lines[0])}
    column = lines[0].index("ood_cat SR (proxy) %")
    assert [line[0] for line in lines[2:]] == ["ours", "perfect oracle", "random choice"]
    assert lines[3][column] == "100.0"
    assert lines[4][column] == f"{100 * np.mean(shares):.1f}"


def test_predictions_that_are_gone_are_one_line(prepared, tmp_path):
    spec = specs(prepared)["faenet"]
    result = place(tmp_path / "a", spec, truth(spec))
    path = tmp_path / "a" / "predictions_ood_ads.npz"
    path.write_bytes(path.read_bytes()[:-40])
    remedy = f"remove {tmp_path / 'a' / 'result.json'}, and the run predicts again"
    for state in ("not a complete .npz file (File is not a zip file)", "no such file"):
        with pytest.raises(ValueError) as caught:
            dense_of(spec, result)
        assert str(caught.value) == f"{path}: {state}; {remedy}"
        path.unlink(missing_ok=True)


def test_a_split_of_something_else_is_refused(tiny_data):
    with pytest.raises(ValueError, match="record 0 has no system_id; split with: ocp-faenet dense"):
        read_targets(str(tiny_data / "is2re" / "val_id" / "data.lmdb"))


def place(folder: Path, spec: RunSpec, energies: dict[str, dict[str, dict[str, float]]]) -> dict:
    """The result of a run that predicted ``energies``, by split, system and configuration."""
    folder.mkdir(exist_ok=True)
    for split, src in spec.splits.items():
        where = read_targets(src)[0]
        said = [energies[split][system][config] for system, config in where.values()]
        np.savez(folder / f"predictions_{split}.npz", ids=np.array(list(where)), energy=said)
    return {"checkpoint": str(folder / "checkpoints" / "run" / "checkpoint.pt")}


def truth(spec: RunSpec) -> dict[str, dict[str, dict[str, float]]]:
    return {split: read_targets(src)[1] for split, src in spec.splits.items()}


def moved(energies: dict[str, dict[str, float]], by: float) -> dict[str, dict[str, float]]:
    return {name: {c: e + by for c, e in own.items()} for name, own in energies.items()}


def test_which_adsorbates_fail_and_how(prepared, tmp_path):
    """New ones 0.3 eV too high, in each of whose systems the best is hidden too, and known ones
    right: by hand."""
    spec = specs(prepared)["faenet"]
    mapping = read_mapping(prepared / "dense" / "oc20dense_mapping.pkl").values()
    adsorbate = {each.system_id: each.adsorbate for each in mapping}
    right = truth(spec)
    wrong = {split: moved(own, 0.3 if split in ("ood_ads", "ood_both") else 0.0)
             for split, own in right.items()}  # fmt: skip
    found = adsorbates_of(spec, place(tmp_path / "a", spec, wrong))
    new = [name for split in ("ood_ads", "ood_both") for name in right[split]]
    known = len(right["id"]) + len(right["ood_cat"])
    for name in ("SR", "valid", "found"):
        assert found[f"known adsorbates ({known}) {name} %"] == 100.0
    counts = Counter(adsorbate[name] for name in new)
    for name, count in counts.items():
        assert found[f"{name} ({count}) SR %"] == found[f"{name} ({count}) valid %"] == 0.0
        assert found[f"{name} ({count}) found %"] == 100.0
        assert found[f"{name} ({count}) mean error (eV)"] == pytest.approx(0.3)
    assert found[f"known adsorbates ({known}) mean error (eV)"] == 0.0
    # What is off by the same for all systems of an adsorbate is known from the others.
    helped = sum(count for count in counts.values() if count > 1)
    assert helped > 0
    assert found[f"new ({len(new)}), offset known: SR %"] == pytest.approx(100 * helped / len(new))
    # The worst configuration taken for the best, each with its own energy: valid, and not found.
    for split in ("ood_ads", "ood_both"):
        wrong[split] = {name: hidden(own) for name, own in right[split].items()}
    found = adsorbates_of(spec, place(tmp_path / "a", spec, wrong))
    every = {**right["ood_ads"], **right["ood_both"]}
    spread = {name: max(own.values()) - min(own.values()) > 0.2 for name, own in every.items()}
    assert any(spread.values())
    for name, count in counts.items():
        mine = [wide for system, wide in spread.items() if adsorbate[system] == name]
        assert found[f"{name} ({count}) valid %"] == 100.0
        assert found[f"{name} ({count}) found %"] == pytest.approx(100 * (1 - np.mean(mine)))


def hidden(own: dict[str, float]) -> dict[str, float]:
    """All but the worst predicted above it, where the worst is 0.2 eV above the best."""
    worst = max(own, key=lambda name: own[name])
    if own[worst] - min(own.values()) <= 0.2:
        return own
    return {name: energy if name == worst else own[worst] + 1.0 for name, energy in own.items()}


def test_differences_are_paired(prepared, tmp_path):
    """Two seeds, the second of which fails in one split in both rows, and one row fails in
    another: only that is a difference, and only its systems make an interval."""
    spec = specs(prepared)["faenet"]
    right = truth(spec)
    off = {**right, "ood_ads": moved(right["ood_ads"], 0.5)}
    worse = {**off, "ood_cat": moved(right["ood_cat"], 0.25)}
    some = sorted(right["ood_both"])[0]
    half = {**right, "ood_both": {**right["ood_both"], some: moved(right["ood_both"], 0.5)[some]}}

    def row(name: str, *seeds: dict) -> list:
        made = [place(tmp_path / f"{name}{seed}", spec, each) for seed, each in enumerate(seeds)]
        return [(spec.with_seed(seed), each) for seed, each in enumerate(made)]

    found = dense_difference(row("a", half, worse), row("b", right, off, worse))
    assert found["id SR (proxy) %"] == Estimate(0.0, 0.0, 0.0)
    assert found["ood_ads SR (proxy) %"] == Estimate(0.0, 0.0, 0.0)
    assert found["ood_cat SR (proxy) %"] == Estimate(-50.0, -50.0, -50.0)
    many = len(right["ood_both"])
    both = found["ood_both SR (proxy) %"]
    assert both.value == pytest.approx(-50.0 / many)
    assert both.low < both.value < both.high == 0.0
    outside = {split: len(right[split]) for split in ("ood_ads", "ood_cat", "ood_both")}
    lost = -50.0 * outside["ood_cat"] - 50.0
    assert found["ood SR (proxy) %"].value == pytest.approx(lost / sum(outside.values()))
    assert found["ood minimum found %"] == Estimate(0.0, 0.0, 0.0)
    configs = {split: sum(map(len, right[split].values())) for split in outside}
    error = 0.125 * configs["ood_cat"] + 0.25 * len(right["ood_both"][some])
    assert found["ood MAE (eV)"].value == pytest.approx(error / sum(configs.values()))
    with pytest.raises(ValueError, match="no seed in common"):
        dense_difference(row("a", half)[:1], row("b", right, off)[1:])


def test_differences_in_a_study(tmp_path):
    text = "\ndifferences: [[faenet_ft, faenet_before]]\n"
    with pytest.raises(ValueError, match="differences: no variant 'faenet_before'"):
        read_plan(changed(tmp_path, "\nvariants:", f"{text}variants:") / "dense.yml")
    report = {"differences": [{"label": "a - b", "seeds": 3, "values": {
        "SR %": {"value": -12.5, "low": -25.0, "high": 0.0},
        "MAE": {"value": 0.0123, "low": -0.01, "high": 0.02},
        "none": {"value": None, "low": None, "high": None},
    }}]}  # fmt: skip
    header, _, row = differences_of(report).splitlines()[:3]
    assert [cell.strip() for cell in header.split("|")[3:-1]] == ["SR %", "MAE", "none"]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        "a - b", "3", "-12.5 [-25.0, +0.0]", "+0.012 [-0.010, +0.020]", "-",
    ]  # fmt: skip


def test_what_is_mixed(dense_tiny):
    """All of IS2RE's training set and the fine-tuning systems, in one batch, and nothing held
    out."""
    out = prepare_mixed(dense_tiny)
    with open_lmdb(dense_tiny / "is2re" / "train" / "data.lmdb") as known:
        sids = [int(record["sid"]) for record in known]
    places, _ = read_targets(str(out / "finetune" / "train" / "data.lmdb"))
    mixed = out / "mixed" / "train" / "data.lmdb"
    with open_lmdb(mixed) as records:
        every = list(records)
    assert [int(record["sid"]) for record in every] == sids + [int(sid) for sid in places]
    batch = Batch.from_data_list([Data(**every[0]), Data(**every[-1])])
    assert batch.y_relaxed.shape == (2,)
    with open_lmdb(out / "finetune" / "train" / "data.lmdb") as dense:
        last = list(dense)[-1]
    assert float(every[-1]["y_relaxed"]) == last["y_relaxed"]
    assert (every[-1]["pos"] == last["pos"]).all()
    written = mixed.stat().st_mtime_ns
    prepare_mixed(dense_tiny)
    assert mixed.stat().st_mtime_ns == written
