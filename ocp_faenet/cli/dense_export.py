"""``ocp-faenet dense export``: the best-ranked structures, ready for DFT."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase.io
import click
import numpy as np
from tqdm import tqdm

from ocp_faenet.cli import dense_options as options
from ocp_faenet.cli.dense_proposals import Proposal, proposals
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.output import write_json
from ocp_faenet.data.dense_oracle import atoms_of


@click.command()
@options.PREDICTIONS
@options.DATA
@options.RELAXED
@options.TOP_K
@click.option(
    "--format",
    "form",
    type=click.Choice(["extxyz", "traj", "vasp"]),
    default="extxyz",
    show_default=True,
    help="vasp: a POSCAR with selective dynamics for each structure.",
)
@options.JSON
@click.argument("out", type=options.PATH)
def export(
    predictions: tuple[Path, ...],
    data: tuple[Path, ...],
    relaxed: tuple[Path, ...],
    top_k: int,
    form: str,
    json_path: Path | None,
    out: Path,
) -> None:
    """Write the best-ranked structures of every system to OUT, ready for DFT.

    OUT/SYSTEM.extxyz or .traj holds them, lowest predicted energy first; with vasp there is
    OUT/SYSTEM/RANK_CONFIG/POSCAR. Fixed atoms stay fixed. With --relaxed they are the structures
    that the model relaxed, without it the initial ones.

    \b
    Example:
      ocp-faenet dense export --predictions results/dense/id.npz \\
        --data data/emt/demo/dense/splits/id/data.lmdb --top-k 5 --format vasp to-compute
    """
    if out.exists():
        raise BadInputError(f"{out} is there already; name another folder")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    rows: list[dict[str, Any]] = []
    try:
        every = proposals(predictions, data, relaxed)
        temporary.mkdir(parents=True)
        for system, ranked in tqdm(every.items(), desc="systems", file=sys.stderr):
            best = ranked[:top_k]
            _write(temporary, system, best, form)
            rows += [
                {"system": system, "rank": rank, "config": each.config, "sid": each.sid,
                 "predicted": each.predicted}
                for rank, each in enumerate(best, 1)
            ]  # fmt: skip
        temporary.replace(out)
    except OSError as error:
        raise BadInputError(str(error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    kind = "relaxed by the model" if relaxed else "initial"
    click.echo(f"{len(rows)} structures ({kind}) of {len(every)} systems: {out}")
    if json_path is not None:
        write_json(json_path, rows)


def _write(folder: Path, system: str, best: Sequence[Proposal], form: str) -> None:
    images = [
        atoms_of(
            each.record,
            each.structure,
            system_id=system,
            config_id=each.config,
            sid=each.sid,
            predicted_energy=each.predicted,
        )
        for each in best
    ]
    if form != "vasp":
        columns: dict[str, Any] = {"columns": ["symbols", "positions", "tags", "move_mask"]}
        more = columns if form == "extxyz" else {}
        ase.io.write(folder / f"{system}.{form}", images, format=form, **more)
        return
    for rank, (each, atoms) in enumerate(zip(best, images, strict=True), 1):
        place = folder / system / f"{rank}_{each.config}"
        place.mkdir(parents=True)
        order = np.argsort(atoms.get_chemical_symbols(), kind="stable")
        ase.io.write(place / "POSCAR", atoms[order], format="vasp", direct=True)
