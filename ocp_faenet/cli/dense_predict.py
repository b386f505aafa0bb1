"""``ocp-faenet dense predict``: the host's predictions on every split."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from tqdm import tqdm

from ocp_faenet.cli import dense_options as options
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.output import markdown_table, write_json
from ocp_faenet.data.dense_split import read_summary
from ocp_faenet.data.relaxed_positions import read_relaxed_positions


@dataclass(frozen=True)
class Relaxing:
    """An S2EF model that relaxes the structures first, and when it stops: fmax in eV/Å."""

    config: Path
    checkpoint: Path
    fmax: float | None
    steps: int | None


@click.command()
@click.option(
    "--config", type=options.PATH, required=True, help="configs/oc20_dense/..., of the model."
)
@click.option("--checkpoint", type=options.PATH, required=True, help="That predicts the energies.")
@click.option("--splits", type=options.PATH, required=True, help="Folder that `dense split` made.")
@options.ONLY
@click.option("--relax-config", type=options.PATH, help="configs/oc20_dense/emt/relax.yml, say.")
@click.option(
    "--relax-checkpoint", type=options.PATH, help="S2EF model that relaxes the structures first."
)
@click.option(
    "--relax-fmax",
    type=click.FloatRange(min=0.0, min_open=True),
    help="Largest force at which a relaxation ends, eV/Å; the configuration's if absent (0.03). A "
    "model whose forces are off by more seldom gets there: give about its force MAE.",
)
@click.option(
    "--relax-steps",
    type=click.IntRange(min=1),
    help="Steps after which it ends anyway; the configuration's if absent (200).",
)
@click.option("--batch-size", type=click.IntRange(min=1), help="The configuration's if absent.")
@click.option(
    "--num-gpus",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes, as of fairchem: one for each GPU, or that many ranks on the CPU.",
)
@click.option("--json", "json_path", type=options.FILE, help="Write the list of files here too.")
@click.argument("out", type=options.PATH)
def predict(
    config: Path,
    checkpoint: Path,
    splits: Path,
    only: str | None,
    relax_config: Path | None,
    relax_checkpoint: Path | None,
    relax_fmax: float | None,
    relax_steps: int | None,
    batch_size: int | None,
    num_gpus: int,
    json_path: Path | None,
    out: Path,
) -> None:
    """Predict every split with the stock `fairchem --mode predict`: OUT/<split>.npz.

    With --relax-config and --relax-checkpoint an S2EF model first relaxes the structures
    (`--mode run-relaxations`, OUT/<split>_relaxed_positions.npz); the energies are then those of
    the relaxed structures, OUT/<split>_relaxed/data.lmdb.

    \b
    Examples:
      ocp-faenet dense predict --config configs/oc20_dense/emt/faenet.yml \\
        --checkpoint checkpoints/my-first-run/checkpoint.pt \\
        --splits data/emt/demo/dense/splits results/dense
      ocp-faenet dense predict --config configs/oc20_dense/emt/schnet_relax.yml \\
        --checkpoint S2EF.pt --relax-config configs/oc20_dense/emt/schnet_relax.yml \\
        --relax-checkpoint S2EF.pt --relax-fmax 0.1 --relax-steps 100 --only id \\
        --splits data/emt/demo/dense/splits results/relaxed
    """
    relaxing = None
    if relax_config is not None and relax_checkpoint is not None:
        relaxing = Relaxing(relax_config, relax_checkpoint, relax_fmax, relax_steps)
    elif relax_config is not None or relax_checkpoint is not None:
        raise BadInputError("--relax-config and --relax-checkpoint: both or none")
    elif relax_fmax is not None or relax_steps is not None:
        raise BadInputError("--relax-fmax, --relax-steps: need --relax-config and its checkpoint")
    how = {"batch_size": batch_size, "ranks": num_gpus}
    rows = []
    with _refusals():
        for name in tqdm(_names(splits, only), desc="splits", file=sys.stderr):
            src, count = splits / name / "data.lmdb", None
            if relaxing is not None:
                src, count = _relaxed(relaxing, src, out, name, how)
            rows.append(_energies(config, checkpoint, src, out / f"{name}.npz", how, count))
    table = [[row["file"], str(row["structures"]), str(row["relaxed"] or "-")] for row in rows]
    click.echo(markdown_table(["file", "energies", "relaxed structures"], table))
    if json_path is not None:
        write_json(json_path, rows)


@contextmanager
def _refusals() -> Iterator[None]:
    """Bad input in one line, and a rank that died in another; the host's own log is not shown."""
    from ocp_faenet.adapters.launch import RankDiedError

    logging.disable(logging.INFO)
    try:
        yield
    except RankDiedError as error:
        raise click.ClickException(str(error)) from error
    except (ValueError, OSError) as error:
        raise BadInputError(" ".join(str(error).split())) from error
    finally:
        logging.disable(logging.NOTSET)


def _names(splits: Path, only: str | None) -> list[str]:
    counts: dict[str, int] = read_summary(splits)["counts"]
    names = [name for name, count in counts.items() if count]
    if only is None:
        return names
    if unknown := sorted(set(only.split(",")) - set(names)):
        raise BadInputError(f"--only {unknown[0]}: the splits are {', '.join(names)}")
    return only.split(",")


def _energies(
    config: Path, checkpoint: Path, src: Path, out: Path, how: dict[str, Any], relaxed: int | None
) -> dict[str, Any]:
    from ocp_faenet.adapters.dense_predict import predict_energies

    predict_energies(config, checkpoint, src, out, **how)
    with np.load(out) as file:
        return {"file": str(out), "structures": len(file["ids"]), "relaxed": relaxed}


def _relaxed(
    relaxing: Relaxing, src: Path, out: Path, name: str, how: dict[str, Any]
) -> tuple[Path, int]:
    from ocp_faenet.adapters.dense_predict import Stop, relax_structures, write_relaxed

    path = out / f"{name}_relaxed_positions.npz"
    stop = Stop(relaxing.fmax, relaxing.steps)
    relax_structures(relaxing.config, relaxing.checkpoint, src, path, stop=stop, **how)
    folder = out / f"{name}_relaxed"
    return folder / "data.lmdb", write_relaxed(src, read_relaxed_positions(path), folder)
