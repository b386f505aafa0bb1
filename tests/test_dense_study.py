"""A study on OC20-Dense: what it prepares, trains from what, measures, and refers to (issue 7)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ocp_faenet.adapters.dense_study import TOGETHER, dense_of, dense_references, read_targets
from ocp_faenet.adapters.plan import read_plan, specs_of
from ocp_faenet.adapters.runs import RunSpec
from ocp_faenet.cli import main
from ocp_faenet.cli.study_report import table_of
from ocp_faenet.cli.study_run import shortened
from ocp_faenet.data.dense_prepare import SPLITS, prepare_dense
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


def test_a_split_of_something_else_is_refused(tiny_data):
    with pytest.raises(ValueError, match="record 0 has no system_id; split with: ocp-faenet dense"):
        read_targets(str(tiny_data / "is2re" / "val_id" / "data.lmdb"))
