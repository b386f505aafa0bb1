"""Tables of ``ocp-faenet benchmark`` in documents: the one that fits, and what made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ocp_faenet.cli.benchmark_report import table_of
from ocp_faenet.cli.output import markdown_table

Row = Mapping[str, Any]


def across(rows: Sequence[Row], key: str, head: str) -> str:
    """Milliseconds a structure, a row for each model, a column for each value of one number.

    Args:
        rows: that differ in model and in this number.
        key: its name in a row.
        head: of a column, with ``{}`` for the number.
    """
    values = list(dict.fromkeys(row[key] for row in rows))
    found = {(row["model"], row[key]): row for row in rows}
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        cells = [_milliseconds(found.get((model, value))) for value in values]
        lines.append([model, *cells])
    return markdown_table(["ms a structure", *[head.format(f"{v:,}") for v in values]], lines)


def relaxation_table(rows: Sequence[Row]) -> str:
    """Steps of a relaxation."""
    lines = [[row["model"], f"{row['samples_per_second']:.3g}", _milliseconds(row)] for row in rows]
    return markdown_table(["model", "steps/s", "ms a step"], lines)


def markdown_of(report: Mapping[str, Any]) -> str:
    """The table that fits what was measured, and where it comes from."""
    rows = report["rows"]
    modes = {row["mode"] for row in rows}
    sizes, batches = ({row[key] for row in rows} for key in ("atoms", "batch"))
    if modes == {"relaxation"}:
        table = relaxation_table(rows)
    elif len(modes) == 1 and len(sizes) > 1 and batches == {1}:
        table = across(rows, "atoms", "{} atoms")
    elif len(modes) == 1 and len(batches) > 1 and len(sizes) == 1:
        table = across(rows, "batch", "batch of {}")
    else:
        table = table_of(rows)
    return f"{table}\n\n{sentence_of(report)}"


def sentence_of(report: Mapping[str, Any]) -> str:
    """What made the numbers."""
    machine = report["machine"]
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    seed = "no seed set" if report.get("seed") is None else f"FAENet's from seed {report['seed']}"
    end = "" if report.get("finished", True) else " Interrupted: later sizes were not run."
    return (
        f"`{report['command']}`: medians of {report['repeats']}, interleaved, {report['clock']} "
        f"time, {threads}, {report['data']}, weights as initialised, {seed}; "
        f"{machine['name']}; best matrix product seen {machine['peak_gflops']:.0f} GFLOP/s.{end}"
    )


def _milliseconds(row: Row | None) -> str:
    """Of a structure, with three digits that count."""
    if row is None or row["error"]:
        return "-"
    value = 1e3 * row["seconds"] / row["batch"]
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
