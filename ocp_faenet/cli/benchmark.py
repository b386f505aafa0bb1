"""``ocp-faenet benchmark``: throughput beside the peers, in one process."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import torch
from click.core import ParameterSource

from ocp_faenet.cli.benchmark_page import markdown_of
from ocp_faenet.cli.benchmark_report import table_of
from ocp_faenet.cli.benchmark_run import MODES, Maker, Measurement, passes, relaxations
from ocp_faenet.cli.documents import insert_into
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.output import command_line, machine_class, write_json
from ocp_faenet.models.contenders import all_faenets, usual_faenets
from ocp_faenet.models.timing import peak_gflops
from ocp_faenet.nn.native import library

Model = TypeVar("Model")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_FILE = click.Path(dir_okay=False, path_type=Path)


class Numbers(click.ParamType):
    """Positive integers with commas between."""

    name = "N,N,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> list[int]:
        if isinstance(value, list):
            return value
        try:
            numbers = [int(part) for part in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a list of integers such as 10,80,300", param, ctx)
        if min(numbers) < 1:
            self.fail(f"{value!r}: every number must be at least 1", param, ctx)
        return numbers


@click.command(
    epilog="""Examples:

\b
  ocp-faenet benchmark                                  # 87 atoms, 6 systems a batch
  ocp-faenet benchmark --atoms 10,30,100,300,1000 --plot time.png
  ocp-faenet benchmark --batch 1,8,64,256 --device cuda --json speed.json
  ocp-faenet benchmark --models "FAENet, all (4)" --models SchNet
  ocp-faenet benchmark --models all                     # each frame method with each option
  ocp-faenet benchmark --mode relaxation --atoms 80     # steps a second under one optimiser
"""
)
@click.option("--atoms", type=Numbers(), default="87", show_default=True, help="Atoms a system.")
@click.option("--batch", type=Numbers(), default="6", show_default=True, help="Systems a batch.")
@click.option(
    "--models",
    multiple=True,
    help="Only these (repeat), or all; default: every model, FAENet in its usual forms.",
)
@click.option(
    "--mode", type=click.Choice([*MODES, "both", "relaxation"]), default="both", show_default=True
)
@click.option("--repeats", type=click.IntRange(1), default=7, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads; default: PyTorch's own.")
@click.option(
    "--clock", type=click.Choice(list(CLOCKS)), default="wall", show_default=True,
    help="cpu: processor time, for one thread of a machine that others use too.",
)  # fmt: skip
@click.option(
    "--longest", type=click.FloatRange(0, min_open=True), default=60.0, show_default=True,
    help="Seconds of a pass beyond which a model is left out, by the last size if need be.",
)  # fmt: skip
@click.option(
    "--count/--no-count", default=True, show_default=True,
    help="Count operations and memory too, in a pass that records both; large batches may not "
    "have the memory for that.",
)  # fmt: skip
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--json", "json_file", type=_FILE, help="All numbers, written after each size.")
@click.option("--plot", type=_FILE, help="Time by atoms, PNG.")
@click.option("--into", type=_FILE, help="Replace the table between markers named after --json.")
def benchmark(
    atoms: list[int],
    batch: list[int],
    models: tuple[str, ...],
    mode: str,
    repeats: int,
    threads: int | None,
    clock: str,
    longest: float,
    count: bool,
    device: str,
    json_file: Path | None,
    plot: Path | None,
    into: Path | None,
) -> None:
    """Samples per second, memory and work of FAENet and its peers.

    All models take the same OC20-like batches in one process, in turn, after a warm-up; medians
    are shown. A relaxation is one structure under ASE's FIRE, and a sample is a step.
    Without fairchem or faenet installed, what does not need them is measured.
    """
    if threads:
        torch.set_num_threads(threads)
    where = _device(device)
    _check_clock(clock, where)
    _check_outputs(json_file, plot)
    if mode == "relaxation":
        time_rows = partial(relaxations, _relaxing(models))
    else:
        time_rows = partial(passes, _chosen(models))
    modes = list(MODES) if mode == "both" else [mode]
    peak = peak_gflops(where, clock=CLOCKS[clock])
    how = Measurement(atoms, batch, modes, repeats, CLOCKS[clock], longest, where, peak, count)
    device_name = torch.cuda.get_device_name(where) if where.type == "cuda" else _processor()
    content = _empty_report(how, device_name, clock, seed=None if mode == "relaxation" else 0)
    rows: list[dict[str, Any]] = content["rows"]
    for group in time_rows(how):
        rows += group
        if json_file:  # what was measured outlives an interruption
            write_json(json_file, content)
    content["finished"] = True
    head = f"{device_name}, {torch.get_num_threads()} threads; best matrix product seen: "
    click.echo(f"{head}{peak:.0f} GFLOP/s; medians of {repeats}, interleaved, {clock} time\n")
    click.echo(table_of(rows))
    if json_file:
        write_json(json_file, content)
    if into:
        insert_into(into, json_file.stem if json_file else "benchmark", markdown_of(content))
    if all(row["error"] for row in rows):
        raise BadInputError("no model could be timed; the table says why")
    if plot:
        from ocp_faenet.cli.benchmark_plot import plot_times

        plot_times(rows, plot)
        click.echo(f"\n{plot}")


def _empty_report(
    how: Measurement, device_name: str, clock: str, seed: int | None
) -> dict[str, Any]:
    """What the JSON says beside its rows, of which there are none yet."""
    threads = torch.get_num_threads()
    return {
        "command": command_line(("json_file", "plot", "into")),
        "data": "synthetic slabs",
        "seed": seed,
        "machine": {"name": device_name, "threads": threads, "peak_gflops": how.peak},
        "repeats": how.repeats,
        "clock": clock,
        "finished": False,
        "rows": [],
    }


def _processor() -> str:
    """The machine's class, and whether FAENet's loops are compiled on it."""
    return f"{machine_class()}, {'no ' if library() is None else ''}compiled kernels"


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInputError(f"--device {name!r} is no device; cpu, cuda or cuda:<i>") from None
    if device.type not in ("cpu", "cuda"):
        raise BadInputError(f"--device {name!r}: only cpu and cuda are timed")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadInputError("--device cuda: no GPU is visible to PyTorch; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadInputError(f"--device {name}: {torch.cuda.device_count()} GPUs, counted from 0")
    return device


def _check_clock(clock: str, where: torch.device) -> None:
    if clock == "wall":
        return
    if where.type != "cpu":
        raise BadInputError("--clock cpu: a GPU's work takes no processor time; use --clock wall")
    if torch.get_num_threads() > 1:
        raise BadInputError(
            f"--clock cpu: the times of {torch.get_num_threads()} threads would add up; "
            "add --threads 1, or use --clock wall"
        )


def _check_outputs(json_file: Path | None, plot: Path | None) -> None:
    """Refused before the work, not after it."""
    for option, path in (("--json", json_file), ("--plot", plot)):
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInputError(f"{option} {path}: {error.strerror}") from None
        if not os.access(path.parent, os.W_OK):
            raise BadInputError(f"{option} {path}: {path.parent} cannot be written to")
    if plot is not None and plot.suffix != ".png":
        raise BadInputError(f"--plot {plot}: pictures are PNG; call it {plot.stem}.png")


def _chosen(names: tuple[str, ...]) -> dict[str, Maker]:
    known: dict[str, Maker] = dict(all_faenets())
    here = bool(names) and all(name in known for name in names)
    if not here and _host():
        from ocp_faenet.adapters.peers import all_peers

        known.update(all_peers())
    if names == ("all",):
        return known
    if names:
        return _named(known, names)
    usual = usual_faenets()
    return {name: make for name, make in known.items() if name in usual or "FAENet," not in name}


def _relaxing(names: tuple[str, ...]) -> dict[str, Callable[[], torch.nn.Module]]:
    context = click.get_current_context()
    for option in ("batch", "longest"):
        if context.get_parameter_source(option) is ParameterSource.COMMANDLINE:
            raise BadInputError(f"--{option} says nothing to --mode relaxation; leave it out")
    if not _host():
        raise BadInputError("--mode relaxation needs fairchem-core and ASE; install the plugin")
    from ocp_faenet.adapters.relax_speed import modules

    return _named(modules(), names)


def _host() -> bool:
    return importlib.util.find_spec("fairchem") is not None


def _named(known: Mapping[str, Model], names: tuple[str, ...]) -> dict[str, Model]:
    unknown = [name for name in names if name not in known]
    if unknown:
        there = "" if _host() else " (the peers need fairchem-core, which is not installed)"
        listed = "; ".join(known)
        raise BadInputError(f"--models {unknown[0]!r} is not known{there}; one of: {listed}")
    return {name: known[name] for name in names or known}


if __name__ == "__main__":
    benchmark()
