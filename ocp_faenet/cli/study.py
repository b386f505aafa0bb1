"""``ocp-faenet study``: a table over seeds from one file."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from tqdm import tqdm

from ocp_faenet.adapters.measurements import MEASUREMENTS, REFERENCES, measure
from ocp_faenet.adapters.plan import StudyPlan, read_plan, specs_of
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.output import machine_class, write_json
from ocp_faenet.cli.study_budget import budget_of
from ocp_faenet.cli.study_report import insert, markdown_of, report_of
from ocp_faenet.cli.training import run_study
from ocp_faenet.data.dense_prepare import prepare_dense

_PATH = click.Path(path_type=Path)


@click.command(
    epilog="\b\nocp-faenet study configs/studies/frame_methods.yml\n"
    "ocp-faenet study configs/studies/frame_methods.yml --seeds 1 --epochs 1 --only det,all"
)
@click.argument("file", type=_PATH)
@click.option("--data", type=_PATH, help="Data set; data/emt/demo, or what FILE makes for itself.")
@click.option("--seeds", type=click.IntRange(min=1), help="Instead of the file's.")
@click.option("--epochs", type=click.IntRange(min=1), help="Instead of the file's, for all.")
@click.option("--sample", type=click.IntRange(min=1), help="Training structures, likewise.")
@click.option("--only", help="Variants to run, by commas; all if absent.")
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True)
@click.option(
    "--runs",
    type=_PATH,
    default=Path("runs/studies"),
    show_default=True,
    help="Finished runs are taken from here, unfinished ones go on.",
)
@click.option("--json", "json_path", type=_PATH, help="Write all numbers to this file.")
@click.option("--plot", type=_PATH, help="Draw errors by split and learning curves (PNG).")
@click.option("--curve", type=_PATH, help="Draw the curve that the file describes (PNG).")
@click.option("--budget", is_flag=True, help="Say what is left to run and its CPU time; no more.")
@click.option(
    "--into", type=_PATH, help="Replace the study's table in this document, between its markers."
)
def study(
    file: Path,
    data: Path | None,
    seeds: int | None,
    epochs: int | None,
    sample: int | None,
    only: str | None,
    jobs: int,
    runs: Path,
    json_path: Path | None,
    plot: Path | None,
    curve: Path | None,
    budget: bool,
    into: Path | None,
) -> None:
    """Train the variants that FILE names over seeds and print one table.

    Every run is the stock trainer in a process of its own with one thread, cached by the hash of
    its configuration, seed and data: a study that was interrupted goes on, and one that was
    changed trains only what changed. FILE is explained in docs/studies.md.
    """
    try:
        whole = read_plan(file)
        plan = shortened(whole, seeds, epochs, sample, only)
        data = data or _own_data(plan)
        if plan.prepare is not None:
            prepare_dense(data)
        specs = specs_of(plan, file.parent, data)
        asked = {name for key in plan.variants for name in plan.measurements_of(key)}
        if unknown := sorted(asked - set(MEASUREMENTS)):
            raise ValueError(f"{file}: measurements: no {unknown[0]}")
        if curve is not None and plan.curve is None:
            raise ValueError(f"--curve {curve}: {file} has no curve; see docs/studies.md")
        if into is not None:
            insert(into.read_text(), file.stem, "")
    except (ValueError, OSError) as error:
        raise BadInputError(str(error)) from error
    if budget:
        click.echo(budget_of(specs, runs))
        return
    results = [
        {**result, "name": spec.name}  # of a run that another study shares, if it has it cached
        for spec, result in zip(specs, run_study(specs, runs, jobs, plan.title), strict=True)
    ]
    folders = [spec.folder(runs) for spec in specs]
    measured = [
        _measure(plan.measurements_of(run[0].name), *run)
        for run in tqdm(
            list(zip(specs, results, folders, strict=True)),
            desc="Measuring",
            disable=not asked,
            file=sys.stderr,
        )
    ]
    stamp = {"command": f"ocp-faenet study {file}", "data": data.name, "machine": machine_class()}
    report = report_of(plan, results, measured, stamp)
    references = [row for n in plan.measurements for row in REFERENCES.get(n, _none)(specs[0])]
    if references:
        report["references"] = references
    if left := {key: each for key, each in whole.variants.items() if key not in plan.variants}:
        report["not_run"] = {key: each.label or key for key, each in left.items()}
    click.echo(f"{plan.title}\n\n{markdown_of(report)}")
    if json_path is not None:
        write_json(json_path, report)
    if plot is not None:
        _draw(report, results, plot)
    if curve is not None:
        _draw_curve(report, curve)
    if into is not None:
        into.write_text(insert(into.read_text(), file.stem, markdown_of(report)))


def _none(spec: Any) -> list[dict[str, Any]]:
    """The reference rows of a measurement that has none."""
    return []


def _own_data(plan: StudyPlan) -> Path:
    """Where the study's data are if the command line does not say; made if they are its own."""
    if plan.data is None:
        return Path("data/emt/demo")
    folder = Path("data") / plan.data
    if not folder.exists():
        from ocp_faenet.cli.data import make_charges

        make_charges(folder)
    return folder


def shortened(
    plan: StudyPlan, seeds: int | None, epochs: int | None, sample: int | None, only: str | None
) -> StudyPlan:
    """``plan`` with what the command line says instead."""
    variants = plan.variants
    if only is not None:
        if unknown := sorted(set(only.split(",")) - set(variants)):
            raise ValueError(f"--only {unknown[0]}: the variants are {', '.join(variants)}")
        variants = {key: variants[key] for key in variants if key in only.split(",")}
    given = {"seeds": seeds, "epochs": epochs, "sample": sample}
    # What the command line says of all takes the place of what a variant says of itself.
    own = {key: None for key in ("epochs", "sample") if given[key] is not None}
    variants = {key: each.model_copy(update=own) for key, each in variants.items()}
    stages = {key: each.model_copy(update=own) for key, each in plan.stages.items()}
    changes = {key: value for key, value in given.items() if value is not None}
    return plan.model_copy(update={**changes, "variants": variants, "stages": stages})


def _measure(names: Sequence[str], spec: Any, result: Any, folder: Path) -> dict[str, float]:
    values: dict[str, float] = {}
    for name in names:
        values |= measure(name, spec, result, folder)
    return values


def _draw(report: Mapping[str, Any], results: Sequence[Mapping[str, Any]], path: Path) -> None:
    from ocp_faenet.cli.pictures import comparison

    key, label = next(iter(report["metrics"].items()))
    errors = {
        row["label"]: {split: tuple(scores[key]) for split, scores in row["splits"].items()}
        for row in report["rows"]
    }
    labels = {row["variant"]: row["label"] for row in report["rows"]}
    curves: dict[str, list[list[tuple[float, float]]]] = {}
    for result in results:
        per_epoch = np.ceil(result["train_size"] / result["batch_size"])
        points = [(step / per_epoch, mae) for step, mae in result["curves"][f"val/{key}"]]
        curves.setdefault(labels[result["name"]], []).append(points)
    comparison(errors, curves, path, label)


def _draw_curve(report: Mapping[str, Any], path: Path) -> None:
    from ocp_faenet.cli.pictures import error_curve

    splits, label = list(report["split_sizes"]), next(iter(report["metrics"].values()))
    what = f"mean {label} of {len(splits)} splits" if len(splits) > 1 else f"{splits[0]} {label}"
    error_curve(report["curve"], report["title"], what, path)
