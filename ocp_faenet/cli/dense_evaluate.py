"""``ocp-faenet dense evaluate``: success rates, errors and ranking by split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from ocp_faenet.cli import dense_inputs as inputs
from ocp_faenet.cli.dense_report import OVERALL, Basis, Report, table_of
from ocp_faenet.cli.dense_validation import Checked, check_by_emt
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.output import write_json
from ocp_faenet.data import dense_tables as tables
from ocp_faenet.metrics.dense import Calls, scores

_PATH = click.Path(path_type=Path)


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
    "--validation",
    type=click.Choice(["energies", "emt"]),
    default="energies",
    show_default=True,
    help="emt: EMT checks the five best-ranked structures of a system (embedded data).",
)
@click.option("--data", type=_PATH, multiple=True, help="LMDB of a split, for --validation emt.")
@click.option(
    "--relaxed", type=_PATH, multiple=True, help="relaxed_positions.npz, for --validation emt."
)
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
    validation: str,
    data: tuple[Path, ...],
    relaxed: tuple[Path, ...],
    missing: str,
    json_path: Path | None,
) -> None:
    """Success rates, errors and ranking of predictions, with 95 % intervals over systems.

    \b
    SR: the configuration of lowest predicted energy is valid (its prediction within 0.1 eV of its
    reference) and within 0.1 eV of the system's minimum, or below. Direct predictions have no
    reference energy of their own structure: the target of the configuration stands in, and the
    column says proxy. --references gives those of relaxed structures, and --validation emt
    computes them where EMT is the reference: an anomaly (AdsorbML's) is never valid.
    hybrid: the best reference energy among the k lowest predictions is as good as the minimum.
    offset, within: the part of the error that a whole system shares, and what is left without it.
    regret: the target of the chosen configuration above the minimum.
    """
    emt = _emt_files(validation, data, relaxed, references)
    report = evaluated(
        predictions,
        targets,
        mapping,
        compute,
        splits,
        only,
        references,
        references_key,
        missing,
        emt,
    )
    click.echo(table_of(report))
    if json_path is not None:
        write_json(json_path, report.as_json())


@dataclass(frozen=True)
class EmtFiles:
    """Structures for EMT: LMDBs of the splits, and where the model relaxed them to, if it did."""

    data: tuple[Path, ...]
    relaxed: tuple[Path, ...] = ()


def _emt_files(
    validation: str, data: tuple[Path, ...], relaxed: tuple[Path, ...], references: Path | None
) -> EmtFiles | None:
    if validation == "energies":
        if data or relaxed:
            raise BadInputError("--data and --relaxed: are for --validation emt")
        return None
    if not data:
        raise BadInputError("--validation emt: needs the structures; give --data for each split")
    if references is not None:
        raise BadInputError("--validation emt: computes what --references gives; leave one out")
    return EmtFiles(data, relaxed)


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
    emt: EmtFiles | None = None,
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
    odd: dict[str, int] = {}
    if inputs.is_pickle(predictions[0]):
        if len(predictions) > 1 or references is not None or emt is not None:
            raise BadInputError(f"{predictions[0]}: holds everything; give it alone")
        results = inputs.read_adsorbml(predictions[0], tables.read_targets(targets))
        lost = inputs.refuse_missing(results, known, every, missing == "fail")
        joined, basis = inputs.of_results(results, every), Basis.GIVEN
    else:
        predicted = inputs.read_energies(predictions, places)
        _refuse_strangers(predicted, tables.read_targets(targets), places, targets)
        lost = inputs.refuse_missing(predicted, known, every, missing == "fail")
        given = None if references is None else inputs.read_references(references, references_key)
        basis = Basis.PROXY if given is None else Basis.GIVEN
        if emt is not None:
            checked = check_by_emt(predictions, emt.data, emt.relaxed, every)
            given, odd = checked.energies, dict(checked.odd)
            basis = Basis.EMT_RELAXED if emt.relaxed else Basis.EMT
        joined = inputs.join(predicted, known, every, given, steps)
        if emt is not None:
            _count_calls(joined, checked)
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
    return Report(rows, sizes, counts, basis, lost, joined.left_out, odd)


def _count_calls(joined: inputs.Joined, checked: Checked) -> None:
    """EMT's calls are the steps behind each candidate that it checked."""
    for system, own in joined.candidates.items():
        for name, calls in checked.calls[system].items():
            own[name] = replace(own[name], scf=calls, ionic=calls)


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
