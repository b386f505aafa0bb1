"""``ocp-faenet diagnose``: what happens inside a trained model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.options import JSON, PATH
from ocp_faenet.cli.output import machine_class, markdown_table, write_json


@click.group()
def diagnose() -> None:
    """Look inside trained models."""


@diagnose.command(
    epilog="\b\nocp-faenet diagnose depth runs/checkpoints/a/checkpoint.pt \\\n"
    "    --src data/emt/demo/is2re/val_id/data.lmdb --plot depth.png\n"
    "ocp-faenet diagnose depth plain.pt noisy.pt --src LMDB --json depth.json"
)
@click.argument("checkpoints", type=PATH, nargs=-1, required=True, metavar="CKPT...")
@click.option("--src", type=PATH, required=True, help="LMDB of the structures to look at.")
@click.option("--limit", type=click.IntRange(min=1), default=200, show_default=True,
              help="Structures to look at, from the first on.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True)
@JSON
@click.option("--plot", type=PATH, help="Draw MAD by layer (PNG).")
def depth(
    checkpoints: tuple[Path, ...],
    src: Path,
    limit: int,
    batch_size: int,
    json_path: Path | None,
    plot: Path | None,
) -> None:
    """Diversity of atoms by layer of one or more checkpoints: oversmoothing, measured.

    MAD is the mean cosine distance between the embeddings of two atoms of a structure (arXiv
    1909.03211; figure 2 of the report): 0 where all point the same way. Layer 0 is the embedding
    block. The spread is the standard deviation over structures.
    """
    models = []
    for path in checkpoints:
        models.append({"checkpoint": str(path), **_layers(path, src, limit, batch_size)})
    report = {
        "command": "ocp-faenet diagnose depth", "data": f"{src.parent.name}/{src.name}",
        "machine": machine_class(), "models": models,
    }  # fmt: skip
    click.echo(_text(models))
    if json_path is not None:
        write_json(json_path, report)
    if plot is not None:
        from ocp_faenet.cli.diagnose_plot import plot_depth

        plot_depth(models, plot)


def _layers(path: Path, src: Path, limit: int, batch_size: int) -> dict[str, Any]:
    from ocp_faenet.adapters import depth as host
    from ocp_faenet.adapters.host_model import quiet_host

    quiet_host()
    try:
        model = host.open_faenet(path)
        parts = host.diversity_by_layer(model, src, limit=limit, batch_size=batch_size)
        found = torch.cat(
            list(tqdm(parts, desc=path.name, unit="batch", file=sys.stderr, disable=None)), dim=1
        )
    except (ValueError, OSError) as error:
        raise BadInputError(str(error)) from error
    found = found[:, found.isfinite().all(0)]
    if not found.shape[1]:
        raise BadInputError(f"{src}: no structure with two atoms or more; MAD needs pairs")
    return {
        "structures": found.shape[1],
        "mad": found.mean(1).tolist(),
        "spread": found.std(1, correction=0).tolist(),
    }


def _text(models: list[dict[str, Any]]) -> str:
    header = ["layer", *[f"{Path(each['checkpoint']).name} ({k + 1})" for k, each in
                         enumerate(models)]]  # fmt: skip
    rows = []
    for layer in range(max(len(each["mad"]) for each in models)):
        cells = [
            f"{each['mad'][layer]:.3f} ± {each['spread'][layer]:.3f}"
            if layer < len(each["mad"])
            else "-"
            for each in models
        ]
        rows.append([str(layer), *cells])
    names = [f"({k + 1}) {each['checkpoint']}" for k, each in enumerate(models)]
    return "\n".join([f"MAD by layer, {models[0]['structures']} structures", *names, "",
                      markdown_table(header, rows)])  # fmt: skip
