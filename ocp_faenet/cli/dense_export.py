"""``ocp-faenet dense export`` and ``dense oracle``: what ranking saves the reference."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import click
import numpy as np
from tqdm import tqdm

from ocp_faenet.cli.dense_inputs import read_energies
from ocp_faenet.cli.dense_predict import read_positions
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.output import machine_class, markdown_table, write_json
from ocp_faenet.data.adsorbml_anomalies import anomalies
from ocp_faenet.data.dense_membership import plain_id
from ocp_faenet.data.dense_oracle import Relaxed, atoms_of, relax_from
from ocp_faenet.data.dense_tables import Placement
from ocp_faenet.data.lmdb_io import LmdbError
from ocp_faenet.data.reader import open_lmdb
from ocp_faenet.data.schema import Fields, array_of
from ocp_faenet.metrics.dense import success

_PATH = click.Path(path_type=Path)
_PREDICTIONS = click.option(
    "--predictions", type=_PATH, required=True, multiple=True, help="Of `dense predict`."
)
_DATA = click.option(
    "--data", type=_PATH, required=True, multiple=True, help="LMDB of a split, once for each."
)
_RELAXED = click.option(
    "--relaxed", type=_PATH, multiple=True, help="relaxed_positions.npz of the model."
)
_TOP_K = click.option("--top-k", type=click.IntRange(min=1), default=5, show_default=True)
_JSON = click.option("--json", "json_path", type=_PATH, help="Write all numbers to this file too.")


@dataclass(frozen=True)
class Proposal:
    """A configuration, its predicted energy in eV, and where the model puts the atoms, if it
    does."""

    sid: str
    config: str
    predicted: float
    record: Fields
    positions: np.ndarray[Any, Any] | None

    @property
    def structure(self) -> np.ndarray[Any, Any]:
        """Positions (N, 3) in Å: the model's relaxed ones, else the initial ones."""
        start = array_of(self.record["pos"]).astype(np.float64)
        return start if self.positions is None else self.positions.astype(np.float64)


def proposals(
    predictions: Sequence[Path], data: Sequence[Path], relaxed: Sequence[Path]
) -> dict[str, list[Proposal]]:
    """All configurations of each system, lowest predicted energy first.

    Raises:
        BadInputError: unreadable files, or a record without system or prediction, or, with
            ``relaxed``, without relaxed positions.
    """
    records: dict[str, Fields] = {}
    try:
        for path in data:
            with open_lmdb(path) as found:
                for record in found:
                    if not {"system_id", "config_id"} <= record.keys():
                        raise BadInputError(f"{path}: no system_id; split with: dense split")
                    records[plain_id(record["sid"])] = record
    except LmdbError as error:
        raise BadInputError(str(error)) from error
    mapping = {
        sid: Placement(str(record["system_id"]), str(record["config_id"]), "", "")
        for sid, record in records.items()
    }
    energies = read_energies(predictions, mapping)
    moved = {sid: where for path in relaxed for sid, where in read_positions(path).items()}
    out: dict[str, list[Proposal]] = {}
    for sid, place in mapping.items():
        if place.config_id not in energies.get(place.system_id, {}):
            raise BadInputError(
                f"sid {sid} of the LMDBs has no prediction; predict the whole split"
            )
        where = moved.get(sid)
        if relaxed and (where is None or where.shape != tuple(records[sid]["pos"].shape)):
            raise BadInputError(f"sid {sid} has no relaxed positions; relax the whole LMDB")
        energy = energies[place.system_id][place.config_id][0]
        out.setdefault(place.system_id, []).append(
            Proposal(sid, place.config_id, energy, records[sid], where)
        )
    for own in out.values():
        own.sort(key=lambda each: (each.predicted, each.config))
    return dict(sorted(out.items()))


@click.command()
@_PREDICTIONS
@_DATA
@_RELAXED
@_TOP_K
@click.option(
    "--format",
    "form",
    type=click.Choice(["extxyz", "traj", "vasp"]),
    default="extxyz",
    show_default=True,
    help="vasp: a POSCAR with selective dynamics for each structure.",
)
@_JSON
@click.argument("out", type=_PATH)
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


@click.command()
@_PREDICTIONS
@_DATA
@_RELAXED
@_TOP_K
@_JSON
def oracle(
    predictions: tuple[Path, ...],
    data: tuple[Path, ...],
    relaxed: tuple[Path, ...],
    top_k: int,
    json_path: Path | None,
) -> None:
    """Relax the best-ranked structures with EMT: steps, and minima that are found, by k.

    A structure that ends as an anomaly (AdsorbML's: dissociated, desorbed, intercalated, surface
    changed) finds nothing; they are counted by reason.

    \b
    calls: evaluations of energy and forces until the k structures of a system have converged, from
    the initial structures and, with --relaxed, from the model's.
    of all: those calls over the calls that all configurations of the system take.
    found: share of systems in which one of the k ends within 0.1 eV of the system's minimum, or
    below it. Embedded data only: EMT is their reference.
    """
    every = proposals(predictions, data, relaxed)
    starts = ("initial", "model") if relaxed else ("initial",)
    calls = {start: np.zeros((len(every), top_k)) for start in starts}
    found = {start: np.zeros((len(every), top_k)) for start in starts}
    odd: dict[str, Counter[str]] = {start: Counter() for start in starts}
    whole = np.zeros(len(every))
    total = sum(map(len, every.values()))
    with tqdm(total=total, desc="EMT relaxations", file=sys.stderr) as bar:
        for row, ranked in enumerate(every.values()):
            try:
                whole[row] = _row(ranked, top_k, row, calls, found, odd, bar.update)
            except ValueError as error:
                raise BadInputError(str(error)) from error
    rows: list[dict[str, Any]] = [
        {
            "k": k + 1,
            **{
                start: {
                    "calls": float(calls[start][:, k].mean()),
                    "of_all": float(calls[start][:, k].sum() / whole.sum()),
                    "found": float(found[start][:, k].mean()),
                }
                for start in starts
            },
        }
        for k in range(top_k)
    ]
    header = [
        "k",
        *(f"{start}: {name}" for start in starts for name in ("calls", "of all %", "found %")),
    ]
    lines = [
        [str(row["k"])]
        + [
            text
            for start in starts
            for text in (
                f"{row[start]['calls']:.1f}",
                f"{100 * row[start]['of_all']:.1f}",
                f"{100 * row[start]['found']:.1f}",
            )
        ]
        for row in rows
    ]
    click.echo(markdown_table(header, lines))
    click.echo(f"{len(every)} systems, {total} configurations; EMT to 0.03 eV/Å")
    for start, reasons in odd.items():
        listed = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        click.echo(f"from the {start} structures: {listed or 'no anomaly'}")
    if json_path is not None:
        content = {"systems": len(every), "rows": rows, "anomalies": odd}
        write_json(json_path, {**content, "machine": machine_class()})


def _counts(proposal: Proposal, result: Relaxed, odd: Counter[str]) -> bool:
    """Whether a relaxation may find the minimum; why not goes to ``odd``."""
    if not result.converged:
        odd["not converged"] += 1
        return False
    record = proposal.record
    start = atoms_of(record, array_of(record["pos"]))
    final = atoms_of(record, result.positions)
    reasons = anomalies(start, final, start.get_tags())
    odd.update(reason.value for reason in reasons)
    return not reasons


def _row(
    ranked: Sequence[Proposal],
    top_k: int,
    row: int,
    calls: dict[str, Any],
    found: dict[str, Any],
    odd: dict[str, Counter[str]],
    progress: Any,
) -> float:
    """Fill a system's row; the calls of all its configurations from the initial structures."""
    initial = []
    for each in ranked:
        initial.append(relax_from(each.record, array_of(each.record["pos"])))
        progress(1)
    lowest = min(float(each.record["y_relaxed"]) for each in ranked)
    done = {"initial": initial[:top_k]}
    if "model" in calls:
        done["model"] = [relax_from(each.record, each.structure) for each in ranked[:top_k]]
    good = {
        start: [
            _counts(each, result, odd[start]) for each, result in zip(ranked, results, strict=False)
        ]
        for start, results in done.items()
    }
    for start, results in done.items():
        for k in range(top_k):
            chosen = results[: k + 1]
            calls[start][row, k] = sum(each.calls for each in chosen)
            found[start][row, k] = any(
                fine and success(each.energy, lowest)[0]
                for each, fine in zip(chosen, good[start], strict=False)
            )
    return float(sum(each.calls for each in initial))
