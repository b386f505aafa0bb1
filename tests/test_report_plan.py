"""What the report is made of: where data are, how much is trained, what it would take."""

from __future__ import annotations

from pathlib import Path

import pytest

from ocp_faenet.adapters import plan
from ocp_faenet.cli import report_plan
from ocp_faenet.cli.report_curves import PAIRS
from ocp_faenet.cli.report_plan import EWALD, FRAMES, LABELS, RATES, Setting, estimate
from ocp_faenet.cli.report_sections import SECTIONS
from ocp_faenet.cli.study_budget import START, minutes_of
from ocp_faenet.data.places import find_lmdb, training_lmdb

CONFIGS = Path(__file__).parent.parent / "configs"
#: All that the sections are made of.
PARTS = list(dict.fromkeys(part for section in SECTIONS.values() for part in section.parts))


# Where data are


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def test_data_are_found_in_both_layouts(tmp_path):
    own = touch(tmp_path / "emt" / "is2re" / "train" / "data.lmdb")
    assert find_lmdb(tmp_path / "emt", "is2re", "train") == own
    oc20 = tmp_path / "oc20"
    small = touch(oc20 / "is2re" / "10k" / "train" / "data.lmdb")
    whole = touch(oc20 / "is2re" / "all" / "train" / "data.lmdb")
    val = touch(oc20 / "is2re" / "all" / "val_id" / "data.lmdb")
    assert find_lmdb(oc20, "is2re", "train") == small
    assert find_lmdb(oc20, "is2re", "train", "all") == whole
    assert find_lmdb(oc20, "is2re", "val_id", "10k") == val
    several = touch(oc20 / "s2ef" / "200k" / "train" / "data.0001.lmdb").parent
    assert find_lmdb(oc20, "s2ef", "train") == several
    assert find_lmdb(oc20, "s2ef", "val_id") == oc20 / "s2ef" / "val_id" / "data.lmdb"


def test_a_size_is_that_size_or_none(tmp_path):
    small = touch(tmp_path / "is2re" / "10k" / "train" / "data.lmdb")
    assert training_lmdb(tmp_path, "is2re", "10k") == small
    assert training_lmdb(tmp_path, "is2re") == small
    with pytest.raises(FileNotFoundError, match=r"of all training structures in .*is2re/all/train"):
        training_lmdb(tmp_path, "is2re", "all")
    own = touch(tmp_path / "is2re" / "train" / "data.lmdb")
    assert training_lmdb(tmp_path, "is2re") == own
    assert training_lmdb(tmp_path, "is2re", "10k") == find_lmdb(tmp_path, "is2re", "train", "10k")
    assert training_lmdb(tmp_path, "is2re", "10k") == small, "the size, not the embedded set"
    made = touch(tmp_path / "dense_splits" / "finetune" / "train" / "data.lmdb")
    assert training_lmdb(tmp_path, "dense_splits/finetune", "10k") == made


# The budget


def test_the_estimate_is_start_training_and_evaluation(dense_tiny, tmp_path):
    setting = Setting(dense_tiny, tmp_path, CONFIGS, tmp_path / "runs")
    study = setting.study(EWALD)
    assert [spec.name for spec in study.specs] == ["without", "cutoff"]
    cost = minutes_of(study.specs, setting.runs, {"without": (24.0, 8.0)})
    assert (cost.runs, cost.left, cost.unknown) == (2, 2, 1)
    # 48 structures, 12 epochs, each with 16 of val_id; 4 splits of 16, scored and predicted.
    seconds = START + 12 * 48 / 24 + (12 * 16 + 2 * 4 * 16) / 8
    assert cost.minutes == pytest.approx(seconds / 60)
    specs = [spec for part in PARTS for spec in setting.study(part).specs]
    assert {each.name for spec in specs for each in (spec, spec.stage) if each} <= set(RATES)
    assert estimate(setting, [EWALD]).startswith("2 of 2 runs left: about ")


def test_a_small_budget_is_one_seed_and_a_full_one_what_the_files_say(dense_tiny, tmp_path):
    small = Setting(dense_tiny, tmp_path, CONFIGS, tmp_path).study(FRAMES)
    full = Setting(dense_tiny, tmp_path, CONFIGS, tmp_path, small=False).study(FRAMES)
    assert [spec.seed for spec in small.specs] == [0, 0, 0]
    assert [spec.seed for spec in full.specs] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert {spec.config()["optim"]["max_epochs"] for spec in full.specs} == {12}
    assert {spec.config()["dataset"]["train"]["sample_n"] for spec in full.specs} == {48}


@pytest.mark.parametrize("small", [True, False])
def test_variants_with_their_own_numbers_of_structures_get_at_most_what_there_is(
    dense_tiny, tmp_path, small, monkeypatch
):
    study = Setting(dense_tiny, tmp_path, CONFIGS, tmp_path, small=small).study(LABELS)
    assert {spec.config()["dataset"]["train"]["sample_n"] for spec in study.specs} == {48}
    monkeypatch.setattr(report_plan, "count_records", lambda src: 999)
    monkeypatch.setattr(plan, "count_records", lambda src: 999)
    study = Setting(dense_tiny, tmp_path, CONFIGS, tmp_path, small=small).study(LABELS)
    optims = {spec.name: spec.config()["optim"]["max_epochs"] for spec in study.specs}
    sizes = {spec.name: spec.config()["dataset"]["train"]["sample_n"] for spec in study.specs}
    assert sizes == {
        "scratch_100": 100, "tuned_100": 100, "scratch_1000": 999, "tuned_1000": 999
    }  # fmt: skip
    assert (optims["scratch_100"], optims["scratch_1000"]) == ((20, 12) if small else (60, 12))


#: Of a run: whether it has the improvement that begins a pair's title.
HAS = {
    "Frame averaging": lambda spec: spec.config()["model"]["fa_method"] == "stochastic",
    "Learned canonicalisation": lambda spec: spec.config()["model"]["fa_method"] == "learned",
    "Noisy Nodes": lambda spec: (
        "noisy_nodes" in spec.config()["dataset"]["train"].get("transforms", {})
    ),
    "Denoising pre-training": lambda spec: (
        spec.stage is not None and "denoising" in spec.stage.config()["model"]["heads"]
    ),
    "Ewald messages": lambda spec: bool(spec.config()["model"].get("ewald")),
    "Energy conservation": lambda spec: (
        spec.config()["model"]["regress_forces"] == "direct_with_gradient_target"
    ),
    "Fine-tuning": lambda spec: (
        spec.stage is not None and "energy" in spec.stage.config()["model"]["heads"]
    ),
}


@pytest.mark.parametrize("title", HAS)
def test_the_lines_of_a_pair_are_without_and_with_its_improvement(dense_tiny, tmp_path, title):
    setting = Setting(dense_tiny, tmp_path, CONFIGS, tmp_path)
    mine = [pair for pairs in PAIRS.values() for pair in pairs if pair.title.startswith(title)]
    assert mine
    for pair in mine:
        runs = {spec.name: spec for spec in setting.study(pair.part).specs}
        assert [HAS[title](runs[name]) for name in pair.lines] == [False, True]
        training = [runs[name].config()["optim"]["max_epochs"] for name in pair.lines]
        assert len(set(training)) == 1


def test_every_pair_is_of_an_improvement():
    titles = [pair.title for pairs in PAIRS.values() for pair in pairs]
    assert all(title.startswith(tuple(HAS)) for title in titles)
