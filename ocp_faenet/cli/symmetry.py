"""``ocp-faenet symmetry``: how far a trained model's predictions depend on what they should not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from ocp_faenet.adapters import host_model as host
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.options import JSON, PATH
from ocp_faenet.cli.output import machine_class, markdown_table, write_json
from ocp_faenet.metrics.symmetry import Score, SymmetryTable, symmetry_errors
from ocp_faenet.models.config import FrameAveraging, FrameSource
from ocp_faenet.models.frame_quality import FrameQuality, frame_quality
from ocp_faenet.models.graph import AtomGraph
from ocp_faenet.models.symmetries import declared_symmetries


@dataclass
class FrameStatistics:
    """`FrameQuality` over a data set."""

    parts: list[FrameQuality]

    def summary(self) -> dict[str, float]:
        """Shares in [0, 1], and the 1 % quantiles of gaps and margins."""
        joined = {
            name: torch.cat([getattr(part, name) for part in self.parts]).double()
            for name in FrameQuality.__dataclass_fields__
        }
        return {
            "equal_eigenvalues": float(joined["equal_eigenvalues"].mean()),
            "ambiguous_sign": float(joined["ambiguous_sign"].mean()),
            "several_frames": float((joined["frames"] > 1).double().mean()),
            "mean_frames": float(joined["frames"].mean()),
            "gap_1_percent": float(joined["gap"].quantile(0.01)),
            "margin_1_percent": float(joined["margin"].quantile(0.01)),
        }


@click.command()
@click.argument("checkpoint", type=PATH)
@click.option("--src", type=PATH, required=True, help="LMDB of the structures to try.")
@click.option("--limit", type=click.IntRange(min=1), default=200, show_default=True,
              help="Structures to try, from the first on.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=2), default=16, show_default=True)
@click.option("--trials", type=click.IntRange(min=1), default=2, show_default=True,
              help="Random changes of each kind for each batch.")  # fmt: skip
@click.option("--double", is_flag=True, help="Run in float64: what is exact shows as 1e-10.")
@click.option("--gpu", is_flag=True, help="Run on the GPU.")
@click.option("--seed", type=int, default=0, show_default=True)
@JSON
@click.option("--plot", type=PATH, help="Draw mean and worst errors (PNG).")
def symmetry(
    checkpoint: Path,
    src: Path,
    limit: int,
    batch_size: int,
    trials: int,
    double: bool,
    gpu: bool,
    seed: int,
    json_path: Path | None,
    plot: Path | None,
) -> None:
    """Measure how predictions change under rotations, reflections, images, order, batch-mates.

    CHECKPOINT is any checkpoint of the host's trainers, of FAENet or of another model. Errors are
    mean and worst over structures, energies in meV, forces in meV/Å (the atom that changes most),
    the worst with its sid. For FAENet the table also says what the model promises, and how many
    structures have frames that are ambiguous.

    \b
    Example:
      ocp-faenet symmetry checkpoints/RUN/best_checkpoint.pt \\
        --src data/emt/demo/is2re/val_id/data.lmdb --json symmetry.json --plot symmetry.png
    """
    host.quiet_host()
    try:
        model = host.open_model(checkpoint, double=double, cpu=not gpu)
        records = host.open_records(src, model)
    except ValueError as error:
        raise BadInputError(str(error)) from error
    table, frames = SymmetryTable(), _statistics(model)
    generator = torch.Generator().manual_seed(seed)
    parts = host.batches(records, model, batch_size, limit)
    count = -(-min(limit, len(records)) // batch_size)
    tried = 0
    for graph, ids in tqdm(parts, total=count, unit="batch", disable=None):
        table.add(symmetry_errors(model, graph, generator=generator, trials=trials), ids)
        _look_at_frames(frames, graph, model)
        tried += len(ids)
    report = _report(model, table, frames)
    report = {
        "checkpoint": checkpoint.name, "structures": tried, "trials": trials,
        "dtype": str(model.dtype).removeprefix("torch."), "machine": machine_class(), **report,
    }  # fmt: skip
    click.echo(_text(report))
    if json_path is not None:
        write_json(json_path, report)
    if plot is not None:
        from ocp_faenet.cli.symmetry_plot import plot_errors

        plot_errors(report, plot)


def _statistics(model: host.HostModel) -> dict[FrameSource, FrameStatistics]:
    framed = (FrameAveraging.PLANE, FrameAveraging.SPACE)
    if model.config is None or model.config.frame_averaging not in framed:
        return {}
    return {source: FrameStatistics([]) for source in FrameSource}


def _look_at_frames(
    frames: dict[FrameSource, FrameStatistics], graph: AtomGraph, model: host.HostModel
) -> None:
    """Every source on the graph that the model itself sees."""
    if not frames or model.config is None:
        return
    seen = host.as_seen(graph, model)
    for source, statistics in frames.items():
        config = replace(model.config, frame_source=source)
        statistics.parts.append(frame_quality(seen, config))


def _report(
    model: host.HostModel, table: SymmetryTable, frames: dict[FrameSource, FrameStatistics]
) -> dict[str, Any]:
    claims = {} if model.config is None else declared_symmetries(model.config)
    forces = table.forces()
    rows = [
        {
            "symmetry": kind.value,
            "declared": claims[kind].value if kind in claims else None,
            "energy": _score(energy),
            "forces": _score(forces.get(kind)),
        }
        for kind, energy in table.energy().items()
    ]
    chosen = None if not frames or model.config is None else model.config.frame_source.value
    return {
        "symmetries": rows,
        "frame_source": chosen,
        "frames": {source.value: found.summary() for source, found in frames.items()},
    }


def _score(score: Score | None) -> dict[str, Any] | None:
    if score is None:
        return None
    return {"mean": score.mean, "worst": score.worst, "worst_sid": score.worst_id}


def _text(report: dict[str, Any]) -> str:
    with_forces = any(row["forces"] for row in report["symmetries"])
    header = ["change", "declared", "energy mean (meV)", "worst", "sid"]
    header += ["forces mean (meV/Å)", "worst", "sid"] if with_forces else []
    rows = []
    for row in report["symmetries"]:
        cells = [row["symmetry"], row["declared"] or "-", *_cells(row["energy"])]
        rows.append(cells + (_cells(row["forces"]) if with_forces else []))
    text = [f"{report['structures']} structures, {report['dtype']}", markdown_table(header, rows)]
    if report["frames"]:
        text += ["", _frames_text(report)]
    return "\n".join(text)


def _cells(score: dict[str, Any] | None) -> list[str]:
    if score is None:
        return ["-", "-", "-"]
    return [f"{score['mean']:.3g}", f"{score['worst']:.3g}", score["worst_sid"]]


def _frames_text(report: dict[str, Any]) -> str:
    header = ["frames from", "equal eigenvalues", "ambiguous sign", "several frames", "frames each"]
    rows = []
    for source, found in report["frames"].items():
        name = f"{source} (this model)" if source == report["frame_source"] else source
        shares = ("equal_eigenvalues", "ambiguous_sign", "several_frames")
        rows.append([name, *[f"{found[key]:.1%}" for key in shares], f"{found['mean_frames']:.2f}"])
    return markdown_table(header, rows)
