"""``ocp-faenet dense oracle``: what ranking saves the reference."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from ocp_faenet.cli import dense_options as options
from ocp_faenet.cli.dense_proposals import Proposal, proposals
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.output import machine_class, markdown_table, write_json
from ocp_faenet.data.dense_oracle import Followed, follow, relax_from
from ocp_faenet.metrics.dense_saving import Ends, by_candidates, each_candidate

#: Column of the table -> key, factor, digits.
COLUMNS = {
    "calls": ("calls", 1.0, 1),
    "median": ("calls_median", 1.0, 1),
    "of all %": ("of_all", 100.0, 1),
    "found %": ("found", 100.0, 1),
}


@click.command()
@options.PREDICTIONS
@options.DATA
@options.RELAXED
@options.TOP_K
@options.JSON
def oracle(
    predictions: tuple[Path, ...],
    data: tuple[Path, ...],
    relaxed: tuple[Path, ...],
    top_k: int,
    json_path: Path | None,
) -> None:
    """Relax the best-ranked structures with EMT: steps, and minima that are found, by k.

    A structure that ends as an anomaly (AdsorbML's: dissociated, desorbed, intercalated, surface
    changed) finds nothing; they are counted by reason.

    \b
    calls: evaluations of energy and forces until the k structures of a system have converged, from
    the initial structures and, with --relaxed, from the model's; mean and median over systems.
    of all: those calls over the calls that all configurations of the system take.
    found: share of systems in which one of the k ends within 0.1 eV of the system's minimum, or
    below it. Embedded data only: EMT is their reference.

    \b
    Example:
      ocp-faenet dense oracle --predictions results/dense/id.npz \\
        --relaxed results/dense/id_relaxed_positions.npz \\
        --data data/emt/demo/dense/splits/id/data.lmdb --json oracle.json
    """
    every = proposals(predictions, data, relaxed)
    total = sum(map(len, every.values()))
    with tqdm(total=total, desc="EMT relaxations", file=sys.stderr) as bar:
        try:
            found = followed(every, top_k, bool(relaxed), bar.update)
        except ValueError as error:
            raise BadInputError(str(error)) from error
    rows = _rows(found, top_k)
    click.echo(_table(rows, list(found.ends)))
    click.echo(f"{len(every)} systems, {total} configurations; EMT to 0.03 eV/Å")
    for start, reasons in found.anomalies.items():
        one = each_candidate(found.ends[start])
        listed = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        click.echo(
            f"from the {start} structures: {one['mean']:.1f} calls each (median "
            f"{one['median']:.0f}); {listed or 'no anomaly'}"
        )
    if json_path is not None:
        content = {"systems": len(every), "rows": rows, "anomalies": found.anomalies}
        content["each"] = {start: each_candidate(ends) for start, ends in found.ends.items()}
        write_json(json_path, {**content, "machine": machine_class()})


@dataclass
class OracleReport:
    """What EMT made of the best-ranked structures.

    Attributes:
        ends: of each system, by where it started: ``initial`` and, if there are any, ``model``.
        anomalies: how many ends count for nothing, by reason, likewise.
        calls: of all configurations of all systems from the initial structures.
    """

    ends: dict[str, list[Ends]]
    anomalies: dict[str, Counter[str]] = field(default_factory=dict)
    calls: int = 0


def followed(
    every: dict[str, list[Proposal]],
    top_k: int,
    relaxed: bool,
    progress: Callable[[int], Any] = lambda count: None,
) -> OracleReport:
    """Relax with EMT: everything from its initial structure, the best ranked also from the model's.

    Raises:
        ValueError: records of other data, which EMT does not know.
    """
    starts = ("initial", "model") if relaxed else ("initial",)
    out = OracleReport({start: [] for start in starts}, {start: Counter() for start in starts})
    for ranked in every.values():
        lowest = min(float(each.record["y_relaxed"]) for each in ranked)
        for rank, each in enumerate(ranked):
            if rank >= top_k:  # how it ends does not matter
                out.calls += relax_from(each.record, each.start).calls
                progress(1)
        best = ranked[:top_k]
        initial = [_progressed(follow(each.record, each.start), progress) for each in best]
        out.calls += sum(each.calls for each in initial)
        _take(out, "initial", initial, lowest)
        if relaxed:
            _take(out, "model", [follow(each.record, each.structure) for each in best], lowest)
    return out


def _progressed(done: Followed, progress: Callable[[int], Any]) -> Followed:
    progress(1)
    return done


def _take(out: OracleReport, start: str, done: Sequence[Followed], lowest: float) -> None:
    out.ends[start].append(Ends([d.calls for d in done], [d.energy for d in done], lowest))
    out.anomalies[start].update(reason for each in done for reason in each.reasons)


def _rows(found: OracleReport, top_k: int) -> list[dict[str, Any]]:
    """Of each k: calls, their share of all, and minima found, by start."""
    rows: list[dict[str, Any]] = []
    for k in range(1, top_k + 1):
        row: dict[str, Any] = {"k": k}
        for start, ends in found.ends.items():
            share = sum(each.calls_until(k) for each in ends) / found.calls
            row[start] = {**by_candidates(ends, k), "of_all": share}
        rows.append(row)
    return rows


def _table(rows: Sequence[dict[str, Any]], starts: Sequence[str]) -> str:
    header = ["k", *(f"{start}: {name}" for start in starts for name in COLUMNS)]
    lines = [
        [
            str(row["k"]),
            *(
                f"{factor * row[start][key]:.{digits}f}"
                for start in starts
                for key, factor, digits in COLUMNS.values()
            ),
        ]
        for row in rows
    ]
    return markdown_table(header, lines)
