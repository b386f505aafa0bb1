"""The report by one command (issue 10, points 2 and 3): its verb, on both kinds of data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ocp_faenet.adapters.dense_study import read_targets
from ocp_faenet.adapters.plan import read_plan, specs_of
from ocp_faenet.adapters.runs import checkpoint_of
from ocp_faenet.cli import main, study_run
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.report_curves import PAIRS
from ocp_faenet.cli.report_pages import sections_of
from ocp_faenet.cli.report_plan import EWALD, Setting
from ocp_faenet.cli.report_sections import SECTIONS

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
#: All that the sections are made of.
PARTS = list(dict.fromkeys(part for section in SECTIONS.values() for part in section.parts))


def report(*args: object):
    return CliRunner().invoke(main, ["report", "--configs", str(CONFIGS), *map(str, args)])


# The verb


def finished(spec, folder: Path, rng: np.random.Generator) -> None:
    """What a run leaves, with numbers that were drawn."""
    folder.mkdir(parents=True)
    config = spec.config()
    splits = {}
    for split, src in spec.splits.items():
        names = ("energy_mae", "energy_mse", "forces_mae", "forces_cosine_similarity")
        scores = dict.fromkeys((*names, "energy_forces_within_threshold"), float(rng.random()))
        splits[split] = {**scores, "structures": 4, "samples_per_cpu_second": 10.0}
        if "dense_splits" in src:
            places, targets = read_targets(src)
            energy = [
                targets[system][name] + 0.1 * rng.normal() for system, name in places.values()
            ]
            file = folder / f"predictions_{split}.npz"
            np.savez(file, ids=np.array(list(places)), energy=energy)
    curve = [(step, float(1 + rng.random())) for step in range(1, 7)]
    result = {
        "parameters": 7, "model": config["model"], "batch_size": config["optim"]["batch_size"],
        "epochs": config["optim"]["max_epochs"], "train_size": 48, "splits": splits,
        "training": {"cpu_seconds": 60.0, "samples_per_cpu_second": 12.0},
        "curves": {f"{stage}/{key}": curve for stage in ("train", "val")
                   for key in ("energy_mae", "forces_mae")},
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    checkpoint_of(folder).parent.mkdir(parents=True)
    torch.save({}, checkpoint_of(folder))
    layers = {f"MAD {n}": 0.5 + n / 100 for n in range(17)}
    layers |= {f"spread {n}": 0.01 for n in range(17)}
    (folder / "measured_layers_1.json").write_text(json.dumps(layers))


@pytest.fixture(scope="module")
def runs(dense_tiny, tmp_path_factory) -> Path:
    """Folders of runs that look finished, all that a small report takes."""
    root = tmp_path_factory.mktemp("runs")
    setting, rng = Setting(dense_tiny, root, CONFIGS, root), np.random.default_rng(0)
    for part in PARTS:
        for spec in setting.study(part).specs:
            for each in filter(None, (spec.stage, spec)):
                if not each.folder(root).exists():
                    finished(each, each.folder(root), rng)
    return root


def test_the_whole_report_from_finished_runs(dense_tiny, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "ocp_faenet.cli.report_ewald.learned_filters",
        lambda checkpoint, norms: torch.stack([norms * 0 + 1, norms]),
    )
    document = tmp_path / "docs" / "page.md"
    document.parent.mkdir()
    document.write_text("before\n<!-- table:report -->\nold\n<!-- /table:report -->\nafter\n")
    args = ("--data", dense_tiny, "--out", tmp_path / "out", "--runs", runs, "--into", document)
    done = report(*args)
    assert done.exit_code == 0, done.output
    assert re.search(r"^0 of \d+ runs left: about 0 CPU minutes", done.output), done.output
    page = (tmp_path / "out" / "report.md").read_text()
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(content["sections"]) == list(SECTIONS)
    for name, made in content["sections"].items():
        assert "left_out" not in made, made
        assert f"## {SECTIONS[name].title}" in page
        assert SECTIONS[name].render(made) in page
    links = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page)
    assert sorted(links) == sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert len(links) == 5 + len(PAIRS)
    for link in links:
        assert (tmp_path / "out" / link).read_bytes().startswith(b"\x89PNG")
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    rows = content["sections"]["table1"]["study"]["rows"]
    assert [row["label"] for row in rows] == [
        "SchNet", "DimeNet++", "FAENet SFA", "FAENet SFA + Ewald", "PaiNN", "EquiformerV2, small"
    ]  # fmt: skip
    for energies in content["sections"]["figure5"]["energies"].values():
        reference = [each[0] for each in energies.values()]
        assert reference == sorted(reference)
    for name, pairs in PAIRS.items():
        panels = content["sections"][name]["panels"]
        assert [panel["title"] for panel in panels] == [
            pair.title.format(size=panel["train_size"])
            for pair, panel in zip(pairs, panels, strict=True)
        ]
        for pair, panel in zip(pairs, panels, strict=True):
            assert [line["label"] for line in panel["lines"]] == list(pair.lines.values())
            assert all(line["val"] and line["train"] for line in panel["lines"])
    assert {panel["split"] for panel in content["sections"]["finetuning_curves"]["panels"]} == {
        "id"
    }
    inside = sections_of(content, "images/report/")
    assert document.read_text() == (
        f"before\n<!-- table:report -->\n{inside}\n<!-- /table:report -->\nafter\n"
    )
    assert json.loads((document.parent / "results" / "report.json").read_text()) == content
    kept = re.findall(r"\((images/report/[^)]+)\)", inside)
    assert [Path(link).name for link in kept] == links
    assert all((document.parent / link).read_bytes() for link in kept)
    again = report(*args[:-2], "--only", "table1")
    assert again.exit_code == 0
    part = json.loads((tmp_path / "out" / "report.json").read_text())
    command = f"ocp-faenet report --data {dense_tiny} --out {tmp_path / 'out'}"
    assert content["command"] == f"{command} --configs {CONFIGS}"
    first = content["sections"]["table1"]["study"]
    anew = {**first, "command": f"{command} --only table1 --configs {CONFIGS}"}
    assert part["sections"].pop("table1")["study"] == anew
    del content["sections"]["table1"]
    assert part == content


def test_sections_by_name_and_pictures_that_need_no_run(dense_tiny, tmp_path):
    done = report("--data", dense_tiny, "--out", tmp_path, "--only", "figure3,figure1")
    assert done.exit_code == 0, done.output
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["figure1.png", "figure3.png", "report.json", "report.md"]
    assert "Table 1" not in (tmp_path / "report.md").read_text()


def test_what_is_absent_is_left_out_and_said(dense_tiny, tmp_path):
    part = tmp_path / "part"
    part.mkdir()
    (part / "is2re").symlink_to(dense_tiny / "is2re")
    args = ("--data", part, "--out", tmp_path / "out", "--runs", tmp_path / "runs")
    done = report(*args, "--only", "figure1,table2,force_curves")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "out" / "report.md").read_text()
    assert f"Left out: {part} has no dense: make an embedded set" in page
    assert f"force_curves: left out: {part} has no s2ef: " in done.output
    assert "## Figure 1" in page
    alone = report(*args, "--only", "table2")
    assert alone.exit_code == 2
    assert len(alone.output.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_a_run_that_fails_takes_its_section_alone(dense_tiny, runs, tmp_path, monkeypatch):
    def fail(specs, root, jobs, title):
        raise BadInputError(f"{specs[0].name}, seed 0: no memory (log: x)")

    monkeypatch.setattr(study_run, "run_study", fail)
    args = ("--data", dense_tiny, "--out", tmp_path, "--runs", runs, "--only", "table1,figure3")
    done = report(*args)
    assert done.exit_code == 1
    page = (tmp_path / "report.md").read_text()
    assert "Left out: schnet, seed 0: no memory (log: x)." in page
    assert "figure3.png" in page


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--only", "table3"), "--only table3: the sections are figure1, table1"),
        (("--data", "nowhere"), "--data nowhere: no such folder"),
        (("--into", ROOT / "README.md"), "README.md: no lines <!-- table:report -->"),
    ],
)
def test_bad_input_is_one_line(dense_tiny, tmp_path, args, message):
    done = report("--data", dense_tiny, "--out", tmp_path / "out", *args)
    assert done.exit_code == 2
    assert message in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


# Real OC20


def test_real_oc20_at_the_places_of_the_download_script(dense_tiny, tmp_path):
    oc20 = tmp_path / "data"
    for size in ("10k", "all"):
        place = oc20 / "is2re" / size
        place.mkdir(parents=True)
        (place / "train").symlink_to(
            dense_tiny / "is2re" / ("train" if size == "10k" else "val_id")
        )
    for split in ("val_id", "val_ood_ads", "val_ood_cat", "val_ood_both"):
        (oc20 / "is2re" / "all" / split).symlink_to(dense_tiny / "is2re" / split)
    embedded = Setting(dense_tiny, tmp_path, CONFIGS, tmp_path).study(EWALD)
    found = Setting(oc20, tmp_path, CONFIGS, tmp_path, size="10k").study(EWALD)
    assert [spec.key() for spec in found.specs] == [spec.key() for spec in embedded.specs]
    other = Setting(oc20, tmp_path, CONFIGS, tmp_path, size="all").study(EWALD)
    assert other.specs[0].config()["dataset"]["train"]["sample_n"] == 16
    with pytest.raises(FileNotFoundError, match="is2re/100k/train"):
        specs_of(read_plan(CONFIGS / EWALD.file), CONFIGS / "studies", oc20, "100k")
    with pytest.raises(BadInputError, match="is2re/100k/train"):
        Setting(oc20, tmp_path, CONFIGS, tmp_path, size="100k").study(EWALD)
    args = ("--data", oc20, "--out", tmp_path / "out", "--runs", tmp_path / "runs")
    done = report(*args, "--only", "figure1,table2,force_curves")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "figure1.png").is_file()
