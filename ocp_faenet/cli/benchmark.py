"""``ocp-faenet benchmark``: throughput beside the peers, in one process."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.output import machine_class, markdown_table, write_json
from ocp_faenet.models.contenders import all_faenets
from ocp_faenet.models.synthetic import oc20_like
from ocp_faenet.models.timing import Contender, Timing, measure, peak_gflops

Maker = Callable[[torch.device | str], Contender]
MODES = {"inference": False, "training": True}


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
"""
)
@click.option("--atoms", type=Numbers(), default="87", show_default=True, help="Atoms a system.")
@click.option("--batch", type=Numbers(), default="6", show_default=True, help="Systems a batch.")
@click.option("--models", multiple=True, help="Only these (repeat); default: all there are.")
@click.option("--mode", type=click.Choice([*MODES, "both"]), default="both", show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=7, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads; default: PyTorch's own.")
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
    device: str,
    json_file: Path | None,
    plot: Path | None,
) -> None:
    """Samples per second, memory and work of FAENet and its peers.

    All models take the same OC20-like batches in one process, in turn, after a warm-up; medians
    are shown. Without fairchem or faenet installed, what does not need them is measured.
    """
    if threads:
        torch.set_num_threads(threads)
    where = _device(device)
    makers = _chosen(models)
    modes = list(MODES) if mode == "both" else [mode]
    peak = peak_gflops(where)
    rows: list[dict[str, Any]] = []
    total = len(atoms) * len(batch) * len(modes) * repeats * len(makers)
    with tqdm(total=total, desc="benchmark", file=sys.stderr) as bar:
        contenders = [make(where) for make in makers.values()]
        for size in atoms:
            for graphs in batch:
                graph = oc20_like(size, graphs, device=where)
                for name in modes:
                    timings = measure(
                        contenders, graph, training=MODES[name], repeats=repeats,
                        progress=bar.update,
                    )  # fmt: skip
                    edges = graph.edge_index.shape[1]
                    for contender in contenders:
                        timing = timings[contender.name]
                        rows.append(_row(contender, timing, name, size, graphs, edges, peak))
    device_name = torch.cuda.get_device_name(where) if where.type == "cuda" else machine_class()
    head = f"{device_name}, {torch.get_num_threads()} threads; best matrix product seen: "
    click.echo(f"{head}{peak:.0f} GFLOP/s; medians of {repeats}, interleaved\n")
    click.echo(_table(rows))
    if json_file:
        machine = {"name": device_name, "threads": torch.get_num_threads(), "peak_gflops": peak}
        write_json(json_file, {"machine": machine, "repeats": repeats, "rows": rows})
    if plot:
        from ocp_faenet.cli.benchmark_plot import plot_times

        plot_times(rows, plot)
        click.echo(f"\n{plot}")


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
    here = all(name in known for name in names) and bool(names)
    if not here and importlib.util.find_spec("fairchem") is not None:
        from ocp_faenet.adapters.peers import all_peers

        known.update(all_peers())
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BadInputError(f"--models {unknown[0]!r} is not known; one of: {', '.join(known)}")
    return {name: known[name] for name in names} if names else known


def _row(
    contender: Contender,
    timing: Timing,
    mode: str,
    atoms: int,
    graphs: int,
    edges: int,
    peak: float,
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "model": contender.name, "mode": mode, "atoms": atoms, "batch": graphs, "edges": edges,
        "parameters": sum(p.numel() for p in contender.module.parameters()),
        "error": timing.error,
    }  # fmt: skip
    if timing.error is None:
        row |= {
            "seconds": timing.median,
            "all_seconds": timing.seconds,
            "samples_per_second": graphs / timing.median,
            "gflop": timing.gflop,
            "share_of_peak": timing.gflop / timing.median / peak,
            "peak_mib": None if timing.peak_bytes is None else timing.peak_bytes / 2**20,
        }
    return row


def _table(rows: list[dict[str, Any]]) -> str:
    header = [
        "model", "mode", "atoms", "batch", "samples/s", "ms/batch", "GFLOP", "% of peak", "MiB",
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
                f"{row['gflop']:.3g}",
                f"{100 * row['share_of_peak']:.0f}",
                "-" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}",
            ]
        )
    return markdown_table(header, lines)


if __name__ == "__main__":
    benchmark()
