"""``ocp-faenet submission``: leaderboard files of OC20, made and checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from tqdm import tqdm

from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.options import PATH, TABLE_JSON
from ocp_faenet.cli.output import write_json
from ocp_faenet.data.inventory import inventory
from ocp_faenet.metrics import submission as files
from ocp_faenet.metrics.submission import (
    SPLITS,
    Layout,
    SplitPredictions,
    SplitRecords,
    SubmissionError,
    Task,
)
from ocp_faenet.metrics.submission_check import problems, task_of

_LMDB = click.option(
    "--lmdb",
    "lmdbs",
    multiple=True,
    metavar="SPLIT=PATH",
    help="LMDB of a split, e.g. id=data/is2re/all/test_id/data.lmdb; once per split.",
)
_FORMAT = click.option(
    "--format",
    "layout",
    type=click.Choice([layout.value for layout in Layout]),
    default=Layout.LEADERBOARD.value,
    show_default=True,
    help="leaderboard: forces of all atoms. evalai: of free atoms alone.",
)


@click.group()
def submission() -> None:
    """Make and check OC20 leaderboard files.

    \b
    Example, from predictions of the four test splits:
      fairchem --mode predict --config-yml configs/oc20/is2re/all/faenet.yml \\
        --checkpoint best_checkpoint.pt --dataset.test.src=data/is2re/all/test_id/data.lmdb
      ...
      ocp-faenet submission build --task is2re --id results/RUN/ocp_predictions.npz \\
        --ood-ads ... --ood-cat ... --ood-both ... submission.npz
      ocp-faenet submission check submission.npz --lmdb id=data/is2re/all/test_id/data.lmdb
    """


@submission.command()
@click.option("--task", type=click.Choice([task.value for task in Task]), required=True)
@click.option(
    "--checkpoint", type=PATH, help="Predict with this; --id and so on then name the LMDBs."
)
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--id", "id_path", type=PATH, required=True, help="Predictions of the split.")
@click.option("--ood-ads", type=PATH, required=True, help="Likewise.")
@click.option("--ood-cat", type=PATH, required=True, help="Likewise.")
@click.option("--ood-both", type=PATH, required=True, help="Likewise.")
@_LMDB
@_FORMAT
@TABLE_JSON
@click.argument("out", type=PATH)
def build(
    task: str,
    checkpoint: Path | None,
    batch_size: int,
    id_path: Path,
    ood_ads: Path,
    ood_cat: Path,
    ood_both: Path,
    lmdbs: tuple[str, ...],
    layout: str,
    json_path: Path | None,
    out: Path,
) -> None:
    """Make OUT from the four files that `fairchem --mode predict` wrote, or from a checkpoint.

    The host writes forces of free atoms alone: for S2EF in the leaderboard's format each split
    needs its --lmdb, and fixed atoms get zeros. With --checkpoint all atoms are predicted.
    """
    paths = dict(zip(SPLITS, (id_path, ood_ads, ood_cat, ood_both), strict=True))
    if checkpoint is not None:
        lmdbs = (*(f"{name}={path}" for name, path in paths.items()), *lmdbs)
    records = _read_lmdbs(lmdbs)
    try:
        if checkpoint is None:
            read = {name: _read(path, Task(task)) for name, path in paths.items()}
        else:
            read = {
                name: _predict(checkpoint, path, Task(task), batch_size, len(records[name].ids))
                for name, path in paths.items()
            }
        splits = {
            name: _arrange(name, split, paths[name], Layout(layout), records)
            for name, split in read.items()
        }
        arrays = files.assemble(splits, Task(task))
    except SubmissionError as error:
        raise BadInputError(str(error)) from error
    out = out if out.suffix == ".npz" else out.with_name(f"{out.name}.npz")
    _report(arrays, Task(task), Layout(layout), records, json_path, f"{out} not written")
    files.write_arrays(out, arrays)
    click.echo(f"Written: {out}")


@submission.command()
@click.argument("file", type=PATH)
@_LMDB
@_FORMAT
@TABLE_JSON
def check(file: Path, lmdbs: tuple[str, ...], layout: str, json_path: Path | None) -> None:
    """Say what is wrong with FILE: keys, shapes, types, numbers, ids; exit code 2 if anything."""
    try:
        arrays = files.read_arrays(file)
    except SubmissionError as error:
        raise BadInputError(str(error)) from error
    records = _read_lmdbs(lmdbs)
    _report(arrays, task_of(arrays), Layout(layout), records, json_path, str(file))
    click.echo(f"{file}: a good {task_of(arrays).value} file")


def _read(path: Path, task: Task) -> SplitPredictions:
    split = files.read_predictions(path, task)
    if split.energy.dtype == np.float16:
        click.echo(
            f"Warning: {path} holds float16 energies (steps of about 0.004 eV at 5 eV); predict "
            "with outputs.energy.prediction_dtype: float32",
            err=True,
        )
    return split


def _predict(
    checkpoint: Path, path: Path, task: Task, batch_size: int, total: int
) -> SplitPredictions:
    from ocp_faenet.adapters.predictions import predict_lmdb

    wants_forces = task is Task.S2EF
    with tqdm(total=total, desc=str(path), unit="structure") as bar:
        try:
            arrays = predict_lmdb(
                checkpoint, path, forces=wants_forces, batch_size=batch_size, progress=bar.update
            )
        except ValueError as error:
            raise BadInputError(str(error)) from error
    return files.as_predictions(arrays, task, str(path))


def _arrange(
    name: str,
    split: SplitPredictions,
    path: Path,
    layout: Layout,
    records: Mapping[str, SplitRecords],
) -> SplitPredictions:
    if split.forces is None:
        return split
    if name in records:
        return files.arrange_forces(split, records[name], layout)
    if layout is Layout.LEADERBOARD:
        raise SubmissionError(
            f"{path} holds the forces of free atoms and the leaderboard wants all: give "
            f"--lmdb {name}=PATH to place them, or --format evalai"
        )
    return split


def _read_lmdbs(lmdbs: tuple[str, ...]) -> dict[str, SplitRecords]:
    records = {}
    for entry in lmdbs:
        name, equals, path = entry.partition("=")
        if not equals or name not in SPLITS:
            raise BadInputError(f"--lmdb {entry}: SPLIT=PATH with a split of {', '.join(SPLITS)}")
        try:
            records[name] = SplitRecords(*inventory(Path(path)))
        except ValueError as error:
            raise BadInputError(str(error)) from error
    return records


def _report(
    arrays: Mapping[str, files.Array],
    task: Task,
    layout: Layout,
    records: Mapping[str, SplitRecords],
    json_path: Path | None,
    subject: str,
) -> None:
    """Print one row per split and, where something is wrong, leave with one line about it."""
    found = problems(arrays, task, layout, records)
    rows = [_row(arrays, split, split in records) for split in SPLITS]
    width = max(len(row["split"]) for row in rows)
    click.echo(f"{'split':<{width}}  {'systems':>9}  {'forces':>10}  {'energy, eV':>22}  LMDB")
    for row in rows:
        spread = "-" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
        click.echo(
            f"{row['split']:<{width}}  {row['systems']:>9}  {row['forces']:>10}  {spread:>22}  "
            f"{'compared' if row['compared'] else 'not given'}"
        )
    if json_path is not None:
        content = {"task": task.value, "splits": rows, "problems": found}
        write_json(json_path, content)
    if found:
        more = f" (and {len(found) - 1} more faults)" if len(found) > 1 else ""
        raise BadInputError(f"{subject}: {found[0]}{more}")


def _row(arrays: Mapping[str, files.Array], split: str, compared: bool) -> dict[str, Any]:
    energy = arrays.get(f"{split}_energy")
    finite = None
    if energy is not None and energy.dtype.kind == "f":
        finite = energy[np.isfinite(energy)]
    return {
        "split": split,
        "systems": len(np.atleast_1d(arrays.get(f"{split}_ids", np.zeros(0)))),
        "forces": len(np.atleast_1d(arrays.get(f"{split}_forces", np.zeros(0)))),
        "low": None if finite is None or not finite.size else float(finite.min()),
        "high": None if finite is None or not finite.size else float(finite.max()),
        "compared": compared,
    }
