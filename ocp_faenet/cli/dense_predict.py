"""``ocp-faenet dense predict``: the host's predictions on every split."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import click
import numpy as np
from tqdm import tqdm

from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.output import markdown_table, write_json
from ocp_faenet.data.dense_split import read_summary
from ocp_faenet.data.lmdb_io import LmdbError

_PATH = click.Path(path_type=Path)


@click.command()
@click.option("--config", type=_PATH, required=True, help="configs/oc20_dense/..., of the model.")
@click.option("--checkpoint", type=_PATH, required=True, help="That predicts the energies.")
@click.option("--splits", type=_PATH, required=True, help="Folder that `dense split` made.")
@click.option("--only", help="Splits to predict, by commas.")
@click.option("--relax-config", type=_PATH, help="configs/oc20_dense/emt/relax.yml, say.")
@click.option(
    "--relax-checkpoint", type=_PATH, help="S2EF model that relaxes the structures first."
)
@click.option("--batch-size", type=click.IntRange(min=1), help="The configuration's if absent.")
@click.option("--json", "json_path", type=_PATH, help="Write the list of files here too.")
@click.argument("out", type=_PATH)
def predict(
    config: Path,
    checkpoint: Path,
    splits: Path,
    only: str | None,
    relax_config: Path | None,
    relax_checkpoint: Path | None,
    batch_size: int | None,
    json_path: Path | None,
    out: Path,
) -> None:
    """Predict every split with the stock `fairchem --mode predict`: OUT/<split>.npz.

    With --relax-config and --relax-checkpoint an S2EF model first relaxes the structures
    (`--mode run-relaxations`, OUT/<split>_relaxed_positions.npz); the energies are then those of
    the relaxed structures, OUT/<split>_relaxed/data.lmdb.

    \b
    Example:
      ocp-faenet dense predict --config configs/oc20_dense/emt/faenet.yml \\
        --checkpoint checkpoints/my-first-run/checkpoint.pt \\
        --splits data/emt/demo/dense/splits results/dense
    """
    if (relax_config is None) != (relax_checkpoint is None):
        raise BadInputError("--relax-config and --relax-checkpoint: both or none")
    rows = []
    try:
        names = _names(splits, only)
        for name in tqdm(names, desc="splits", file=sys.stderr):
            src, count = splits / name / "data.lmdb", None
            if relax_config is not None and relax_checkpoint is not None:
                src, count = _relaxed(relax_config, relax_checkpoint, src, out, name, batch_size)
            rows.append(_energies(config, checkpoint, src, out / f"{name}.npz", batch_size, count))
    except (ValueError, OSError) as error:
        raise BadInputError(" ".join(str(error).split())) from error
    table = [[row["file"], str(row["structures"]), str(row["relaxed"] or "-")] for row in rows]
    click.echo(markdown_table(["file", "energies", "relaxed structures"], table))
    if json_path is not None:
        write_json(json_path, rows)


def _names(splits: Path, only: str | None) -> list[str]:
    counts: dict[str, int] = read_summary(splits)["counts"]
    names = [name for name, count in counts.items() if count]
    if only is None:
        return names
    if unknown := sorted(set(only.split(",")) - set(names)):
        raise BadInputError(f"--only {unknown[0]}: the splits are {', '.join(names)}")
    return only.split(",")


def _energies(
    config: Path, checkpoint: Path, src: Path, out: Path, size: int | None, relaxed: int | None
) -> dict[str, Any]:
    from ocp_faenet.adapters.dense_predict import predict_energies

    logging.disable(logging.INFO)  # the host's
    try:
        predict_energies(config, checkpoint, src, out, batch_size=size)
    finally:
        logging.disable(logging.NOTSET)
    with np.load(out) as file:
        return {"file": str(out), "structures": len(file["ids"]), "relaxed": relaxed}


def _relaxed(
    config: Path, checkpoint: Path, src: Path, out: Path, name: str, size: int | None
) -> tuple[Path, int]:
    from ocp_faenet.adapters.dense_predict import relax_structures, write_relaxed

    path = out / f"{name}_relaxed_positions.npz"
    relax_structures(config, checkpoint, src, path, batch_size=size)
    folder = out / f"{name}_relaxed"
    return folder / "data.lmdb", write_relaxed(src, read_positions(path), folder)


def read_positions(path: Path) -> dict[str, np.ndarray]:
    """Positions ``(n, 3)`` in Å by sid, of the host's ``relaxed_positions.npz``.

    Raises:
        BadInputError: another file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            ids, positions, cuts = file["ids"], file["pos"], file["chunk_idx"]
    except (OSError, KeyError, ValueError, BadZipFile, LmdbError) as error:
        raise BadInputError(f"{path}: not a relaxed_positions.npz ({error})") from error
    return dict(zip(ids.astype(str).tolist(), np.split(positions, cuts), strict=True))
