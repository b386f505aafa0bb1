"""The report's two tables: our numbers, those of the report, and why they differ."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ocp_faenet.cli.output import markdown_table
from ocp_faenet.cli.report_plan import TABLE1, TABLE2, Setting
from ocp_faenet.cli.study_report import sentence_of, table_of, value

#: Heading of the success rate that `dense` measures.
RATE = "SR (proxy) %"
NONE = "-"


def published(table: str) -> dict[str, Any]:
    """The report's own ``table1`` or ``table2``, with ``source`` and ``where``."""
    file = importlib.resources.files("ocp_faenet.cli") / "published_tables.json"
    content = json.loads(file.read_text())
    return {"source": content["source"], **content[table]}


def make_table1(setting: Setting) -> dict[str, Any]:
    """Throughput and errors of every model."""
    return {"study": setting.outcome(TABLE1).report, "published": published("table1")}


def make_table2(setting: Setting) -> dict[str, Any]:
    """Success rates and errors on OC20-Dense."""
    return {"study": setting.outcome(TABLE2).report, "published": published("table2")}


def render_table1(content: Mapping[str, Any]) -> str:
    """Our rows with the report's numbers in the same row, then all four splits."""
    study, theirs = content["study"], content["published"]
    split = next(iter(study["split_sizes"]))
    ours = ["training samples/s", "inference samples/s", f"{split} MAE (eV)", f"{split} MSE (eV²)"]
    header = ["", *ours, "report: samples/s", "report: MAE (eV)", "report: MSE"]
    rows = []
    for row in study["rows"]:
        found = theirs["rows"].get(row["variant"], {})
        rates = [row["train_rate"], row["eval_rate"]]
        cells = [NONE if rate is None else f"{rate[0]:.0f}" for rate in rates]
        cells += [value(row["splits"][split][key]) for key in ("energy_mae", "energy_mse")]
        cells += [str(found.get(key, NONE)) for key in ("throughput", "mae", "mse")]
        rows.append([row["label"], *cells])
    maes = {row["variant"]: row["splits"][split]["energy_mae"][0] for row in study["rows"]}
    orders = _orders(study, maes, {key: row["mae"] for key, row in theirs["rows"].items()})
    return "\n\n".join(
        [
            markdown_table(header, rows),
            sentence_of(study),
            f'The columns *report* are {theirs["where"]} of "{theirs["source"]}". {orders} '
            + _why(study, "OC20's IS2RE training split (460,328 DFT relaxations)")
            + " Its throughput is of hardware that it does not name.",
            "All splits:",
            table_of(study),
        ]
    )


def render_table2(content: Mapping[str, Any]) -> str:
    """Our table in the report's columns, and the report's below it."""
    study, theirs = content["study"], content["published"]
    splits = list(study["split_sizes"])
    header = [""] + [f"{split} {what}" for split in splits for what in ("SR %", "MAE (eV)")]
    rows = [
        [row["label"], *_cells(row["measured"], row["splits"], splits)] for row in study["rows"]
    ]
    for row in study.get("references", ()):
        measured = {key: (number, 0.0) for key, number in row["measured"].items()}
        maes = {
            split: {key: (number, 0.0) for key, number in scores.items()}
            for split, scores in row["splits"].items()
        }
        rows.append([row["label"], *_cells(measured, maes, splits)])
    own = [[row["label"], *_published_cells(row, splits)] for row in theirs["rows"].values()]
    means = {
        row["variant"]: sum(row["splits"][split]["energy_mae"][0] for split in splits)
        for row in study["rows"]
    }
    known = {key: row for key, row in theirs["rows"].items() if row["id"] is not None}
    orders = _orders(
        study,
        means,
        {key: sum(row[s][1] for s in splits) for key, row in known.items()},
        "mean MAE of the four splits",
    )
    return "\n\n".join(
        [
            markdown_table(header, rows),
            sentence_of(study, rates=False)
            + " SR: the configuration of lowest predicted energy is predicted within 0.1 eV of its "
            "own target, and no more than 0.1 eV above the system's minimum. *FAENet-ft* has seen "
            "systems of the ID split. The splits are those of the study (`dense split --by "
            "training`: what occurs in the training set), not the report's (what occurs in OC20's "
            "validation splits).",
            f'{theirs["where"]} of "{theirs["source"]}":',
            markdown_table(header, own),
            f"{orders} "
            + _why(study, "OC20's IS2RE training split (460,328 DFT relaxations)")
            + " Its systems are those of OC20-Dense with DFT targets; here they are "
            f"{sum(study['split_sizes'].values()):,} configurations of the {study['data']} set.",
        ]
    )


def _cells(
    measured: Mapping[str, Any], maes: Mapping[str, Any], splits: Sequence[str]
) -> list[str]:
    cells = []
    for split in splits:
        mean, std = measured[f"{split} {RATE}"]
        cells.append(f"{mean:.1f}" + (f" ± {std:.1f}" if std else ""))
        cells.append(value(maes[split]["energy_mae"]))
    return cells


def _published_cells(row: Mapping[str, Any], splits: Sequence[str]) -> list[str]:
    pairs = [row[split] for split in splits]
    texts = [("(train)",) * 2 if p is None else (f"{p[0]:.2f}", f"{p[1]:.2f}") for p in pairs]
    return [cell for pair in texts for cell in pair]


def _why(study: Mapping[str, Any], theirs: str) -> str:
    """Why our numbers are not the report's."""
    epochs = sorted({row["epochs"] for row in study["rows"]})
    sizes = sorted(row["parameters"] for row in study["rows"])
    return (
        f"Why they differ: the report trained on {theirs}; here it is {study['train_size']:,} "
        f"structures of the {study['data']} set, {' or '.join(map(str, epochs))} epochs, models of "
        f"{sizes[0]:,} to {sizes[-1]:,} parameters, on {study['machine']}. Numbers are not "
        "to be compared across the two, only the order of the models within each."
    )


def _orders(
    study: Mapping[str, Any],
    ours: Mapping[str, float],
    theirs: Mapping[str, float],
    what: str = "MAE",
) -> str:
    """The models of both, from the smallest error to the largest, as each has them."""
    labels = {row["variant"]: row["label"] for row in study["rows"]}
    both = [key for key in ours if key in theirs]
    here = ", ".join(labels[key] for key in sorted(both, key=lambda key: ours[key]))
    there = ", ".join(labels[key] for key in sorted(both, key=lambda key: theirs[key]))
    return f"From the smallest {what} to the largest: {here} here; {there} in the report."
