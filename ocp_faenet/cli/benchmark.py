"""``ocp-faenet benchmark``: throughput beside the peers, in one process."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.output import machine_class, markdown_table, write_json
from ocp_faenet.models.contenders import all_faenets, usual_faenets
from ocp_faenet.models.synthetic import oc20_like
from ocp_faenet.models.timing import Contender, Timing, measure, peak_gflops

Maker = Callable[[torch.device | str], Contender]
MODES = {"inference": False, "training": True}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


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
    help="Seconds of a pass beyond which a model is left out.",
)  # fmt: skip
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Time by atoms, PNG.")
def benchmark(
    atoms: list[int],
    batch: list[int],
    models: tuple[str, ...],
    mode: str,
    repeats: int,
    threads: int | None,
    clock: str,
    longest: float,
    device: str,
    json_file: Path | None,
    plot: Path | None,
) -> None:
    """Samples per second, memory and work of FAENet and its peers.

    All models take the same OC20-like batches in one process, in turn, after a warm-up; medians
    are shown. A relaxation is one structure under ASE's FIRE, and a sample is a step.
    Without fairchem or faenet installed, what does not need them is measured.
    """
    if threads:
        torch.set_num_threads(threads)
    where = _device(device)
    if clock == "cpu" and where.type != "cpu":
        raise BadInputError("--clock cpu: a GPU's work takes no processor time; use --clock wall")
    peak = peak_gflops(where, clock=CLOCKS[clock])
    if mode == "relaxation":
        rows = _relaxations(atoms, models, repeats, CLOCKS[clock], where)
    else:
        modes = list(MODES) if mode == "both" else [mode]
        rows = _passes(atoms, batch, modes, models, repeats, CLOCKS[clock], longest, where, peak)
    device_name = torch.cuda.get_device_name(where) if where.type == "cuda" else machine_class()
    head = f"{device_name}, {torch.get_num_threads()} threads; best matrix product seen: "
    click.echo(f"{head}{peak:.0f} GFLOP/s; medians of {repeats}, interleaved, {clock} time\n")
    click.echo(_table(rows))
    if json_file:
        machine = {"name": device_name, "threads": torch.get_num_threads(), "peak_gflops": peak}
        write_json(
            json_file, {"machine": machine, "repeats": repeats, "clock": clock, "rows": rows}
        )
    if plot:
        from ocp_faenet.cli.benchmark_plot import plot_times

        plot_times(rows, plot)
        click.echo(f"\n{plot}")


def _passes(
    atoms: list[int],
    batch: list[int],
    modes: list[str],
    models: tuple[str, ...],
    repeats: int,
    clock: Callable[[], float],
    longest: float,
    where: torch.device,
    peak: float,
) -> list[dict[str, Any]]:
    makers = _chosen(models)
    rows: list[dict[str, Any]] = []
    total = len(atoms) * len(batch) * len(modes) * repeats * len(makers)
    with tqdm(total=total, desc="benchmark", file=sys.stderr) as bar:
        contenders = [make(where) for make in makers.values()]
        for size, graphs in itertools.product(atoms, batch):
            graph = oc20_like(size, graphs, device=where)
            for name in modes:
                timings = measure(
                    contenders, graph, training=MODES[name], repeats=repeats, longest=longest,
                    clock=clock, progress=bar.update,
                )  # fmt: skip
                edges = graph.edge_index.shape[1]
                for contender in contenders:
                    timing = timings[contender.name]
                    rows.append(_row(contender, timing, name, size, graphs, edges, peak))
    return rows


def _relaxations(
    atoms: list[int],
    models: tuple[str, ...],
    repeats: int,
    clock: Callable[[], float],
    where: torch.device,
) -> list[dict[str, Any]]:
    if importlib.util.find_spec("fairchem") is None:
        raise BadInputError("--mode relaxation needs fairchem-core and ASE; install the plugin")
    from ocp_faenet.adapters.relax_speed import modules, relaxation_steps

    made = {name: make().to(where) for name, make in _named(modules(), models).items()}
    rows = []
    with tqdm(total=len(atoms) * repeats * len(made), desc="benchmark", file=sys.stderr) as bar:
        for size in atoms:
            graph = oc20_like(size, 1, device=where)
            timings = relaxation_steps(made, graph, repeats, clock=clock, progress=bar.update)
            edges = graph.edge_index.shape[1]
            for name, timing in timings.items():
                parameters = sum(p.numel() for p in made[name].parameters())
                rows.append(_start(name, "relaxation", size, 1, edges, parameters, timing))
    return rows


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInputError(f"--device {name!r} is no device; cpu, cuda or cuda:<i>") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadInputError("--device cuda: no GPU is visible to PyTorch; use --device cpu")
    return device


def _chosen(names: tuple[str, ...]) -> dict[str, Maker]:
    known: dict[str, Maker] = dict(all_faenets())
    here = bool(names) and all(name in known for name in names)
    if not here and importlib.util.find_spec("fairchem") is not None:
        from ocp_faenet.adapters.peers import all_peers

        known.update(all_peers())
    if names == ("all",):
        return known
    if names:
        return _named(known, names)
    usual = usual_faenets()
    return {name: make for name, make in known.items() if name in usual or "FAENet," not in name}


def _named(known: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    unknown = [name for name in names if name not in known]
    if unknown:
        listed = "; ".join(known)
        raise BadInputError(f"--models {unknown[0]!r} is not known; one of: {listed}")
    return {name: known[name] for name in names or known}


def _row(
    contender: Contender,
    timing: Timing,
    mode: str,
    atoms: int,
    graphs: int,
    edges: int,
    peak: float,
) -> dict[str, Any]:
    parameters = sum(p.numel() for p in contender.module.parameters())
    row = _start(contender.name, mode, atoms, graphs, edges, parameters, timing)
    if timing.error is None:
        row |= {
            "gflop": timing.gflop,
            "share_of_peak": timing.gflop / timing.median / peak,
            "peak_mib": None if timing.peak_bytes is None else timing.peak_bytes / 2**20,
        }
    return row


def _start(
    model: str, mode: str, atoms: int, graphs: int, edges: int, parameters: int, timing: Timing
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "model": model, "mode": mode, "atoms": atoms, "batch": graphs, "edges": edges,
        "parameters": parameters, "error": timing.error,
    }  # fmt: skip
    if timing.error is None:
        row |= {
            "seconds": timing.median,
            "all_seconds": timing.seconds,
            "samples_per_second": graphs / timing.median,
        }
    return row


def _table(rows: list[dict[str, Any]]) -> str:
    header = [
        "model", "mode", "atoms", "batch", "samples/s", "ms/batch", "GFLOP", "of peak", "MiB",
    ]  # fmt: skip
    lines = []
    for row in rows:
        start = [row["model"], row["mode"], str(row["atoms"]), str(row["batch"])]
        if row["error"]:
            lines.append([*start, f"failed: {row['error']}", "", "", "", ""])
            continue
        lines.append(
            [
                *start,
                f"{row['samples_per_second']:.3g}",
                f"{1e3 * row['seconds']:.4g}",
                *_number(row, "gflop", "{:.3g}"),
                *_number(row, "share_of_peak", "{:.0%}"),
                *_number(row, "peak_mib", "{:.0f}"),
            ]
        )
    return markdown_table(header, lines)


def _number(row: dict[str, Any], key: str, form: str) -> list[str]:
    value = row.get(key)
    return ["-" if value is None else form.format(value)]


if __name__ == "__main__":
    benchmark()
