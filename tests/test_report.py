"""The report by one command (issue 10, points 2 and 3): its numbers, its sections, its verb."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.integrate import quad

from ocp_faenet.adapters.dense_study import read_targets
from ocp_faenet.cli import main, study_run
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.report import sections_of
from ocp_faenet.cli.report_curves import mean_of, trained, validated
from ocp_faenet.cli.report_ewald import madelung_error
from ocp_faenet.cli.report_frames import framed
from ocp_faenet.cli.report_plan import (
    DEPTH,
    EWALD,
    FORCES,
    FRAMES,
    RATES,
    TABLE1,
    TABLE2,
    Setting,
    estimate,
)  # fmt: skip
from ocp_faenet.cli.report_sections import SECTIONS
from ocp_faenet.cli.report_tables import published, render_table1, render_table2
from ocp_faenet.cli.study_budget import START, minutes_of
from ocp_faenet.data.dense_prepare import prepare_dense
from ocp_faenet.data.places import find_lmdb
from ocp_faenet.geometry import ewald_split
from plugin_fixtures import slab_record

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"


def report(*args: object):
    return CliRunner().invoke(main, ["report", "--configs", str(CONFIGS), *map(str, args)])


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


# Figure 3


@pytest.mark.parametrize("alpha", [0.4, 0.8])
def test_both_parts_are_the_interaction_in_both_spaces(alpha):
    r = torch.tensor([0.0, 0.1, 1.0, 5.0], dtype=torch.float64)
    long = ewald_split.long_range(r, alpha)
    assert float(long[0]) == pytest.approx(2 * alpha / math.sqrt(math.pi))
    torch.testing.assert_close(long[1:] + ewald_split.short_range(r[1:], alpha), 1 / r[1:])
    for k in (0.3, 1.7):
        short = quad(
            lambda x, k=k: 4 * math.pi * math.sin(k * x) / k * math.erfc(alpha * x),
            0,
            60,
            limit=400,
        )[0]
        wave = torch.tensor(k, dtype=torch.float64)
        long_k = float(ewald_split.long_range_transform(wave, alpha))
        assert short + long_k == pytest.approx(4 * math.pi / k**2, rel=1e-8)


def crystal(kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """Positions, charges, cell of edge 1 Å times a shear, and the energy in e²/Å."""
    cell = torch.eye(3, dtype=torch.float64)
    if kind == "CsCl":
        positions = torch.tensor([[0.0, 0, 0], [0.5, 0.5, 0.5]], dtype=torch.float64)
        return positions, torch.tensor([1.0, -1.0]).double(), cell, -1.76267477 / math.sqrt(0.75)
    corners = torch.cartesian_prod(*[torch.arange(2)] * 3)
    charges = (1 - 2 * (corners.sum(-1) % 2)).double()
    return corners / 2 + 0.3, charges, cell, -4 * 1.74756459 / 0.5


@pytest.mark.parametrize("kind", ["CsCl", "NaCl"])
@pytest.mark.parametrize("alpha", [2.5, 4.0])
def test_the_sums_give_madelungs_constants(kind, alpha):
    positions, charges, cell, exact = crystal(kind)
    for basis in (cell, torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 1]]).double()):
        found = ewald_split.ewald_energy(positions.double(), charges, basis, alpha, 2.4, 45.0)
        assert found.total / ewald_split.COULOMB == pytest.approx(exact, abs=1e-7)
    r, pairs = ewald_split.pair_distances(positions.double(), cell, 1.01)
    near = {"CsCl": 2 * (8 + 6), "NaCl": 8 * (6 + 12 + 8 + 6)}[kind]
    assert len(r) == len(pairs) == near
    with pytest.raises(ValueError, match="their sum is 2"):
        ewald_split.ewald_energy(positions.double()[:2], torch.ones(2).double(), cell, 1, 1, 9)


def test_a_cutoff_on_the_whole_interaction_does_not_converge():
    assert madelung_error(6.0, 3.0) < 1e-3
    assert madelung_error(12.0, 6.0) < 1e-8
    assert madelung_error(12.0, None) > 0.1


# Figure 1


def test_a_structure_is_the_same_in_its_frames_however_it_is_turned():
    record = slab_record(0)
    found = framed(record.to_dict())
    assert found["frames"].shape == (4, 3, 3)
    assert found["agreement"] < 1e-9
    centred = found["positions"] - found["positions"].mean(0)
    for frame, posed in zip(found["frames"], found["posed"], strict=True):
        np.testing.assert_allclose(posed, centred @ frame, atol=1e-12)
        np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-12)
        moment = posed[:, :2].T @ posed[:, :2]
        assert abs(moment[0, 1]) < 1e-8 * moment[0, 0], "not principal axes"
    spread = found["spread"]
    assert spread[0] >= spread[1]
    assert spread[0] == pytest.approx(found["posed"][2][:, 0].std())
    other = np.abs(found["posed"][0] - found["posed"][1]).max()
    assert other > 0.5, "frames that do not differ"


# Training curves


def test_curves_are_means_of_epochs_and_end_with_the_last_weights():
    """Errors of single steps come out of the host's running means, which start anew."""
    steps, size, batch = 2 * 51, 202, 4  # 51 steps an epoch, the last of two structures
    rng = np.random.default_rng(0)
    errors, weights = rng.random(steps), np.full(steps, batch)
    weights[[50, 101]] = 2
    means = []
    for step in range(1, steps + 1):
        begin = 100 if step > 100 else 30 if step > 30 else 0
        means.append(np.average(errors[begin:step], weights=weights[begin:step]))
    result = {
        "train_size": size, "batch_size": batch, "epochs": 2, "training": {"resumed_at_step": 30},
        "curves": {
            "train/e": list(zip(range(1, steps + 1), means, strict=True)), "val/e": [(51, 2.5)]
        },
        "splits": {"val_id": {"e": 0.75}, "val_ood": {"e": 9.0}},
    }  # fmt: skip
    halves = [np.average(errors[part], weights=weights[part])
              for part in (slice(0, 51), slice(51, 102))]  # fmt: skip
    found = trained(result, "e")
    assert [epoch for epoch, _ in found] == [1.0, 2.0]
    assert [error for _, error in found] == pytest.approx(halves, abs=1e-12)
    assert validated(result, "e") == [(1.0, 2.5), (2.0, 0.75)]
    assert trained(result, "f") == []
    assert mean_of([[(1.0, 2.0), (2.0, 4.0)], [(2.0, 2.0), (3.0, 1.0)]]) == [(2.0, 3.0)]


# Tables


def made_up(variants: dict[str, str], splits: list[str], keys: list[str]) -> dict:
    """A study's report in which every number is another one."""
    count = iter(range(1, 1000))
    rows = [
        {
            "variant": variant, "label": label, "parameters": 1000 + next(count), "epochs": 8,
            "train_rate": None if variant == "painn" else (100.0 + next(count), 0.0),
            "eval_rate": (200.0 + next(count), 0.0),
            "splits": {s: {key: (next(count) / 1000, 0.0) for key in keys} for s in splits},
            "average": (0.5, 0.0),
            "measured": {f"{s} SR (proxy) %": (next(count) / 10, 0.5) for s in splits},
        }
        for variant, label in variants.items()
    ]  # fmt: skip
    return {
        "title": "t", "command": "ocp-faenet report", "data": "demo", "machine": "a machine",
        "seeds": 1, "train_size": 1000, "split_sizes": dict.fromkeys(splits, 7), "rows": rows,
        "metrics": {"energy_mae": "MAE (eV)", "energy_mse": "MSE (eV²)"},
    }  # fmt: skip


def cells_of(text: str, label: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {label} "))
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_table_1_has_the_reports_numbers_in_the_row_of_the_same_model():
    variants = {"schnet": "SchNet", "faenet": "FAENet SFA", "painn": "PaiNN"}
    study = made_up(variants, ["val_id", "val_ood"], ["energy_mae", "energy_mse"])
    text = render_table1({"study": study, "published": published("table1")})
    schnet = study["rows"][0]
    mae, mse = (schnet["splits"]["val_id"][key][0] for key in ("energy_mae", "energy_mse"))
    assert cells_of(text, "SchNet") == [
        "SchNet", f"{schnet['train_rate'][0]:.0f}", f"{schnet['eval_rate'][0]:.0f}",
        f"{mae:.3f}", f"{mse:.3f}", "3070", "0.66", "0.99",
    ]  # fmt: skip
    assert cells_of(text, "PaiNN")[1] == "-"
    assert cells_of(text, "PaiNN")[5:] == ["-", "-", "-"]
    assert "SchNet, FAENet SFA here; FAENet SFA, SchNet in the report" in text
    assert "Why they differ: the report trained on OC20's IS2RE" in text
    assert "1,000 structures of the demo set, 8 epochs" in text


def test_table_2_has_the_reports_table_below_it():
    variants = {"schnet": "SchNet", "faenet": "FAENet", "faenet_ft": "FAENet-ft"}
    splits = ["id", "ood_ads", "ood_cat", "ood_both"]
    study = made_up(variants, splits, ["energy_mae"])
    study["metrics"] = {"energy_mae": "MAE (eV)"}
    study["references"] = [
        {
            "label": "perfect oracle",
            "splits": {split: {"energy_mae": 0.0} for split in splits},
            "measured": {f"{split} SR (proxy) %": 100.0 for split in splits},
        }
    ]
    text = render_table2({"study": study, "published": published("table2")})
    ours, theirs = text.split("Table 2: OC20-Dense")
    row = study["rows"][1]
    expected = [
        cell
        for split in splits
        for cell in (
            f"{row['measured'][f'{split} SR (proxy) %'][0]:.1f} ± 0.5",
            f"{row['splits'][split]['energy_mae'][0]:.3f}",
        )
    ]
    assert cells_of(ours, "FAENet") == ["FAENet", *expected]
    assert cells_of(ours, "perfect oracle") == ["perfect oracle", *["100.0", "0.000"] * 4]
    assert cells_of(theirs, "FAENet") == [
        "FAENet", "7.79", "0.47", "4.89", "0.51", "8.04", "0.50", "7.29", "0.52"
    ]  # fmt: skip
    assert cells_of(theirs, "FAENet-ft")[1:4] == ["(train)", "(train)", "7.94"]


# The verb


@pytest.fixture(scope="module")
def data(tiny_data, tmp_path_factory) -> Path:
    """The tiny set with the splits of its dense part, which are not in the one that is shared."""
    folder = tmp_path_factory.mktemp("report") / "tiny"
    folder.mkdir()
    for path in tiny_data.iterdir():
        (folder / path.name).symlink_to(path)
    prepare_dense(folder)
    return folder


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
    layers = {f"MAD {n}": 0.5 + n / 100 for n in range(17)}
    layers |= {f"spread {n}": 0.01 for n in range(17)}
    (folder / "measured_layers_1.json").write_text(json.dumps(layers))


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory) -> Path:
    """Folders of runs that look finished, all that a small report takes."""
    root = tmp_path_factory.mktemp("runs")
    setting, rng = Setting(data, root, CONFIGS, root), np.random.default_rng(0)
    for part in (TABLE1, TABLE2, DEPTH, EWALD, FRAMES, FORCES):
        for spec in setting.study(part).specs:
            for each in filter(None, (spec.stage, spec)):
                if not each.folder(root).exists():
                    finished(each, each.folder(root), rng)
    return root


def test_the_whole_report_from_finished_runs(data, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "ocp_faenet.cli.report_ewald.learned_filters",
        lambda checkpoint, norms: torch.stack([norms * 0 + 1, norms]),
    )
    document = tmp_path / "docs" / "page.md"
    document.parent.mkdir()
    document.write_text("before\n<!-- table:report -->\nold\n<!-- /table:report -->\nafter\n")
    args = ("--data", data, "--out", tmp_path / "out", "--runs", runs, "--into", document)
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
    assert len(links) == 8
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
    assert list(part["sections"]) == ["table1"]
    assert part["command"] == "ocp-faenet report --budget small --only table1"
    first = content["sections"]["table1"]["study"]
    assert part["sections"]["table1"]["study"] == {**first, "command": part["command"]}


def test_sections_by_name_and_pictures_that_need_no_run(data, tmp_path):
    done = report("--data", data, "--out", tmp_path, "--only", "figure3,figure1")
    assert done.exit_code == 0, done.output
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["figure1.png", "figure3.png", "report.json", "report.md"]
    assert "Table 1" not in (tmp_path / "report.md").read_text()


def test_what_is_absent_is_left_out_and_said(data, tmp_path):
    part = tmp_path / "part"
    part.mkdir()
    (part / "is2re").symlink_to(data / "is2re")
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


def test_a_run_that_fails_takes_its_section_alone(data, runs, tmp_path, monkeypatch):
    def fail(specs, root, jobs, title):
        raise BadInputError(f"{specs[0].name}, seed 0: no memory (log: x)")

    monkeypatch.setattr(study_run, "run_study", fail)
    args = ("--data", data, "--out", tmp_path, "--runs", runs, "--only", "table1,figure3")
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
def test_bad_input_is_one_line(data, tmp_path, args, message):
    done = report("--data", data, "--out", tmp_path / "out", *args)
    assert done.exit_code == 2
    assert message in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


# The budget


def test_the_estimate_is_start_training_and_evaluation(data, tmp_path):
    setting = Setting(data, tmp_path, CONFIGS, tmp_path / "runs")
    study = setting.study(EWALD)
    assert [spec.name for spec in study.specs] == ["without", "cutoff"]
    cost = minutes_of(study.specs, setting.runs, {"without": (24.0, 8.0)})
    assert (cost.runs, cost.left, cost.unknown) == (2, 2, 1)
    # 48 structures, 12 epochs, each with 16 of val_id; 4 splits of 16, scored and predicted.
    seconds = START + 12 * 48 / 24 + (12 * 16 + 2 * 4 * 16) / 8
    assert cost.minutes == pytest.approx(seconds / 60)
    names = {spec.name for part in (TABLE1, TABLE2, DEPTH, EWALD, FRAMES, FORCES)
             for spec in setting.study(part).specs}  # fmt: skip
    assert names <= set(RATES)
    assert estimate(setting, [EWALD]).startswith("2 of 2 runs left: about ")


def test_a_small_budget_is_one_seed_and_a_full_one_what_the_files_say(data, tmp_path):
    small = Setting(data, tmp_path, CONFIGS, tmp_path).study(FRAMES)
    full = Setting(data, tmp_path, CONFIGS, tmp_path, small=False).study(FRAMES)
    assert [spec.seed for spec in small.specs] == [0, 0]
    assert [spec.seed for spec in full.specs] == [0, 0, 1, 1, 2, 2]
    assert {spec.config()["optim"]["max_epochs"] for spec in full.specs} == {12}
    assert {spec.config()["dataset"]["train"]["sample_n"] for spec in full.specs} == {48}


def test_published_numbers_are_those_of_the_report():
    first, second = published("table1"), published("table2")
    assert {key: list(row.values())[1:] for key, row in first["rows"].items()} == {
        "schnet": [3070, 0.66, 0.99], "dimenet_plus_plus": [251, 0.57, 0.93],
        "faenet": [2944, 0.55, 0.79], "faenet_ewald": [2476, 0.56, 0.81],
    }  # fmt: skip
    assert second["rows"]["dimenet"]["ood_both"] == [4.89, 0.55]
    assert {len(row) for row in second["rows"].values()} == {5}


def test_real_oc20_at_the_places_of_the_download_script(data, tmp_path):
    oc20 = tmp_path / "data"
    for size in ("10k", "all"):
        place = oc20 / "is2re" / size
        place.mkdir(parents=True)
        (place / "train").symlink_to(data / "is2re" / ("train" if size == "10k" else "val_id"))
    for split in ("val_id", "val_ood_ads", "val_ood_cat", "val_ood_both"):
        (oc20 / "is2re" / "all" / split).symlink_to(data / "is2re" / split)
    embedded = Setting(data, tmp_path, CONFIGS, tmp_path).study(EWALD)
    found = Setting(oc20, tmp_path, CONFIGS, tmp_path, size="10k").study(EWALD)
    assert [spec.key() for spec in found.specs] == [spec.key() for spec in embedded.specs]
    other = Setting(oc20, tmp_path, CONFIGS, tmp_path, size="all").study(EWALD)
    assert other.specs[0].config()["dataset"]["train"]["sample_n"] == 16
    args = ("--data", oc20, "--out", tmp_path / "out", "--runs", tmp_path / "runs")
    done = report(*args, "--only", "figure1,table2,force_curves")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "figure1.png").is_file()
