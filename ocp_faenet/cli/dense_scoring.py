"""From the files of ``dense evaluate`` to its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from ocp_faenet.cli import dense_inputs as inputs
from ocp_faenet.cli.dense_report import OVERALL, Basis, Report
from ocp_faenet.cli.dense_validation import Checked, check_by_emt
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.data import dense_tables as tables
from ocp_faenet.metrics.dense import Calls, scores

Steps = Mapping[str, Mapping[str, tuple[float, float]]]


@dataclass(frozen=True)
class EmtFiles:
    """Structures for EMT: LMDBs of the splits, and where the model relaxed them to, if it did."""

    data: tuple[Path, ...]
    relaxed: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Asked:
    """What is scored against what, as the options of the command have it."""

    predictions: tuple[Path, ...]
    targets: Path
    mapping: Path
    compute: Path | None = None
    splits: Path | None = None
    only: str | None = None
    references: Path | None = None
    references_key: str | None = None
    missing_fail: bool = False
    emt: EmtFiles | None = None


@dataclass(frozen=True)
class Known:
    """What the tables say.

    Attributes:
        targets: of all systems, eV.
        mapping: placements by sid.
        steps: of the reference, if asked for.
        named: systems by split; empty where there are no splits.
    """

    targets: inputs.Targets
    mapping: Mapping[str, tables.Placement]
    steps: Steps | None
    named: dict[str, list[str]]

    @property
    def systems(self) -> list[str]:
        """Those that are scored."""
        of_splits = {name for each in self.named.values() for name in each}
        return sorted(of_splits or self.targets)

    @property
    def groups(self) -> dict[str, list[str]]:
        """Systems by row of the report: each split, and all of them."""
        return {**self.named, OVERALL: self.systems}


@dataclass(frozen=True)
class Proposed:
    """What a model proposes, what its reference energies rest on, and what is not there.

    Attributes:
        joined: the candidates.
        basis: of their reference energies.
        missing: configurations without a prediction, which count as failures.
        anomalies: structures that EMT refused, by reason.
    """

    joined: inputs.Joined
    basis: Basis
    missing: int
    anomalies: dict[str, int] = field(default_factory=dict)


def evaluated(asked: Asked) -> Report:
    """The report of `ocp-faenet dense evaluate`.

    Raises:
        BadInputError: whatever is wrong with one of the files; one line.
    """
    known = _known(asked)
    if inputs.is_pickle(asked.predictions[0]):
        found = _adsorbml(asked, known)
    else:
        found = _predicted(asked, known)
    targets = {name: known.targets[name] for name in known.systems}
    calls = None if known.steps is None else _calls(known.steps, known)
    rows = {
        name: scores(found.joined.candidates, targets, calls, systems)
        for name, systems in known.groups.items()
    }
    if found.basis is Basis.PROXY:  # the same number under a name that it has no right to
        rows = {
            name: {key: value for key, value in row.items() if not key.startswith("ml_")}
            for name, row in rows.items()
        }
    return Report(
        rows,
        {name: len(systems) for name, systems in known.groups.items()},
        {name: sum(len(targets[s]) for s in systems) for name, systems in known.groups.items()},
        found.basis,
        found.missing,
        found.joined.left_out,
        found.anomalies,
    )


def _known(asked: Asked) -> Known:
    try:
        targets = tables.read_targets(asked.targets)
        mapping = tables.read_mapping(asked.mapping)
        steps = None if asked.compute is None else tables.read_compute(asked.compute)
    except tables.DenseTableError as error:
        raise BadInputError(str(error)) from error
    named = inputs.scored_systems(targets, asked.splits, asked.only)
    return Known(targets, mapping, steps, named)


def _adsorbml(asked: Asked, known: Known) -> Proposed:
    """The results file of AdsorbML's own script, which holds predictions and references."""
    path = asked.predictions[0]
    if len(asked.predictions) > 1 or asked.references is not None or asked.emt is not None:
        raise BadInputError(f"{path}: holds everything; give it alone")
    results = inputs.read_adsorbml(path, known.targets)
    missing = inputs.refuse_missing(results, known.targets, known.systems, asked.missing_fail)
    return Proposed(inputs.of_results(results, known.systems), Basis.GIVEN, missing)


def _predicted(asked: Asked, known: Known) -> Proposed:
    """Predictions of the host, with references from a file, from EMT, or with the proxy."""
    predicted = inputs.read_energies(asked.predictions, known.mapping)
    _refuse_strangers(predicted, known.targets, asked.targets)
    missing = inputs.refuse_missing(predicted, known.targets, known.systems, asked.missing_fail)
    references, basis, checked = _references(asked, known)
    joined = inputs.join(predicted, known.targets, known.systems, references, known.steps)
    if checked is None:
        return Proposed(joined, basis, missing)
    _count_calls(joined, checked)
    return Proposed(joined, basis, missing, dict(checked.anomalies))


def _references(asked: Asked, known: Known) -> tuple[inputs.Targets | None, Basis, Checked | None]:
    """Reference energies of the proposed structures, where they come from, what EMT said."""
    if asked.emt is not None:
        files = asked.emt
        checked = check_by_emt(asked.predictions, files.data, files.relaxed, known.systems)
        return checked.energies, Basis.EMT_RELAXED if files.relaxed else Basis.EMT, checked
    if asked.references is not None:
        return inputs.read_references(asked.references, asked.references_key), Basis.GIVEN, None
    return None, Basis.PROXY, None


def _count_calls(joined: inputs.Joined, checked: Checked) -> None:
    """EMT's calls are the steps behind each candidate that it checked."""
    for system, own in joined.candidates.items():
        for name, calls in checked.calls[system].items():
            own[name] = replace(own[name], scf=calls, ionic=calls)


def _refuse_strangers(predicted: Mapping[str, Any], targets: Mapping[str, Any], path: Path) -> None:
    """Predicted systems of which the targets know nothing: the wrong targets, most likely."""
    strangers = sorted(system for system in predicted if system not in targets)
    if strangers:
        raise BadInputError(
            f"{path}: no targets for system {strangers[0]}, which is predicted "
            f"({len(strangers)} such systems); predict the LMDBs of `dense split`"
        )


def _calls(steps: Steps, known: Known) -> dict[str, Calls]:
    """Steps by system.

    `dense_eval.py` counts every system of the compute file: where no splits are given, one that
    has no targets would silently change the speed-up, so it is said.
    """
    absent = [system for system in known.systems if system not in steps]
    if absent:
        raise BadInputError(f"--compute: system {absent[0]} is not in it ({len(absent)} such)")
    spare = [] if known.named else sorted(set(steps) - set(known.targets))
    if spare:
        click.echo(
            f"Warning: {len(spare)} systems of --compute have no targets; their steps are not "
            "counted (dense_eval.py counts them)",
            err=True,
        )
    return {system: _sum(list(steps[system].values())) for system in known.systems}


def _sum(steps: Sequence[tuple[float, float]]) -> Calls:
    return Calls(sum(scf for scf, _ in steps), sum(ionic for _, ionic in steps))
