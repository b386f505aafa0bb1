"""What ``dense evaluate`` and its kin read: predictions, joined with mapping and targets."""

from __future__ import annotations

import math
import pickletools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np

from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.data.dense_split import read_summary
from ocp_faenet.data.dense_tables import Placement, Result, load_table, read_results
from ocp_faenet.metrics.dense import Candidate
from ocp_faenet.metrics.submission import SubmissionError, Task, read_predictions

Targets = Mapping[str, Mapping[str, float]]
Candidates = dict[str, dict[str, Candidate]]
#: Predicted energies in eV by system and configuration, with the sid of each.
Predicted = dict[str, dict[str, tuple[float, str]]]


@dataclass
class Joined:
    """Candidates of the systems that are scored.

    Attributes:
        candidates: by system and configuration.
        left_out: predictions of configurations without a target.
        sids: of the candidates, where predictions came by sid.
    """

    candidates: Candidates
    left_out: int = 0
    sids: dict[tuple[str, str], str] = field(default_factory=dict)


def is_pickle(path: Path) -> bool:
    """Whether a file starts as a pickle does and not as an ``.npz``."""
    try:
        with path.open("rb") as stream:
            next(pickletools.genops(stream))
    except (OSError, ValueError, StopIteration):
        return False
    return path.suffix != ".npz"


def read_energies(
    paths: Sequence[Path], mapping: Mapping[str, Placement], known: str = "the mapping"
) -> Predicted:
    """Energies from files of ``fairchem --mode predict``, in any order and any number.

    Args:
        paths: of the files.
        mapping: placements by sid.
        known: what messages call that.

    Raises:
        BadInputError: an unreadable file, an id that is unknown or there twice, an energy that is
            no number.
    """
    found: Predicted = {}
    where: dict[str, Path] = {}
    for path in paths:
        try:
            part = read_predictions(path, Task.IS2RE)
        except SubmissionError as error:
            raise BadInputError(str(error)) from error
        if part.energy.dtype.kind not in "fiu":
            raise BadInputError(f"{path}: its energies are {part.energy.dtype}, not numbers")
        if part.energy.dtype == np.float16:
            click.echo(
                f"Warning: {path} holds float16 energies (steps of 0.004 eV at 5 eV); predict with "
                "outputs.energy.prediction_dtype: float32",
                err=True,
            )
        for name, energy in zip(part.ids.tolist(), part.energy.astype(float), strict=True):
            sid = name.partition("_")[0]
            if sid not in mapping:
                raise BadInputError(f"{path}: id {name} is not in {known}")
            if sid in where:
                both = "" if where[sid] == path else f" and in {where[sid]}"
                raise BadInputError(f"{path}: id {name} is there twice{both}; keep one of them")
            if not math.isfinite(energy):
                raise BadInputError(f"{path}: id {name}: the energy is {energy}; predict it again")
            where[sid] = path
            place = mapping[sid]
            found.setdefault(place.system_id, {})[place.config_id] = (float(energy), sid)
    return found


def scored_systems(targets: Targets, splits: Path | None, only: str | None) -> dict[str, list[str]]:
    """Systems by split; without ``splits`` there is none and all systems are ``overall``.

    Raises:
        BadInputError: a split that is not there, or systems without targets.
    """
    if splits is None:
        if only is not None:
            raise BadInputError("--only: needs --splits, where the splits are")
        return {}
    try:
        systems: dict[str, list[str]] = read_summary(splits)["systems"]
    except ValueError as error:
        raise BadInputError(str(error)) from error
    systems = {name: each for name, each in systems.items() if each}
    if only is not None:
        unknown = sorted(set(only.split(",")) - set(systems))
        if unknown:
            raise BadInputError(f"--only {unknown[0]}: the splits are {', '.join(systems)}")
        systems = {name: systems[name] for name in only.split(",")}
    absent = [s for each in systems.values() for s in each if s not in targets]
    if absent:
        raise BadInputError(
            f"{splits}: system {absent[0]} is not in the targets ({len(absent)} such systems); "
            "split anew with these targets"
        )
    return systems


def refuse_missing(
    predicted: Mapping[str, Mapping[str, object]],
    targets: Targets,
    systems: Sequence[str],
    as_failures: bool,
) -> int:
    """Number of configurations with a target and no prediction.

    Raises:
        BadInputError: there are some, and they are not to count as failures.
    """
    missing = [
        (system, name)
        for system in systems
        for name in targets[system]
        if name not in predicted.get(system, {})
    ]
    if missing and not as_failures:
        system, name = missing[0]
        total = sum(len(targets[each]) for each in systems)
        raise BadInputError(
            f"{len(missing)} of {total} configurations have no prediction, the first is {name} of "
            f"system {system}; predict them, choose splits with --only, or count them as failures, "
            "as AdsorbML does: --missing fail"
        )
    return len(missing)


def join(
    predicted: Predicted,
    targets: Targets,
    systems: Sequence[str],
    references: Targets | None,
    compute: Mapping[str, Mapping[str, tuple[float, float]]] | None,
) -> Joined:
    """Candidates of ``systems``: with ``references`` all, else those that have a target.

    Args:
        predicted: energies.
        targets: of the reference's relaxations from the initial structures.
        systems: that are scored.
        references: energies of the proposed structures; without them the targets stand in.
        compute: steps of the reference behind each target, which are those of a candidate too
            where the target stands in for its reference.
    """
    out = Joined({})
    for system in systems:
        own = out.candidates[system] = {}
        for name, (energy, sid) in predicted.get(system, {}).items():
            if references is not None:
                out.sids[system, name] = sid
                own[name] = Candidate(energy, references.get(system, {}).get(name))
                continue
            if name not in targets[system]:
                out.left_out += 1
                continue
            out.sids[system, name] = sid
            scf, ionic = (compute or {}).get(system, {}).get(name, (0.0, 0.0))
            own[name] = Candidate(energy, targets[system][name], scf, ionic)
    return out


def of_results(results: Mapping[str, Mapping[str, Result]], systems: Sequence[str]) -> Joined:
    """Candidates of AdsorbML's results file, those without a target of their own included."""
    return Joined(
        {
            system: {
                name: Candidate(each.predicted, each.reference, each.scf, each.ionic)
                for name, each in results.get(system, {}).items()
            }
            for system in systems
        }
    )


def read_adsorbml(path: Path, targets: Targets) -> dict[str, dict[str, Result]]:
    """AdsorbML's results.

    Raises:
        BadInputError: an unreadable file, or a system without targets.
    """
    try:
        results = read_results(path)
    except ValueError as error:
        raise BadInputError(str(error)) from error
    unknown = [system for system in results if system not in targets]
    if unknown:
        raise BadInputError(
            f"{path}: system {unknown[0]} is not in the targets ({len(unknown)} such systems)"
        )
    return results


def read_references(path: Path, key: str | None) -> dict[str, dict[str, float]]:
    """Reference energies of proposed structures by system and configuration.

    Args:
        path: the challenge's ``ml_relaxed_dft_targets.pkl``, or one of its parts.
        key: the part, ``gemnet-oc-2M`` say.

    Raises:
        BadInputError: an unreadable file, a part that it lacks, an energy that is none.
    """
    try:
        table = load_table(path)
    except ValueError as error:
        raise BadInputError(str(error)) from error
    if key is not None and key not in table:
        raise BadInputError(f"--references-key {key}: {path} holds {', '.join(map(str, table))}")
    found: dict[str, dict[str, float]] = {}
    for system, entries in (table[key] if key is not None else table).items():
        items = entries.items() if isinstance(entries, Mapping) else entries
        own = found[str(system)] = {}
        for entry in items:
            try:
                name, value = entry
                energy = None if value is None else float(value)
            except (TypeError, ValueError) as error:
                raise BadInputError(
                    f"{path}: {system}: {entry!r} is no energy of a configuration; "
                    "--references-key chooses a part of a file of several"
                ) from error
            if energy is not None:
                if not math.isfinite(energy):
                    raise BadInputError(f"{path}: {system}, {name}: {energy} is no energy")
                own[str(name)] = energy
    return found
