"""Where success on OC20-Dense is lost, and what tells two rows of a study apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ocp_faenet.adapters.dense_study import predicted
from ocp_faenet.adapters.runs import RunSpec
from ocp_faenet.data.dense_tables import read_mapping
from ocp_faenet.metrics.bootstrap import Estimate, ratio
from ocp_faenet.metrics.dense import Candidate, is_valid, ranked, system_scores

Runs = Sequence[tuple[RunSpec, Mapping[str, Any]]]
#: Splits whose adsorbates the training set lacks; those of the others are pooled.
NEW_ADSORBATES = ("ood_ads", "ood_both")
KNOWN = "known adsorbates"
#: What is compared: score of a system, heading, factor, and whether of each split too.
COMPARED = (
    ("success_proxy", "SR (proxy) %", 100.0, True),
    ("found@1", "minimum found %", 100.0, False),
    ("mae", "MAE (eV)", 1.0, False),
)


def adsorbates_of(spec: RunSpec, result: Mapping[str, Any]) -> dict[str, float]:
    """Which adsorbates fail, and by which condition (measurement ``adsorbates``).

    For the known adsorbates together and for each new one: the success rate, and the shares of
    systems whose chosen configuration is *valid* (predicted within 0.1 eV of its own target) and
    *found* (its target within 0.1 eV of the minimum), and the mean over systems of their mean
    error. Last the success rate on new adsorbates if the model knew, for each of them, the mean
    error of its *other* systems, and took it off.

    Raises:
        ValueError: a split whose records have no ``system_id``, or a data set without the mapping.
    """
    groups: dict[str, list[tuple[Mapping[str, Candidate], Mapping[str, float]]]] = {}
    names = {place.system_id: place.adsorbate for place in read_mapping(mapping_of(spec)).values()}
    for split, (candidates, targets) in predicted(spec, result).items():
        for system, own in targets.items():
            group = names[system] if split in NEW_ADSORBATES else KNOWN
            groups.setdefault(group, []).append((candidates[system], own))
    columns: dict[str, float] = {}
    corrected: list[float] = []
    for group in sorted(groups, key=lambda name: (name != KNOWN, name)):
        systems = groups[group]
        label = f"{group} ({len(systems)})"
        for name, values in _conditions(systems).items():
            columns[f"{label} {name} %"] = 100.0 * float(np.mean(values))
        columns[f"{label} mean error (eV)"] = float(np.mean(_offsets(systems)))
        if group != KNOWN:
            corrected += [_conditions([each])["SR"][0] for each in _without_offset(systems)]
    if corrected:
        columns[f"new ({len(corrected)}), offset known: SR %"] = 100.0 * float(np.mean(corrected))
    return columns


def mapping_of(spec: RunSpec) -> Path:
    """The mapping of the data set that the run's splits belong to."""
    data = Path(next(iter(spec.splits.values()))).parents[2]
    return data / "dense" / "oc20dense_mapping.pkl"


def _conditions(
    systems: Sequence[tuple[Mapping[str, Candidate], Mapping[str, float]]],
) -> dict[str, list[float]]:
    """``SR``, ``valid`` and ``found`` of each system, 0 or 1."""
    out: dict[str, list[float]] = {"SR": [], "valid": [], "found": []}
    for candidates, targets in systems:
        parts = system_scores(candidates, targets)
        first = candidates[ranked(candidates)[0]]
        out["SR"].append(parts["success_proxy"][0])
        out["valid"].append(float(is_valid(first.predicted, first.reference)))
        out["found"].append(parts["found@1"][0])
    return out


def _offsets(
    systems: Sequence[tuple[Mapping[str, Candidate], Mapping[str, float]]],
) -> list[float]:
    """Mean error of each system's predictions, eV."""
    return [
        float(np.mean([each.predicted - targets[name] for name, each in candidates.items()]))
        for candidates, targets in systems
    ]


def _without_offset(
    systems: Sequence[tuple[Mapping[str, Candidate], Mapping[str, float]]],
) -> Iterator[tuple[dict[str, Candidate], Mapping[str, float]]]:
    """Predictions less the mean error of the other systems, each counting once."""
    offsets = _offsets(systems)
    for place, (candidates, targets) in enumerate(systems):
        others = offsets[:place] + offsets[place + 1 :]
        shift = float(np.mean(others)) if others else 0.0
        moved = {
            name: Candidate(each.predicted - shift, each.reference)
            for name, each in candidates.items()
        }
        yield moved, targets


def dense_difference(one: Runs, other: Runs) -> dict[str, Estimate]:
    """How much more a row of a study reaches than another: mean and 95 % interval.

    Both rows' predictions for the same systems are compared, seed by seed, and the differences of
    a system averaged over the seeds that both have; the systems are then resampled. ``ood`` pools
    all splits of that name.

    Raises:
        ValueError: no seed in common, or different splits.
    """
    seeds = sorted({spec.seed for spec, _ in one} & {spec.seed for spec, _ in other})
    if not seeds:
        raise ValueError("the two rows have no seed in common")
    mine, theirs = (_parts(runs, seeds) for runs in (one, other))
    if mine.keys() != theirs.keys():
        raise ValueError("the two rows were evaluated on different systems")
    splits = list(dict.fromkeys(split for split, _ in mine))
    outside = [split for split in splits if split.startswith("ood")]
    pools = {split: [split] for split in splits} | ({"ood": outside} if len(outside) > 1 else {})
    out = {}
    for key, heading, factor, each_split in COMPARED:
        for pool, names in pools.items():
            if not (each_split or pool == "ood"):
                continue
            systems = [place for place in mine if place[0] in names]
            apart = [np.subtract(mine[place][key], theirs[place][key]) for place in systems]
            out[f"{pool} {heading}"] = ratio(
                [factor * float(np.mean(values[:, 0])) for values in apart],
                [float(mine[place][key][0][1]) for place in systems],
            )
    return out


def _parts(runs: Runs, seeds: Sequence[int]) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """Numerator and denominator (S, 2) of every score, by split and system."""
    found: dict[tuple[str, str], list[dict[str, tuple[float, float]]]] = {}
    for spec, result in sorted(runs, key=lambda run: run[0].seed):
        if spec.seed not in seeds:
            continue
        for split, (candidates, targets) in predicted(spec, result).items():
            for system, own in targets.items():
                parts = system_scores(candidates[system], own)
                found.setdefault((split, system), []).append(parts)
    return {
        place: {key: np.array([parts[key] for parts in every]) for key, *_ in COMPARED}
        for place, every in found.items()
    }
