"""``ocp-faenet compare``: FAENet, SchNet and DimeNet++ under equal budgets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from ocp_faenet.adapters.runs import RunSpec, count_records, specs_by_seed, with_epochs
from ocp_faenet.cli.documents import insert_into
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.options import DATA, INTO, JOBS, JSON, PATH, runs_in
from ocp_faenet.cli.output import (
    command_line,
    markdown_table,
    spread_of,
    write_json,
    write_text,
)
from ocp_faenet.cli.study_report import machines_of, timed, value
from ocp_faenet.cli.training import run_study
from ocp_faenet.data.inventory import relaxed_energies
from ocp_faenet.metrics.energies import mean_and_std, mean_baseline

SPLITS = ("val_id", "val_ood_ads", "val_ood_cat", "val_ood_both")
#: Longest training first: that packs the processes best.
MODELS = ("dimenet_plus_plus", "faenet", "schnet")
MEAN = "training mean"
#: What tables and pictures call the configurations that are shipped.
LABELS = {"faenet": "FAENet", "schnet": "SchNet", "dimenet_plus_plus": "DimeNet++"}
#: Options that say where numbers go, or come from.
OUTPUTS = ("data", "json_path", "markdown", "plot", "into", "runs")


@dataclass(frozen=True)
class Study:
    """What is compared and where."""

    data: Path
    configs: Path
    models: tuple[str, ...]
    seeds: int
    jobs: int
    runs: Path

    def source(self, split: str) -> Path:
        return self.data / "is2re" / split / "data.lmdb"

    def spec(self, model: str, epochs: int) -> RunSpec:
        """The run of one model, seed 0."""
        sources = {"train": {"src": str(self.source("train"))}}
        sources["val"] = {"src": str(self.source("val_id"))}
        spec = RunSpec(
            name=model,
            config_yml=str(self.configs / f"{model}.yml"),
            overrides={"dataset": sources},
            splits={split: str(self.source(split)) for split in SPLITS},
        )
        size = count_records(str(self.source("train")))
        return replace(
            spec, overrides={**spec.overrides, **with_epochs(spec.config(), size, epochs)}
        )


@click.command()
@DATA
@click.option(
    "--configs",
    type=PATH,
    default=Path("configs/oc20/emt/is2re"),
    show_default=True,
    help="Folder with one YAML per model.",
)
@click.option(
    "--models", default=",".join(MODELS), show_default=True, help="Names of YAMLs, by commas."
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option(
    "--epochs", type=click.IntRange(min=1), default=20, show_default=True, help="Of every model."
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Equal wall time instead: every model gets the epochs that fit in so many minutes, by "
    "the clock of a first epoch. Replaces --epochs.",
)
@JOBS
@runs_in("runs/compare")
@JSON
@click.option("--markdown", type=PATH, help="Write the table to this file.")
@click.option("--plot", type=PATH, help="Draw the errors and learning curves (PNG).")
@INTO
def compare(
    data: Path,
    configs: Path,
    models: str,
    seeds: int,
    epochs: int,
    minutes: float | None,
    jobs: int,
    runs: Path,
    json_path: Path | None,
    markdown: Path | None,
    plot: Path | None,
    into: Path | None,
) -> None:
    """Train the models on the same data with the stock trainer and compare their errors.

    Each run is a process of its own with one thread. The weights after the last epoch are
    evaluated: nothing is selected on the splits that are reported. An interrupted study goes on
    where it was when the command is given again.
    """
    study = Study(data, configs, tuple(models.split(",")), seeds, jobs, runs)
    baseline = _check(study)
    budget = _epochs(study, epochs, minutes)
    specs = [
        seeded
        for model in study.models
        for seeded in specs_by_seed(study.spec(model, budget[model]), range(seeds))
    ]
    results = run_study(specs, runs, jobs, "Training")
    report = _report(study, results, baseline, minutes)
    text = "\n\n".join([table_of(report), sentence_of(report)])
    click.echo(text)
    if json_path is not None:
        write_json(json_path, report)
    if markdown is not None:
        write_text(markdown, text + "\n")
    if plot is not None:
        _draw(report, results, plot)
    if into is not None:
        insert_into(into, "compare", markdown_of(report))


def _check(study: Study) -> dict[str, dict[str, float]]:
    """Look at every file before anything runs; the errors of the training mean by split."""
    for model in study.models:
        if not (study.configs / f"{model}.yml").is_file():
            known = ", ".join(sorted(path.stem for path in study.configs.glob("*.yml")))
            raise BadInputError(f"--models {model}: not in {study.configs} ({known or 'empty'})")
    try:
        _, train = relaxed_energies(study.source("train"))
        errors = {}
        for split in SPLITS:
            scores = mean_baseline(train, relaxed_energies(study.source(split))[1])
            errors[split] = {"mae": scores.mae, "mse": scores.mse}
    except ValueError as error:
        raise BadInputError(f"--data: {error} (`ocp-faenet data emt` makes them)") from error
    return errors


def _epochs(study: Study, epochs: int, minutes: float | None) -> dict[str, int]:
    """Epochs of every model under the budget that was asked for."""
    if minutes is None:
        return dict.fromkeys(study.models, epochs)
    probes = [replace(study.spec(model, 1), splits={}) for model in study.models]
    results = run_study(probes, study.runs / "probes", study.jobs, "Timing one epoch")
    return {
        model: max(1, math.floor(60 * minutes / result["training"]["seconds"]))
        for model, result in zip(study.models, results, strict=True)
    }


def _report(
    study: Study,
    results: Sequence[Mapping[str, Any]],
    baseline: Mapping[str, Mapping[str, float]],
    minutes: float | None,
) -> dict[str, Any]:
    """All numbers: for each model mean and standard deviation over the seeds."""
    rows: list[dict[str, Any]] = [
        {
            "model": MEAN,
            "splits": {
                split: {key: (value, 0.0) for key, value in errors.items()}
                for split, errors in baseline.items()
            },
        }
    ]
    for model in sorted(study.models, key=_order):
        mine = [result for result in results if result["name"] == model]
        rows.append(_row(model, mine))
    return {
        "command": command_line(OUTPUTS),
        "data": study.data.name,
        "budget": "equal epochs" if minutes is None else f"equal wall time, {minutes:g} min",
        "seeds": study.seeds,
        "jobs": study.jobs,
        "machine": machines_of(results),
        "train_size": results[0]["train_size"],
        "split_sizes": {s: int(results[0]["splits"][s]["structures"]) for s in SPLITS},
        "rows": rows,
    }


def _row(model: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    training = [result["training"] for result in results]
    return {
        "model": model,
        "parameters": results[0]["parameters"],
        "batch_size": results[0]["batch_size"],
        "epochs": results[0]["epochs"],
        "minutes": mean_and_std([entry["seconds"] / 60 for entry in training]),
        "cpu_minutes": mean_and_std([entry["cpu_seconds"] / 60 for entry in training]),
        "train_samples_per_second": timed([e["samples_per_second"] for e in training]),
        "eval_samples_per_second": mean_and_std(
            [result["splits"]["val_id"]["samples_per_second"] for result in results]
        ),
        "splits": {
            split: {
                key: mean_and_std([result["splits"][split][f"energy_{key}"] for result in results])
                for key in ("mae", "mse")
            }
            for split in SPLITS
        },
    }


def _order(model: str) -> tuple[int, str]:
    """FAENet first, then the peers."""
    order = ("faenet", "schnet", "dimenet_plus_plus")
    return (order.index(model) if model in order else len(order), model)


def table_of(report: Mapping[str, Any], scores: Sequence[str] = ("MAE", "MSE")) -> str:
    """The Markdown table of a report, with these scores of each split."""
    columns = [f"{split} {score}" for split in SPLITS for score in scores]
    header = ["", "parameters", "epochs", "minutes", "training samples/s", *columns]
    rows = []
    for row in report["rows"]:
        cells = [LABELS.get(row["model"], row["model"])]
        if "parameters" in row:
            cells += [f"{row['parameters']:,}", str(row["epochs"]), f"{row['minutes'][0]:.1f}"]
            rate = row["train_samples_per_second"]
            cells.append("-" if rate is None else f"{rate[0]:.0f}")
        else:
            cells += ["-"] * 4
        for split in SPLITS:
            cells += [value(row["splits"][split][score.lower()]) for score in scores]
        rows.append(cells)
    return markdown_table(header, rows)


def sentence_of(report: Mapping[str, Any]) -> str:
    """Where the numbers come from, in one paragraph."""
    sizes = ", ".join(f"{split} {size}" for split, size in report["split_sizes"].items())
    jobs = f"{report['jobs']} runs" if report["jobs"] > 1 else "1 run"
    return (
        f"`{report['command']}`: MAE in eV, MSE in eV², of the weights after the last epoch, "
        f"{spread_of(report['seeds'])}, {report['budget']}; {report['train_size']} training "
        f"structures of the {report['data']} set; {sizes}. Minutes are wall time with validation "
        f"after every epoch; {report['machine']}; {jobs} at a time, one thread each."
    )


def markdown_of(report: Mapping[str, Any]) -> str:
    """For a page that is not wide: MAE alone, and where it comes from."""
    sentence = sentence_of(report).replace("MAE in eV, MSE in eV²", "MAE in eV")
    return f"{table_of(report, ['MAE'])}\n\n{sentence}"


def _draw(report: Mapping[str, Any], results: Sequence[Mapping[str, Any]], path: Path) -> None:
    from ocp_faenet.cli.pictures import comparison, learning_curves

    errors = {
        LABELS.get(row["model"], row["model"]): {
            split: tuple(row["splits"][split]["mae"]) for split in SPLITS
        }
        for row in report["rows"]
    }
    comparison(errors, learning_curves(results, "energy_mae", LABELS), path)
