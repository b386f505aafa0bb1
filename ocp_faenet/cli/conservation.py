"""``ocp-faenet conservation``: whether forces have an energy, checkpoint by checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from ocp_faenet.adapters.conservation_probe import ProbeSettings, probe
from ocp_faenet.adapters.host_model import quiet_host
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.options import JSON, PATH
from ocp_faenet.cli.output import machine_class, markdown_table, write_json

_DEFAULT = ProbeSettings()
#: Key of `probe` -> heading and form.
COLUMNS = {
    "work": ("closed path meV", "{:.3g}"),
    "work_share": ("closed path %", "{:.3g}"),
    "drift": ("NVE drift meV/atom/ps", "{:.3g}"),
    "deviation": ("NVE change meV", "{:.3g}"),
}
_COUNT = click.IntRange(min=1)
_AMOUNT = click.FloatRange(min=0, min_open=True)


@click.command()
@click.argument("checkpoints", type=PATH, nargs=-1, required=True)
@click.option("--src", type=PATH, required=True, help="LMDB of the structures to start from.")
@click.option("--structures", type=_COUNT, default=_DEFAULT.structures, show_default=True)
@click.option("--loops", type=_COUNT, default=_DEFAULT.loops, show_default=True,
              help="Closed paths about each structure.")  # fmt: skip
@click.option("--points", type=click.IntRange(min=4), default=_DEFAULT.points, show_default=True,
              help="On each path.")  # fmt: skip
@click.option("--radius", type=_AMOUNT, default=_DEFAULT.radius, show_default=True,
              help="Of a path: root mean square over the atoms that move, Å.")  # fmt: skip
@click.option("--steps", type=click.IntRange(min=2), default=_DEFAULT.steps, show_default=True,
              help="Of each NVE trajectory.")  # fmt: skip
@click.option("--timestep", type=_AMOUNT, default=_DEFAULT.timestep, show_default=True, help="fs.")
@click.option("--temperature", type=_AMOUNT, default=_DEFAULT.temperature, show_default=True,
              help="Of the velocities at the start, K.")  # fmt: skip
@click.option("--seed", type=int, default=_DEFAULT.seed, show_default=True)
@JSON
def conservation(
    checkpoints: tuple[Path, ...], src: Path, json_path: Path | None, **options: Any
) -> None:
    """Measure how far forces are from being the gradient of an energy.

    For each of CHECKPOINTS, of FAENet or of any model of the host: the work that forces do around
    random closed paths (in meV, and in % of what they do along them without regard to sign), and
    the drift of the total energy in NVE dynamics with the model's own energy. The same structures,
    paths and velocities for all.

    \b
    Example:
      ocp-faenet conservation checkpoints/{before,after}/checkpoint.pt \\
        --src data/emt/demo/s2ef/val_id/data.lmdb
    """
    quiet_host()
    settings = ProbeSettings(**options)
    rows: dict[str, dict[str, float]] = {}
    with tqdm(total=len(checkpoints) * settings.structures, desc="structures", leave=False) as bar:
        for checkpoint in checkpoints:
            try:
                rows[str(checkpoint)] = probe(checkpoint, src, settings, bar.update)
            except ValueError as error:
                raise BadInputError(f"{checkpoint}: {error}") from error
    header = ["checkpoint", *(heading for heading, _ in COLUMNS.values())]
    lines = [
        [name, *(form.format(row[key]) for key, (_, form) in COLUMNS.items())]
        for name, row in rows.items()
    ]
    click.echo(markdown_table(header, lines))
    if json_path is not None:
        report = {"settings": asdict(settings), "src": str(src), "machine": machine_class()}
        write_json(json_path, {**report, "checkpoints": rows})
