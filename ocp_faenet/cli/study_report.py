"""Numbers of a study: from results to JSON, from JSON to the table in a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ocp_faenet.adapters.plan import Curve, StudyPlan
from ocp_faenet.cli.output import machine_class, markdown_table, spread_of
from ocp_faenet.metrics.energies import mean_and_std

Pair = tuple[float, float]


def report_of(
    plan: StudyPlan,
    results: Sequence[Mapping[str, Any]],
    measured: Sequence[Mapping[str, float]],
    stamp: Mapping[str, Any],
) -> dict[str, Any]:
    """All numbers, each as mean and standard deviation over the seeds.

    Args:
        plan: the study.
        results: of its runs, with ``name`` the variant's key.
        measured: what was measured of each run beside that.
        stamp: where the numbers come from: command, data, machine.
    """
    rows = []
    for key, variant in plan.variants.items():
        mine = [index for index, result in enumerate(results) if result["name"] == key]
        row = _row(plan, [results[index] for index in mine])
        names = measured[mine[0]]
        row["measured"] = {
            name: mean_and_std([measured[index][name] for index in mine]) for name in names
        }
        if len(mine) < plan.seeds:
            row["seeds"] = len(mine)
        rows.append({"variant": key, "label": variant.label or key, **row})
    first = results[0]["splits"]
    sizes = {split: int(first[split]["structures"]) for split in plan.splits}
    curve = {} if plan.curve is None else {"curve": _curve(plan.curve, rows)}
    return {
        "title": plan.title,
        **stamp,
        "seeds": plan.seeds,
        "train_size": results[0]["train_size"],
        "split_sizes": sizes,
        "metrics": plan.metrics,
        "rows": rows,
        **curve,
    }


def machines_of(results: Sequence[Mapping[str, Any]]) -> str:
    """Where runs were made: every class of machine; this one for those that do not say."""
    return "; ".join(dict.fromkeys(each.get("machine") or machine_class() for each in results))


def _curve(curve: Curve, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``[x, mean, standard deviation]`` of the variants that were run, by line, in order of x."""
    average = {row["variant"]: row["average"] for row in rows}
    series = {
        name: sorted([x, *average[key]] for key, x in points.items() if key in average)
        for name, points in curve.series.items()
    }
    drawn = {name: points for name, points in series.items() if points}
    return {"x": curve.x, "log": curve.log, "series": drawn}


def _row(plan: StudyPlan, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    training = [result["training"] for result in results]
    scores = {
        split: {
            key: mean_and_std([result["splits"][split][key] for result in results])
            for key in plan.metrics
        }
        for split in plan.splits
    }
    main = next(iter(plan.metrics))
    averages = [
        sum(result["splits"][split][main] for split in plan.splits) / len(plan.splits)
        for result in results
    ]
    evaluation = [
        [result["splits"][split]["samples_per_cpu_second"] for split in plan.splits]
        for result in results
    ]
    return {
        "parameters": results[0]["parameters"],
        "epochs": results[0]["epochs"],
        "train_size": results[0]["train_size"],
        "cpu_minutes": timed([entry.get("cpu_seconds") for entry in training], 1 / 60),
        "train_rate": timed([entry.get("samples_per_cpu_second") for entry in training]),
        "eval_rate": mean_and_std([sum(rates) / len(rates) for rates in evaluation]),
        "splits": scores,
        "average": mean_and_std(averages),
    }


def timed(values: Sequence[float | None], factor: float = 1.0) -> Pair | None:
    """Mean and deviation of times; ``None`` if that of a run is not known."""
    known = [factor * each for each in values if each is not None]
    return mean_and_std(known) if len(known) == len(values) else None


def table_of(report: Mapping[str, Any]) -> str:
    """The Markdown table of a report."""
    splits, metrics = list(report["split_sizes"]), report["metrics"]
    main = next(iter(metrics.values()))
    header = ["", "parameters", "training samples/s", "inference samples/s"]
    header += [f"{split} {label}" for label in metrics.values() for split in splits]
    header += [f"mean {main}"] if len(splits) > 1 else []
    measured = list(dict.fromkeys(name for row in report["rows"] for name in row["measured"]))
    rows = []
    for row in report["rows"]:
        cells = [row["label"], f"{row['parameters']:,}"]
        cells += [
            "-" if row[rate] is None else f"{row[rate][0]:.0f}"
            for rate in ("train_rate", "eval_rate")
        ]
        cells += [value(row["splits"][split][key]) for key in metrics for split in splits]
        cells += [value(row["average"])] if len(splits) > 1 else []
        cells += [
            value(row["measured"][name]) if name in row["measured"] else "-" for name in measured
        ]
        rows.append(cells)
    rows += [
        _reference_cells(row, splits, metrics, measured) for row in report.get("references", ())
    ]
    return markdown_table([*header, *measured], rows)


def _reference_cells(
    row: Mapping[str, Any], splits: Sequence[str], metrics: Mapping[str, str], names: Sequence[str]
) -> list[str]:
    """A row of what was not trained: exact values, no costs."""
    main = next(iter(metrics))
    cells = [row["label"], "-", "-", "-"]
    for key in metrics:
        found = [row["splits"][split].get(key) for split in splits]
        cells += ["-" if number is None else value((number, 0.0)) for number in found]
    if len(splits) > 1:
        mine = [row["splits"][split].get(main) for split in splits]
        known = [number for number in mine if number is not None]
        cells.append(value((sum(known) / len(known), 0.0)) if len(known) == len(mine) else "-")
    measured = row["measured"]
    return cells + [value((measured[n], 0.0)) if n in measured else "-" for n in names]


def value(pair: Sequence[float]) -> str:
    """Mean and standard deviation with three digits that count; ``0.042 ± 0.003``."""
    mean, std = pair
    if mean != 0 and not 1e-3 <= abs(mean) < 1e4:
        return f"{mean:.1e}"
    digits = 3 if abs(mean) < 10 else 1
    return f"{mean:.{digits}f}" + (f" ± {std:.{digits}f}" if std else "")


def sentence_of(report: Mapping[str, Any], *, rates: bool = True) -> str:
    """Where the numbers come from, in one paragraph; ``rates``: samples per second among them."""
    sizes = ", ".join(f"{split} {size}" for split, size in report["split_sizes"].items())
    seeds = spread_of(report["seeds"])
    fewer = [f"{row['label']}: {row['seeds']}" for row in report["rows"] if "seeds" in row]
    seeds += f" ({'; '.join(fewer)})" if fewer else ""
    epochs = sorted({row["epochs"] for row in report["rows"]})
    # A file of before rows told it has one size for all.
    trained = sorted({row.get("train_size", report["train_size"]) for row in report["rows"]})
    absent = report.get("not_run", {}).values()
    more = f" Not run: {'; '.join(absent)}." if absent else ""
    clock = " Samples per second of CPU time, one thread;" if rates else ""
    return (
        f"`{report['command']}`: {seeds}, weights after the last of "
        f"{' or '.join(map(str, epochs))} epochs on {' or '.join(map(str, trained))} training "
        f"structures of the {report['data']} set; {sizes}.{clock} {report['machine']}.{more}"
    )


def markdown_of(report: Mapping[str, Any]) -> str:
    """Table and sentence, and a table of differences where there are some."""
    text = f"{table_of(report)}\n\n{sentence_of(report)}"
    return f"{text}\n\n{differences_of(report)}" if report.get("differences") else text


def differences_of(report: Mapping[str, Any]) -> str:
    """The table of what sets rows apart, with 95 % intervals."""
    rows = report["differences"]
    names = list(dict.fromkeys(name for row in rows for name in row["values"]))
    cells = [
        [row["label"], str(row["seeds"]), *(_with_interval(row["values"][name]) for name in names)]
        for row in rows
    ]
    return (
        f"{markdown_table(['difference', 'seeds', *names], cells)}\n\n"
        "Differences on the same systems and seeds, and their 95 % intervals: bootstrap over "
        "systems, of each the mean over seeds."
    )


def _with_interval(estimate: Mapping[str, float | None]) -> str:
    mean, low, high = (estimate[key] for key in ("value", "low", "high"))
    if mean is None or low is None or high is None:
        return "-"
    digits = 3 if max(abs(mean), abs(low), abs(high)) < 1 else 1
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
