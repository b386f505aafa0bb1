"""``ocp-faenet scaling``: what OC20's training sets would take on 1, 8 and 64 GPUs."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from ocp_faenet.cli.documents import insert_into
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.options import FILE, JSON, TABLES_INTO
from ocp_faenet.cli.output import command_line, machine_class, write_json
from ocp_faenet.cli.scaling_report import ANCHOR, anchor_bound, markdown_of
from ocp_faenet.models.config import FAENetConfig
from ocp_faenet.models.costs import Costs, Subject, Traffic, count, inference, training_step
from ocp_faenet.models.scaling import ATOMS, GPUS, WORKLOADS, Gpu, Workload, project
from ocp_faenet.models.synthetic import oc20_like

COUNTS = (1, 8, 64)
#: Options that say where numbers go, or come from.
OUTPUTS = ("costs_file", "json_path", "into")


@click.command(
    epilog="""Examples:

\b
  ocp-faenet scaling
  ocp-faenet scaling --gpu h200 --launch-us 4 --json scaling.json
  ocp-faenet scaling --costs docs/results/scaling.json --rate IS2RE-all=5000   # measured
"""
)
@click.option("--gpu", type=click.Choice(list(GPUS)), default="a100", show_default=True)
@click.option(
    "--launch-us",
    type=click.FloatRange(min=0, min_open=True),
    help="Microseconds to launch an operation; measured on this machine's CPU if absent.",
)
@click.option(
    "--rate", "rates", multiple=True, metavar="SET=N", help="Measured on one GPU, full batch."
)
@click.option("--costs", "costs_file", type=FILE, help="Counted before: a file that --json wrote.")
@JSON
@TABLES_INTO
def scaling(
    gpu: str,
    launch_us: float | None,
    rates: tuple[str, ...],
    costs_file: Path | None,
    json_path: Path | None,
    into: Path | None,
) -> None:
    """Derive time and memory of trainings from the costs of a sample, counted here.

    Counts operations, bytes and memory of a training step at the published configurations, on
    OC20-like structures without their tag-0 atoms, and holds them against what the GPU's maker
    promises. Times are lower bounds; a measured rate (--rate) replaces the bound on one GPU.
    """
    measured = _parsed(rates)
    card = GPUS[gpu]
    seen = _counted() if costs_file is None else _read(costs_file)
    costs, launch = seen.costs, 1e-6 * launch_us if launch_us else seen.launch
    bound = anchor_bound(costs["IS2RE-all"].inference.bytes)
    rows = []
    for work in WORKLOADS:
        mine = costs[work.name]
        full = project(work, mine.training, mine.parameters, card, 1, launch=launch)
        busy = max(full.work, full.traffic) / full.batch
        share = measured[work.name] * busy if work.name in measured else ANCHOR / bound
        for gpus, batch in [*((n, None) for n in COUNTS), (COUNTS[-1], work.batch)]:
            rows.append(_row(work, mine, card, gpus, batch, launch, share))
    report = {
        "command": command_line(OUTPUTS), "data": "synthetic slabs",
        **asdict(replace(seen, launch=launch)), "gpu": asdict(card), "rows": rows,
    }  # fmt: skip
    click.echo(markdown_of(report))
    if json_path:
        write_json(json_path, report)
    if into:
        insert_into(into, "scaling", markdown_of(report))


@dataclass(frozen=True)
class _Model:
    training: Costs
    inference: Costs
    parameters: int


@dataclass(frozen=True)
class _Seen:
    """Counted and timed on a machine: by workload; s an operation; (ms, bytes) a record."""

    costs: dict[str, _Model]
    launch: float
    loader: dict[str, tuple[float, float]]
    machine: str


def _counted() -> _Seen:
    models: list[tuple[FAENetConfig, _Model]] = []
    costs = {}
    for work in tqdm(WORKLOADS, desc="counting", file=sys.stderr):
        model = next((m for config, m in models if config is work.config), None)
        if model is None:
            subject = Subject(work.config, ATOMS, work.neighbors)
            parameters = sum(p.numel() for p in subject.module().parameters())
            model = _Model(count(subject), count(subject, inference), parameters)
            models.append((work.config, model))
        costs[work.name] = model
    return _Seen(costs, launch_seconds(), _loader_costs(), machine_class())


def _read(path: Path) -> _Seen:
    try:
        content = json.loads(path.read_text())
        costs = {
            name: _Model(Costs(**each["training"]), Costs(**each["inference"]), each["parameters"])
            for name, each in content["costs"].items()
        }
        loader = {name: (pair[0], pair[1]) for name, pair in content["loader"].items()}
        missing = {work.name for work in WORKLOADS} - set(costs)
        if missing:
            raise ValueError(f"nothing on {', '.join(sorted(missing))}")
        return _Seen(costs, content["launch"], loader, content["machine"])
    except OSError as error:
        raise BadInputError(f"--costs {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(
            f"--costs {path}: not what `scaling --json` writes ({error}); count anew"
        ) from error


def launch_seconds() -> float:
    """CPU time of an operation in a training step of next to no width on next to no atoms."""
    narrow = replace(
        WORKLOADS[0].config, hidden_channels=16, num_filters=16, num_gaussians=8,
        tag_hidden_channels=2, pg_hidden_channels=2, phys_embeds=False, regress_forces=None,
    )  # fmt: skip
    step = training_step(Subject(narrow, 1, 1).module(), oc20_like(1, 1, max_neighbors=1))
    step()
    with Traffic() as traffic:
        step()
    seconds = []
    for _ in range(15):
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    return min(seconds) / traffic.operations


def _loader_costs() -> dict[str, tuple[float, float]]:
    if importlib.util.find_spec("fairchem") is None:
        return {}
    from ocp_faenet.adapters.record_costs import record_costs

    kinds = {"with its edges": True, "without edges": False}
    return {name: record_costs(ATOMS, edges=edges) for name, edges in kinds.items()}


def _parsed(rates: Sequence[str]) -> dict[str, float]:
    names = [work.name for work in WORKLOADS]
    found = {}
    for text in rates:
        name, _, number = text.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            found[name] = 0.0
        if name not in names or not found[name] > 0:
            raise BadInputError(
                f"--rate {text!r}: give samples per second as {names[0]}=5000; "
                f"the sets are {', '.join(names)}"
            )
    return found


def _row(
    work: Workload, costs: _Model, card: Gpu, gpus: int, batch: int | None, launch: float,
    share: float,
) -> dict[str, Any]:  # fmt: skip
    bound, likely = (
        project(work, costs.training, costs.parameters, card, gpus, launch=launch, batch=batch,
                share=part)
        for part in (1.0, share)
    )  # fmt: skip
    return {
        "set": work.name, "gpus": gpus, "batch": bound.batch, "step_ms": 1e3 * bound.step,
        "limit": bound.limit, "hours_bound": bound.hours, "hours": likely.hours, "share": share,
        "rate": likely.rate, "memory_gb": bound.memory / 1e9,
    }  # fmt: skip
