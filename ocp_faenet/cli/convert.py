"""``ocp-faenet convert``: weights of the ``faenet`` 0.1.3 package into a checkpoint of the host."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.options import PATH, TABLE_JSON
from ocp_faenet.cli.output import write_json


@click.command()
@click.argument("state_dict", type=PATH)
@click.option(
    "--config",
    type=PATH,
    required=True,
    help="YAML of the arguments that faenet.FAENet was made with; what is left out takes that "
    "package's default. May add frame_averaging, fa_method and any other key of ours.",
)
@click.option("--out", type=PATH, required=True, help="Checkpoint to write.")
@click.option("--energy-mean", default=0.0, show_default=True, help="Of the training target, eV.")
@click.option("--energy-std", default=1.0, show_default=True, help="Likewise, eV.")
@click.option("--force-std", default=1.0, show_default=True, help="Likewise, eV/Å.")
@click.option("--force", is_flag=True, help="Overwrite an existing checkpoint.")
@TABLE_JSON
def convert(
    state_dict: Path,
    config: Path,
    out: Path,
    energy_mean: float,
    energy_std: float,
    force_std: float,
    force: bool,
    json_path: Path | None,
) -> None:
    """Turn STATE_DICT, saved as torch.save(model.state_dict(), PATH) from a faenet 0.1.3 model,
    into a checkpoint for `fairchem --checkpoint`, OCPCalculator and fine-tuning.

    \b
    Example:
      ocp-faenet convert faenet.pt --config kwargs.yml --out checkpoint.pt \\
        --energy-mean -1.525913953781128 --energy-std 2.279365062713623
    """
    scales = {"energy_mean": energy_mean, "energy_std": energy_std, "force_std": force_std}
    for name, value in scales.items():
        if not math.isfinite(value) or (value <= 0 and name.endswith("std")):
            raise BadInputError(f"--{name.replace('_', '-')} {value}: a finite number above 0")
    if out.exists() and not force:
        raise BadInputError(f"{out}: exists already; give --force to replace it")
    from ocp_faenet.adapters import checkpoints  # imports the host: seconds

    try:
        options = checkpoints.read_options(config)
        checkpoint = checkpoints.convert_checkpoint(
            checkpoints.read_state_dict(state_dict), options, checkpoints.Scales(**scales)
        )
        checkpoints.save_whole(checkpoint, out)
    except ValueError as error:
        raise BadInputError(str(error)) from error
    _report(checkpoint, options, out, json_path)


def _report(
    checkpoint: dict[str, Any], options: dict[str, Any], out: Path, json_path: Path | None
) -> None:
    rows = {
        "checkpoint": str(out),
        "tensors": len(checkpoint["state_dict"]),
        "numbers": sum(value.numel() for value in checkpoint["state_dict"].values()),
        "outputs": list(checkpoint["config"]["outputs"]),
        "graph_norm_scope": options["graph_norm_scope"],
        "frame_averaging": options.get("frame_averaging") or None,
    }
    for name, value in rows.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        click.echo(f"{name:17} {'-' if shown is None else shown}")
    if json_path is not None:
        try:
            write_json(json_path, rows)
        except BadInputError as error:
            raise BadInputError(f"{error.message}; {out} is written") from error
    for warning in _warnings(options):
        click.echo(f"Note: {warning}", err=True)


def _warnings(options: dict[str, Any]) -> list[str]:
    untrained = "elements above 84" + (
        ", lanthanides and actinides" if options["pg_hidden_channels"] else ""
    )
    notes = [f"{untrained} have no trained embedding; they got the mean of the trained ones."]
    if not options.get("frame_averaging"):
        notes.append(
            "no frame_averaging in the configuration: predictions depend on the pose. Add "
            "frame_averaging: 2D or 3D if these weights were trained with frames."
        )
    if options["graph_norm"] and options["graph_norm_scope"] == "batch":
        notes.append(
            "graph norm over the mini-batch, as trained: predictions depend on the batch. "
            "graph_norm_scope: graph makes them independent of it, and different."
        )
    return notes
