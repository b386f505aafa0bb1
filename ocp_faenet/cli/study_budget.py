"""What a study would cost, from runs that are finished."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ocp_faenet.adapters.runs import RunSpec, count_records, load_result, read_result
from ocp_faenet.cli.output import markdown_table

#: CPU seconds of a run before its first step and after its last: model, data, checkpoints.
START = 8.0


@dataclass(frozen=True)
class Cost:
    """Of runs that are not finished.

    Attributes:
        runs: all of them, finished or not.
        left: those that are not.
        unknown: those of them whose rate nobody knows.
        minutes: CPU time of the others.
    """

    runs: int
    left: int
    unknown: int
    minutes: float


def budget_of(specs: Sequence[RunSpec], root: Path) -> str:
    """A table of the runs by variant: how many there are, are finished, and cost.

    The cost of a run is its training structures times epochs over the samples per CPU second of
    finished runs of the same name, whatever their length; evaluation comes on top.
    """
    every = _with_stages(specs)
    rows, total, unknown = [], 0.0, 0
    for name in dict.fromkeys(spec.name for spec in every):
        mine = [spec for spec in every if spec.name == name]
        open_runs = [spec for spec in mine if load_result(spec.folder(root)) is None]
        rate = _rates(name, root)[0]
        cost = sum(_samples(spec) for spec in open_runs) / rate / 60 if rate else None
        unknown += 0 if cost is not None or not open_runs else len(open_runs)
        total += cost or 0.0
        shown = "0.0" if not open_runs else "?" if cost is None else f"{cost:.1f}"
        rows.append([name, str(len(mine)), str(len(mine) - len(open_runs)), shown])
    table = markdown_table(["run", "of all seeds", "finished", "training left (CPU min)"], rows)
    more = f", and {unknown} runs of which none is finished yet" if unknown else ""
    return f"{table}\n\n{total:.1f} CPU minutes of training left{more}"


def minutes_of(
    specs: Sequence[RunSpec], root: Path, rates: Mapping[str, tuple[float, float]]
) -> Cost:
    """What runs that are not finished cost: start, training, and every evaluation.

    Args:
        specs: of the runs; those that they start from are counted too.
        root: where finished ones are.
        rates: samples per CPU second in training and evaluation by name, for those names of which
            no run is finished.
    """
    every = _with_stages(specs)
    left = [spec for spec in every if load_result(spec.folder(root)) is None]
    unknown, seconds = 0, 0.0
    for spec in left:
        own, known = _rates(spec.name, root), rates.get(spec.name, (None, None))
        train, evaluation = own[0] or known[0], own[1] or known[1]
        if train is None or evaluation is None:
            unknown += 1
            continue
        seconds += START + _samples(spec) / train + _evaluated(spec) / evaluation
    return Cost(len(every), len(left), unknown, seconds / 60)


def _with_stages(specs: Sequence[RunSpec]) -> list[RunSpec]:
    stages = {stage.key(): stage for spec in specs if (stage := spec.stage) is not None}
    return [*stages.values(), *specs]


def _size(spec: RunSpec) -> int:
    train = spec.config()["dataset"]["train"]
    return int(train.get("sample_n") or count_records(train["src"]))


def _samples(spec: RunSpec) -> int:
    return _size(spec) * int(spec.config()["optim"]["max_epochs"])


def _evaluated(spec: RunSpec) -> int:
    """Structures of all validations, and of the last weights' evaluation with its predictions."""
    config = spec.config()
    optim = config["optim"]
    per_epoch = math.ceil(_size(spec) / optim["batch_size"])
    times = optim["max_epochs"] * per_epoch // int(optim.get("eval_every") or per_epoch)
    final = sum(count_records(src) for src in spec.splits.values())
    return times * count_records(config["dataset"]["val"]["src"]) + 2 * final


def _rates(name: str, root: Path) -> tuple[float | None, float | None]:
    """Samples per CPU second in training and evaluation of finished runs of this name, median.

    ``None`` where none of them measured it.
    """
    folders = [path.parent for path in root.glob(f"{name}-seed*/result.json")]
    results = [result for folder in folders if (result := read_result(folder)) is not None]
    training = [result["training"].get("samples_per_cpu_second") for result in results]
    evaluation = [
        split.get("samples_per_cpu_second")
        for result in results
        for split in result["splits"].values()
    ]
    return _median(training), _median(evaluation)


def _median(rates: Sequence[Any]) -> float | None:
    found = [rate for rate in rates if rate]
    return statistics.median(found) if found else None
