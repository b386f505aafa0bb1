"""``ocp-faenet study``: a table over seeds from one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ocp_faenet.cli.documents import insert_into, with_table
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.options import INTO, JOBS, JSON, PATH, runs_in
from ocp_faenet.cli.output import write_json
from ocp_faenet.cli.study_budget import budget_of
from ocp_faenet.cli.study_report import markdown_of
from ocp_faenet.cli.study_run import Changes, ready


@click.command(
    epilog="\b\nocp-faenet study configs/studies/frame_methods.yml\n"
    "ocp-faenet study configs/studies/frame_methods.yml --seeds 1 --epochs 1 --only det,all"
)
@click.argument("file", type=PATH)
@click.option("--data", type=PATH, help="Data set; data/emt/demo, or what FILE makes for itself.")
@click.option("--seeds", type=click.IntRange(min=1), help="Instead of the file's.")
@click.option("--epochs", type=click.IntRange(min=1), help="Instead of the file's, for all.")
@click.option("--sample", type=click.IntRange(min=1), help="Training structures, likewise.")
@click.option("--only", help="Variants to run, by commas; all if absent.")
@JOBS
@runs_in("runs/studies")
@JSON
@click.option("--plot", type=PATH, help="Draw errors by split and learning curves (PNG).")
@click.option("--curve", type=PATH, help="Draw the curve that the file describes (PNG).")
@click.option("--budget", is_flag=True, help="Say what is left to run and its CPU time; no more.")
@INTO
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
    asked = None if only is None else tuple(only.split(","))
    try:
        chosen = ready(file, data, Changes(seeds, epochs, sample, asked))
        if curve is not None and chosen.plan.curve is None:
            raise ValueError(f"--curve {curve}: {file} has no curve; see docs/studies.md")
    except (ValueError, OSError) as error:
        raise BadInputError(str(error)) from error
    if into is not None:
        with_table(into, file.stem, "", "study")  # before anything is run
    if budget:
        click.echo(budget_of(chosen.specs, runs))
        return
    try:
        outcome = chosen.run(runs, jobs)
    except (ValueError, OSError) as error:
        raise BadInputError(str(error)) from error
    report = outcome.report
    click.echo(f"{chosen.plan.title}\n\n{markdown_of(report)}")
    if json_path is not None:
        write_json(json_path, report)
    if plot is not None:
        _draw(report, outcome.results, plot)
    if curve is not None:
        _draw_curve(report, curve)
    if into is not None:
        insert_into(into, file.stem, markdown_of(report), "study")


def _draw(report: Mapping[str, Any], results: Sequence[Mapping[str, Any]], path: Path) -> None:
    from ocp_faenet.cli.pictures import comparison, learning_curves

    key, label = next(iter(report["metrics"].items()))
    errors = {
        row["label"]: {split: tuple(scores[key]) for split, scores in row["splits"].items()}
        for row in report["rows"]
    }
    labels = {row["variant"]: row["label"] for row in report["rows"]}
    comparison(errors, learning_curves(results, key, labels), path, label)


def _draw_curve(report: Mapping[str, Any], path: Path) -> None:
    from ocp_faenet.cli.pictures import error_curve

    splits, label = list(report["split_sizes"]), next(iter(report["metrics"].values()))
    what = f"mean {label} of {len(splits)} splits" if len(splits) > 1 else f"{splits[0]} {label}"
    error_curve(report["curve"], report["title"], what, path)
