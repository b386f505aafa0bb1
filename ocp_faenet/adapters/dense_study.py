"""What a study says of its runs on OC20-Dense: success rates and ranking by split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ocp_faenet.adapters.runs import RunSpec
from ocp_faenet.data.dense_membership import plain_id
from ocp_faenet.data.reader import open_lmdb
from ocp_faenet.metrics.bootstrap import Estimate
from ocp_faenet.metrics.dense import Candidate, Candidates, perfect, random_choice, scores
from ocp_faenet.metrics.submission import read_arrays

Targets = dict[str, dict[str, float]]
Predicted = tuple[dict[str, dict[str, Candidate]], Targets]
#: Scores of each split and of all systems together: key, heading, factor.
BY_SPLIT = (("success_proxy", "SR (proxy) %", 100.0), ("found@1", "minimum found %", 100.0))
TOGETHER = (
    ("offset", "offset (eV)", 1.0),
    ("within", "within (eV)", 1.0),
    ("regret", "regret (eV)", 1.0),
    ("spearman", "Spearman", 1.0),
)


def dense_of(spec: RunSpec, result: Mapping[str, Any]) -> dict[str, float]:
    """Scores of the predictions that the run left for each split (measurement ``dense``).

    Raises:
        ValueError: a split whose records have no ``system_id``.
    """
    columns: dict[str, float] = {}
    together: Predicted = ({}, {})
    by_split = {}
    for split, (candidates, targets) in predicted(spec, result).items():
        by_split[split] = scores(candidates, targets, samples=1)
        together[0].update(candidates)
        together[1].update(targets)
    for key, heading, factor in BY_SPLIT:
        for split, found in by_split.items():
            columns[f"{split} {heading}"] = factor * found[key].value
    overall = scores(*together, samples=1)
    return columns | {heading: factor * overall[key].value for key, heading, factor in TOGETHER}


def predicted(spec: RunSpec, result: Mapping[str, Any]) -> dict[str, Predicted]:
    """Candidates and targets of each split, from the predictions that the run left.

    Raises:
        ValueError: a split whose records have no ``system_id``; predictions that are gone.
    """
    folder = Path(result["checkpoint"]).parents[2]
    out = {}
    for split, src in spec.splits.items():
        places, targets = read_targets(src)
        energy = _energies(folder / f"predictions_{split}.npz")
        candidates: dict[str, dict[str, Candidate]] = {name: {} for name in targets}
        for sid, (system, config) in places.items():
            candidates[system][config] = Candidate(energy[sid], targets[system][config])
        out[split] = (candidates, targets)
    return out


def _energies(path: Path) -> dict[str, float]:
    """Predicted energies in eV by sid."""
    try:
        arrays = read_arrays(path)
        return dict(zip(arrays["ids"].tolist(), arrays["energy"].tolist(), strict=True))
    except (KeyError, ValueError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ValueError(
            f"{path}: {reason}; remove {path.parent / 'result.json'}, and the run predicts again"
        ) from error


def dense_references(spec: RunSpec) -> list[dict[str, Any]]:
    """Rows of what needs no training: a perfect oracle, and a random choice.

    The random choice knows each system's energies, not which configuration has which.
    """
    rows: list[dict[str, Any]] = []
    found = {split: read_targets(src)[1] for split, src in spec.splits.items()}
    together: Targets = {name: own for targets in found.values() for name, own in targets.items()}
    for label, score in (("perfect oracle", _perfect), ("random choice", _random)):
        values = {split: score(targets) for split, targets in found.items()}
        measured = {
            f"{split} {heading}": factor * values[split][key]
            for key, heading, factor in BY_SPLIT
            for split in found
        }
        overall = score(together)
        measured |= {
            heading: factor * overall[key] for key, heading, factor in TOGETHER if key in overall
        }
        maes = {split: {"energy_mae": values[split]["mae"]} for split in found}
        rows.append({"label": label, "splits": maes, "measured": measured})
    return rows


def _perfect(targets: Targets) -> dict[str, float]:
    candidates: Candidates = perfect(targets)
    found: dict[str, Estimate] = scores(candidates, targets, samples=1)
    return {key: estimate.value for key, estimate in found.items()}


def _random(targets: Targets) -> dict[str, float]:
    """Its energies are a system's own, so nothing is shared: the MAE is all within systems."""
    return {**random_choice(targets), "offset": 0.0}


def read_targets(src: str) -> tuple[dict[str, tuple[str, str]], Targets]:
    """System and configuration by sid, and energies in eV by system and configuration.

    Raises:
        ValueError: a record that ``dense split`` did not write.
    """
    places: dict[str, tuple[str, str]] = {}
    targets: Targets = {}
    with open_lmdb(Path(src)) as records:
        for index, record in enumerate(records):
            if not {"system_id", "config_id", "y_relaxed"} <= record.keys():
                raise ValueError(
                    f"{src}: record {index} has no system_id; split with: ocp-faenet dense split"
                )
            place = (str(record["system_id"]), str(record["config_id"]))
            places[plain_id(record["sid"])] = place
            targets.setdefault(place[0], {})[place[1]] = float(record["y_relaxed"])
    return places, targets
