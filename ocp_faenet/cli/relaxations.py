"""``ocp-faenet relaxations``: how good the structures are that ``run-relaxations`` wrote."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from tqdm import tqdm

from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.options import JSON, PATH
from ocp_faenet.cli.output import markdown_table, write_json
from ocp_faenet.data.emt import EmtPotential
from ocp_faenet.data.lmdb_io import LmdbError
from ocp_faenet.data.reader import open_lmdb
from ocp_faenet.data.relaxed_positions import read_relaxed_positions
from ocp_faenet.data.schema import array_of
from ocp_faenet.metrics import relaxations as scores

#: Key in the JSON -> heading of the table and form.
COLUMNS = {
    "adwt": ("ADwT %", "{:.1f}"),
    "distance": ("distance Å", "{:.3f}"),
    "afbt": ("AFbT %", "{:.1f}"),
    "fbt": ("FbT %", "{:.1f}"),
    "max_force": ("max force eV/Å", "{:.3f}"),
    "energy": ("energy eV", "{:+.3f}"),
}


@dataclass
class Scores:
    """Per structure: mean distance (Å), largest force (eV/Å), energy above the reference (eV)."""

    distance: list[float] = field(default_factory=list)
    force: list[float] = field(default_factory=list)
    energy: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """What a row of the table shows."""
        row = {
            "adwt": 100 * scores.average_below(self.distance, scores.DISTANCES),
            "distance": float(np.mean(self.distance)),
        }
        if self.force:
            row |= {
                "afbt": 100 * scores.average_below(self.force, scores.FORCES),
                "fbt": 100 * scores.share_below(self.force, scores.RELAXED),
                "max_force": float(np.median(self.force)),
                "energy": float(np.mean(self.energy)),
            }
        return row


@click.command()
@click.argument("relaxed", type=PATH)
@click.option("--src", type=PATH, required=True, help="LMDB of the initial structures.")
@click.option("--oracle/--no-oracle", default=True, show_default=True, help="Ask EMT for forces.")
@JSON
def relaxations(relaxed: Path, src: Path, oracle: bool, json_path: Path | None) -> None:
    """Score the structures in RELAXED, the relaxed_positions.npz of `fairchem`'s run-relaxations.

    Free atoms alone count. ADwT: share of structures whose mean distance from the reference is
    below 0.01 to 0.5 Å, averaged over these thresholds. AFbT: share whose largest force is below
    0.01 to 0.4 eV/Å, likewise; FbT: below 0.05 eV/Å (median of it: max force). Forces and energies
    (above the reference) are those of EMT at the structures, so they need the embedded data.

    \b
    Example:
      fairchem --mode run-relaxations --config-yml configs/oc20/emt/s2ef/relax.yml \\
        --checkpoint best_checkpoint.pt --task.relax_opt.traj_dir=trajectories/my-run
      ocp-faenet relaxations results/RUN/relaxed_positions.npz \\
        --src data/emt/demo/is2re/val_id/data.lmdb
    """
    rows = {name: Scores() for name in ("initial", "relaxed", "reference")}
    missing = []
    try:
        found = read_relaxed_positions(relaxed)
        with open_lmdb(src) as records:
            for record in tqdm(records, total=len(records), desc="structures", leave=False):
                name = str(record["sid"])
                if name not in found:
                    missing.append(name)
                    continue
                structures = dict(zip(rows, _structures(record, found[name], src), strict=True))
                _score(record, structures, rows, oracle)
    except (LmdbError, ValueError) as error:
        raise BadInputError(str(error)) from error
    if not rows["relaxed"].distance:
        raise BadInputError(f"{relaxed}: none of its structures is in {src}; set --src")
    report: dict[str, Any] = {name: row.summary() for name, row in rows.items()}
    report["structures"] = len(rows["relaxed"].distance)
    report["missing"] = missing
    click.echo(_table(report))
    if json_path is not None:
        write_json(json_path, report)


def _structures(record: dict[str, Any], positions: Any, src: Path) -> Iterator[Any]:
    """Initial, relaxed and reference positions ``(N, 3)`` of a record."""
    if "pos_relaxed" not in record:
        raise ValueError(f"{src}: record sid {record['sid']} has no 'pos_relaxed'; use IS2RE data")
    initial = array_of(record["pos"])
    if positions.shape != initial.shape:
        raise ValueError(
            f"{src}: record sid {record['sid']} has {len(initial)} atoms, {len(positions)} were "
            "relaxed; a loader transform dropped some: set dataset.relax.transforms: {}"
        )
    yield from (initial, positions, array_of(record["pos_relaxed"]))


def _score(
    record: dict[str, Any], structures: dict[str, Any], rows: dict[str, Scores], oracle: bool
) -> None:
    cell = array_of(record["cell"]).reshape(3, 3).astype(np.float64)
    free = array_of(record["fixed"]) == 0
    if not free.any():
        return  # nothing can move
    reference = structures["reference"]
    potential = EmtPotential(array_of(record["atomic_numbers"]), cell) if oracle else None
    lowest = 0.0 if potential is None else potential(reference).energy
    for name, positions in structures.items():
        rows[name].distance.append(scores.mean_distance(positions[free], reference[free], cell))
        if potential is not None:
            found = potential(positions)
            rows[name].force.append(scores.max_force(found.forces[free]))
            rows[name].energy.append(found.energy - lowest)


def _table(report: dict[str, Any]) -> str:
    rows = [name for name in ("initial", "relaxed", "reference") if name in report]
    keys = [key for key in COLUMNS if key in report["relaxed"]]
    header = ["structures", *(COLUMNS[key][0] for key in keys)]
    lines = [[name, *(COLUMNS[key][1].format(report[name][key]) for key in keys)] for name in rows]
    table = markdown_table(header, lines)
    lost = report["missing"]
    more = (
        f"; {len(lost)} of the LMDB were not relaxed ({', '.join(lost[:5])}, ...)" if lost else ""
    )
    return f"{table}\n{report['structures']} structures, free atoms{more}"
