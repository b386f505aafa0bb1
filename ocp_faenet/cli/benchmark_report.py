"""Tables of ``ocp-faenet benchmark`` from its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ocp_faenet.cli.output import markdown_table
from ocp_faenet.models.timing import Timing

Row = Mapping[str, Any]
HEADER = ("model", "mode", "atoms", "batch", "samples/s", "ms/batch", "GFLOP", "of peak", "MiB")
#: What is in the place of a number that there is not.
ABSENT = "-"


def row_of(
    model: str,
    mode: str,
    atoms: int,
    graphs: int,
    edges: int,
    parameters: int,
    timing: Timing,
    peak: float | None = None,
) -> dict[str, Any]:
    """One line of the report.

    Args:
        model, mode: what was timed.
        atoms, graphs: of a structure; structures of a batch.
        edges: of the batch.
        parameters: of the model.
        timing: what was seen.
        peak: best rate of matrix products, 1e9 operations/s; ``None`` where work is not counted.
    """
    row: dict[str, Any] = {
        "model": model, "mode": mode, "atoms": atoms, "batch": graphs, "edges": edges,
        "parameters": parameters, "error": timing.error,
    }  # fmt: skip
    if timing.error is not None:
        return row
    row |= {
        "seconds": timing.median,
        "all_seconds": timing.seconds,
        "samples_per_second": graphs / timing.median,
    }
    if peak is not None:
        row |= {
            "gflop": timing.gflop,
            "share_of_peak": timing.gflop / timing.median / peak,
            "peak_mib": None if timing.peak_bytes is None else timing.peak_bytes / 2**20,
        }
    return row


def table_of(rows: Sequence[Row]) -> str:
    """A line for each model, size and mode."""
    lines = []
    for row in rows:
        start = [row["model"], row["mode"], str(row["atoms"]), str(row["batch"])]
        if row["error"]:
            # A message may hold what ends a cell.
            cells = [f"failed: {row['error'].replace('|', '/')}", "", "", "", ""]
        else:
            cells = [
                f"{row['samples_per_second']:.3g}",
                f"{1e3 * row['seconds']:.4g}",
                _number(row, "gflop", "{:.3g}"),
                _number(row, "share_of_peak", "{:.0%}"),
                _number(row, "peak_mib", "{:.0f}"),
            ]
        lines.append([*start, *cells])
    return markdown_table(HEADER, lines)


def _number(row: Row, key: str, form: str) -> str:
    value = row.get(key)
    return ABSENT if value is None else form.format(value)
