"""``ocp-faenet dense evaluate``: success rates, errors and ranking by split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import click

from ocp_faenet.cli import dense_inputs as inputs
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.output import markdown_table, write_json
from ocp_faenet.data import dense_tables as tables
from ocp_faenet.metrics.bootstrap import Estimate
from ocp_faenet.metrics.dense import TOP_K, Calls, scores

_PATH = click.Path(path_type=Path)
OVERALL = "overall"


class Basis(str, Enum):
    """Where the reference energy of a proposed structure comes from."""

    PROXY = "proxy: the target of the configuration stands in for the proposed structure's own"
    GIVEN = "reference energies of the proposed structures, as given"


#: Key of a score -> heading of the table, factor, digits.
COLUMNS = {
    "success_proxy": ("SR % (proxy)", 100.0, 1),
    "ml_success": ("SR %", 100.0, 1),
    "hybrid@1": ("hybrid k=1 %", 100.0, 1),
    "hybrid@5": ("hybrid k=5 %", 100.0, 1),
    "mae": ("MAE eV", 1.0, 3),
    "offset": ("offset eV", 1.0, 3),
    "within": ("within eV", 1.0, 3),
    "spearman": ("Spearman", 1.0, 2),
    "regret": ("regret eV", 1.0, 3),
}
#: Likewise of the second table, whose rows are k.
BY_K = {
    "hybrid": ("hybrid success %", 100.0, 1),
    "much_better": ("much better %", 100.0, 1),
    "found": ("minimum found %", 100.0, 1),
    "scf_speedup": ("SCF speed-up", 1.0, 1),
    "ionic_speedup": ("ionic speed-up", 1.0, 1),
}


@dataclass(frozen=True)
class Report:
    """Scores by split, and what they rest on."""

    rows: dict[str, dict[str, Estimate]]
    systems: dict[str, int]
    configurations: dict[str, int]
    basis: Basis
    missing: int
    left_out: int

    def as_json(self) -> dict[str, Any]:
        """Everything, rates between 0 and 1."""
        return {
            "basis": self.basis.value,
            "missing_counted_as_failures": self.missing,
            "predictions_without_target": self.left_out,
            "splits": {
                name: {
                    "systems": self.systems[name],
                    "configurations": self.configurations[name],
                    "scores": {key: value.as_json() for key, value in row.items()},
                }
                for name, row in self.rows.items()
            },
        }


@click.command()
@click.option(
    "--predictions",
    type=_PATH,
    required=True,
    multiple=True,
    help="Of `fairchem --mode predict` (.npz, once per file), or AdsorbML's results (.pkl).",
)
@click.option("--targets", type=_PATH, required=True, help="oc20dense_targets.pkl")
@click.option("--mapping", type=_PATH, required=True, help="oc20dense_mapping.pkl")
@click.option("--compute", type=_PATH, help="oc20dense_compute.pkl, for the speed-ups.")
@click.option("--splits", type=_PATH, help="Folder that `dense split` made.")
@click.option("--only", help="Splits to score, by commas.")
@click.option("--references", type=_PATH, help="Reference energies of the proposed structures.")
@click.option("--references-key", help="Part of that file, gemnet-oc-2M say.")
@click.option(
    "--missing",
    type=click.Choice(["error", "fail"]),
    default="error",
    show_default=True,
    help="A configuration without a prediction: refuse, or count it as a failure.",
)
@click.option("--json", "json_path", type=_PATH, help="Write all numbers to this file.")
def evaluate(
    predictions: tuple[Path, ...],
    targets: Path,
    mapping: Path,
    compute: Path | None,
    splits: Path | None,
    only: str | None,
    references: Path | None,
    references_key: str | None,
    missing: str,
    json_path: Path | None,
) -> None:
    """Success rates, errors and ranking of predictions, with 95 % intervals over systems.

    \b
    SR: the configuration of lowest predicted energy is valid (its prediction within 0.1 eV of its
    reference) and within 0.1 eV of the system's minimum, or below. Direct predictions have no
    reference energy of their own structure: the target of the configuration stands in, and the
    column says proxy. --references gives those of relaxed structures.
    hybrid: the best reference energy among the k lowest predictions is as good as the minimum.
    offset, within: the part of the error that a whole system shares, and what is left without it.
    regret: the target of the chosen configuration above the minimum.
    """
    report = evaluated(
        predictions, targets, mapping, compute, splits, only, references, references_key, missing
    )
    click.echo(table_of(report))
    if json_path is not None:
        write_json(json_path, report.as_json())


def evaluated(
    predictions: Sequence[Path],
    targets: Path,
    mapping: Path,
    compute: Path | None = None,
    splits: Path | None = None,
    only: str | None = None,
    references: Path | None = None,
    references_key: str | None = None,
    missing: str = "error",
) -> Report:
    """The report of `evaluate`.

    Raises:
        BadInputError: whatever is wrong with one of the files; one line.
    """
    try:
        known = tables.read_targets(targets)
        places = tables.read_mapping(mapping)
        steps = None if compute is None else tables.read_compute(compute)
    except tables.DenseTableError as error:
        raise BadInputError(str(error)) from error
    named = inputs.scored_systems(known, splits, only)
    every = sorted({name for each in named.values() for name in each} or set(known))
    known = {name: known[name] for name in every} if named else known
    if inputs.is_pickle(predictions[0]):
        if len(predictions) > 1 or references is not None:
            raise BadInputError(f"{predictions[0]}: holds everything; give it alone")
        results = inputs.read_adsorbml(predictions[0], tables.read_targets(targets))
        lost = inputs.refuse_missing(results, known, every, missing == "fail")
        joined, basis = inputs.of_results(results, every), Basis.GIVEN
    else:
        predicted = inputs.read_energies(predictions, places)
        _refuse_strangers(predicted, tables.read_targets(targets), places, targets)
        lost = inputs.refuse_missing(predicted, known, every, missing == "fail")
        given = None if references is None else inputs.read_references(references, references_key)
        joined = inputs.join(predicted, known, every, given, steps)
        basis = Basis.PROXY if given is None else Basis.GIVEN
    calls = None if steps is None else _calls(steps, known, every, not named)
    rows = {
        name: scores(joined.candidates, known, calls, systems)
        for name, systems in {**named, OVERALL: every}.items()
    }
    if basis is Basis.PROXY:  # the same number under a name that it has no right to
        rows = {
            name: {key: value for key, value in row.items() if not key.startswith("ml_")}
            for name, row in rows.items()
        }
    sizes = {**{name: len(each) for name, each in named.items()}, OVERALL: len(every)}
    counts = {
        name: sum(len(known[s]) for s in systems)
        for name, systems in {**named, OVERALL: every}.items()
    }
    return Report(rows, sizes, counts, basis, lost, joined.left_out)


def _refuse_strangers(
    predicted: Mapping[str, Any],
    targets: Mapping[str, Any],
    places: Mapping[str, tables.Placement],
    path: Path,
) -> None:
    """Predicted systems of which the targets know nothing: the wrong targets, most likely."""
    strangers = sorted(system for system in predicted if system not in targets)
    if strangers:
        raise BadInputError(
            f"{path}: no targets for system {strangers[0]}, which is predicted "
            f"({len(strangers)} such systems); predict the LMDBs of `dense split`"
        )


def _calls(
    steps: Mapping[str, Mapping[str, tuple[float, float]]],
    targets: Mapping[str, Any],
    systems: Sequence[str],
    whole: bool,
) -> dict[str, Calls]:
    """Steps by system.

    `dense_eval.py` counts every system of the compute file: where no splits are given, one that
    has no targets would silently change the speed-up, so it is refused.
    """
    absent = [system for system in systems if system not in steps]
    if absent:
        raise BadInputError(f"--compute: system {absent[0]} is not in it ({len(absent)} such)")
    spare = sorted(set(steps) - set(targets)) if whole else []
    if spare:
        click.echo(
            f"Warning: {len(spare)} systems of --compute have no targets; their steps are not "
            "counted (dense_eval.py counts them)",
            err=True,
        )
    return {
        system: Calls(
            sum(scf for scf, _ in steps[system].values()),
            sum(ionic for _, ionic in steps[system].values()),
        )
        for system in systems
    }


def table_of(report: Report) -> str:
    """Both tables, and what they rest on."""
    shown = {key: column for key, column in COLUMNS.items() if key in report.rows[OVERALL]}
    header = ["split", "systems", "configurations", *(heading for heading, _, _ in shown.values())]
    lines = [
        [
            name,
            str(report.systems[name]),
            str(report.configurations[name]),
            *(cell(row.get(key), factor, digits) for key, (_, factor, digits) in shown.items()),
        ]
        for name, row in report.rows.items()
    ]
    overall = report.rows[OVERALL]
    by_k = {key: column for key, column in BY_K.items() if f"{key}@1" in overall}
    second = [
        [str(k), *(cell(overall[f"{key}@{k}"], f, d) for key, (_, f, d) in by_k.items())]
        for k in TOP_K
    ]
    parts = [
        markdown_table(header, lines),
        f"Validity and hybrid energies from {report.basis.value}. 95 % intervals over systems.",
        markdown_table(["k, overall", *(heading for heading, _, _ in by_k.values())], second),
    ]
    if report.missing:
        parts.append(f"{report.missing} configurations without a prediction count as failures.")
    if report.left_out:
        parts.append(f"{report.left_out} predictions left out: no target of their configuration.")
    return "\n\n".join(parts)


def cell(estimate: Estimate | None, factor: float, digits: int) -> str:
    """``value [low, high]``."""
    if estimate is None or estimate.value != estimate.value:
        return "-"
    numbers = (estimate.value, estimate.low, estimate.high)
    value, low, high = (f"{factor * number:.{digits}f}" for number in numbers)
    return f"{value} [{low}, {high}]"
