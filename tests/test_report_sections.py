"""What the report's figures, curves and tables are made of (issue 10, points 2 and 3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.data import chemical_symbols
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from scipy.integrate import quad

from ocp_faenet.cli import report_drawings
from ocp_faenet.cli.report_curves import mean_of, render_curves, trained, validated
from ocp_faenet.cli.report_drawings import curves_picture, frames_picture, split_picture
from ocp_faenet.cli.report_ewald import madelung_error
from ocp_faenet.cli.report_frames import framed
from ocp_faenet.cli.report_tables import published, render_table1, render_table2
from ocp_faenet.geometry import ewald_split
from plugin_fixtures import slab_record


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
    assert madelung_error(12.0, 6.0) < 1e-14, "a constant that is cut off"
    assert madelung_error(12.0, None) > 0.1


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


@pytest.mark.parametrize(
    ("resumed", "training"),
    [
        ([], {}),
        ([30, 70], {"resumed_at_step": 70, "resumed_at_steps": [30, 70]}),
        ([70], {"resumed_at_step": 70}),  # as runs of before have it
    ],
)
def test_curves_are_means_of_epochs_and_end_with_the_last_weights(resumed, training):
    """Errors of single steps come out of the host's running means, which start anew."""
    steps, size, batch = 2 * 51, 202, 4  # 51 steps an epoch, the last of two structures
    rng = np.random.default_rng(0)
    errors, weights = rng.random(steps), np.full(steps, batch)
    weights[[50, 101]] = 2
    means = []
    for step in range(1, steps + 1):
        begin = max(start for start in (0, *resumed, 100) if start < step)
        means.append(np.average(errors[begin:step], weights=weights[begin:step]))
    result = {
        "train_size": size, "batch_size": batch, "epochs": 2, "training": training,
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
    assert "Samples per second" not in ours, "of which there are none in it"
    assert "From the smallest mean MAE of the four splits to the largest: " in theirs
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
    assert "those of the study (`dense split --by training`" in ours
    assert cells_of(theirs, "FAENet-ft")[1:4] == ["(train)", "(train)", "7.94"]


def test_a_table_of_one_seed_has_no_deviation():
    study = made_up({"schnet": "SchNet", "faenet": "F"}, ["val_id"], ["energy_mae", "energy_mse"])
    text = render_table1({"study": study, "published": published("table1")})
    assert "`ocp-faenet report`: seed 0 alone, weights" in text
    assert "deviation" not in text
    three = render_table1({"study": {**study, "seeds": 3}, "published": published("table1")})
    assert "`ocp-faenet report`: mean ± standard deviation, seeds 0 to 2, weights" in three


@pytest.mark.parametrize(
    ("val", "train", "seeds", "said"),
    [
        ([(1.0, 2.0), (2.0, 1.0)], [(1.0, 3.0)], 3, ["Solid: ", "Dashed: ", "Means over seeds."]),
        ([(2.0, 1.0)], [(1.0, 3.0)], 1, ["Marks: ", "Dashed: "]),
        ([(2.0, 1.0)], [], 1, ["Marks: "]),
    ],
)
def test_the_words_below_curves_are_what_is_drawn(val, train, seeds, said):
    lines = [{"label": each, "train": train, "val": val, "seeds": seeds} for each in "ab"]
    note = "N." if seeds == 3 else None
    panel = {"title": "t", "label": "MAE", "split": "val_x", "train_size": "8", "note": note,
             "lines": lines}  # fmt: skip
    stamp = {"command": "ocp-faenet report", "data": "demo", "machine": "m"}
    text = render_curves({"panels": [panel], **stamp})
    words = ("Solid: ", "Marks: ", "Dashed: ", "Means over seeds.")
    assert [each for each in words if each in text] == said
    assert ("seeds 0 to 2). N.\n" if seeds == 3 else "seed 0 alone).\n") in text
    assert "- t: MAE on val_x after the last epoch: a 1.000, b 1.000 (8 training" in text
    assert text.endswith("`ocp-faenet report`: the demo set; m.")


def drawn(monkeypatch, draw: Callable[[Path], None], path: Path) -> Figure:
    """The figure that ``draw`` saves."""
    kept = []
    monkeypatch.setattr(report_drawings, "save", lambda figure, path: kept.append(figure))
    draw(path)
    kept[0].canvas.draw()
    return kept[0]


def test_lines_of_one_point_and_labels_without_markdown(tmp_path, monkeypatch):
    line = {"label": "`k_cutoff`", "train": [], "val": [(2.0, 1.0)], "seeds": 1}
    other = {**line, "label": "b", "val": [(1.0, 2.0), (2.0, 1.0)]}
    panels = [{"title": "t", "label": "MAE", "lines": [line, other]}] * 2
    figure = drawn(monkeypatch, lambda path: curves_picture(panels, path), tmp_path)
    one, two = figure.axes[0].get_lines()
    assert (one.get_label(), one.get_linestyle()) == ("k_cutoff", "None")
    assert two.get_linestyle() == "-"
    assert [each.get_text() for each in figure.axes[0].get_legend().get_texts()] == [
        "k_cutoff", "b"
    ]  # fmt: skip
    long = {**line, "train": [(1.0, 2.0)], "val": [(float(n), 1.0 / n) for n in range(1, 61)]}
    panels = [{"title": "t", "label": "MAE", "lines": [line, long]}]
    figure = drawn(monkeypatch, lambda path: curves_picture(panels, path), tmp_path)
    assert figure.axes[0].get_legend().get_texts()[-1].get_text() == "training set"
    assert max(each.get_markevery() or 1 for each in figure.axes[0].get_lines()) == 3
    assert figure.get_size_inches()[0] * 150 <= 1250


def test_symbols_stand_above_atoms_and_cell(tmp_path, monkeypatch):
    structure = framed(slab_record(0).to_dict())
    figure = drawn(monkeypatch, lambda path: frames_picture(structure, path), tmp_path)
    axis = figure.axes[0]
    symbols = [each for each in axis.texts if each.get_text() in chemical_symbols[1:]]
    assert len(symbols) == (structure["tags"] == 2).sum()
    circles = min(each.zorder for each in axis.patches if isinstance(each, Circle))
    (cell,) = (each for each in axis.get_lines() if each.get_linestyle() == "--")
    assert cell.zorder < circles < min(each.zorder for each in symbols)
    assert figure.get_size_inches()[0] * 150 <= 1250


def test_nothing_runs_through_the_legends_of_figure_3(tmp_path, monkeypatch):
    figure = drawn(
        monkeypatch, lambda path: split_picture([2.0, 3.0], [1.0, 1.0], [0.1, 0.0], path), tmp_path
    )
    for axis in figure.axes:
        assert axis.get_legend().get_window_extent().y1 < axis.get_window_extent().y0
    assert min(figure.axes[2].get_lines()[1].get_ydata()) > 0, "nought on a logarithmic axis"
    assert figure.get_size_inches()[0] * 150 <= 1250


def test_published_numbers_are_those_of_the_report():
    first, second = published("table1"), published("table2")
    assert {key: list(row.values())[1:] for key, row in first["rows"].items()} == {
        "schnet": [3070, 0.66, 0.99], "dimenet_plus_plus": [251, 0.57, 0.93],
        "faenet": [2944, 0.55, 0.79], "faenet_ewald": [2476, 0.56, 0.81],
    }  # fmt: skip
    assert second["rows"]["dimenet"]["ood_both"] == [4.89, 0.55]
    assert {len(row) for row in second["rows"].values()} == {5}
