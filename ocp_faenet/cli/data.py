"""``ocp-faenet data``: the embedded data set, and what an LMDB holds."""

from __future__ import annotations

from pathlib import Path

import click
from tqdm import tqdm

from ocp_faenet.cli.errors import BadInputError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def data() -> None:
    """Make and check data in the OC20 schema."""


@data.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--preset", type=click.Choice(["tiny", "demo", "full"]), default="demo")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True)
def emt(out: Path, preset: str, seed: int, workers: int) -> None:
    """Build the embedded EMT data set in OUT."""
    from ocp_faenet.data.generate import OutputError, generate
    from ocp_faenet.data.jobs import plan
    from ocp_faenet.data.presets import PRESETS

    total = sum(job.count for job in plan(PRESETS[preset], seed))
    with tqdm(total=total, desc=f"EMT {preset}", unit="relax", smoothing=0.05) as bar:
        try:
            manifest = generate(out, PRESETS[preset], seed, workers=workers, progress=bar.update)
        except OutputError as error:
            raise BadInputError(str(error)) from error
    for name, count in manifest["counts"].items():
        click.echo(f"{name:24s} {count:8d}")
