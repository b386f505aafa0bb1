"""What a study would cost, from runs that are finished."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from ocp_faenet.adapters.runs import RunSpec, count_records, load_result
from ocp_faenet.cli.output import markdown_table


def budget_of(specs: Sequence[RunSpec], root: Path) -> str:
    """A table of the runs by variant: how many there are, are finished, and cost.

    The cost of a run is its training structures times epochs over the samples per CPU second of
    finished runs of the same name, whatever their length; evaluation comes on top.
    """
    stages = {stage.key(): stage for spec in specs if (stage := spec.stage) is not None}
    every = [*stages.values(), *specs]
    rows, total, unknown = [], 0.0, 0
    for name in dict.fromkeys(spec.name for spec in every):
        mine = [spec for spec in every if spec.name == name]
        open_runs = [spec for spec in mine if load_result(spec.folder(root)) is None]
        rate = _rate(name, root)
        cost = sum(_samples(spec) for spec in open_runs) / rate / 60 if rate else None
        unknown += 0 if cost is not None or not open_runs else len(open_runs)
        total += cost or 0.0
        shown = "0.0" if not open_runs else "?" if cost is None else f"{cost:.1f}"
        rows.append([name, str(len(mine)), str(len(mine) - len(open_runs)), shown])
    table = markdown_table(["run", "of all seeds", "finished", "training left (CPU min)"], rows)
    more = f", and {unknown} runs of which none is finished yet" if unknown else ""
    return f"{table}\n\n{total:.1f} CPU minutes of training left{more}"


def _samples(spec: RunSpec) -> int:
    config = spec.config()
    train = config["dataset"]["train"]
    size = train.get("sample_n") or count_records(train["src"])
    return int(size) * int(config["optim"]["max_epochs"])


def _rate(name: str, root: Path) -> float | None:
    """Samples per CPU second of finished runs of this name that measured it, median."""
    results = (json.loads(path.read_text()) for path in root.glob(f"{name}-seed*/result.json"))
    rates = (result["training"].get("samples_per_cpu_second") for result in results)
    found = [rate for rate in rates if rate]
    return statistics.median(found) if found else None
