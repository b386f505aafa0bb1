"""Scores of a search for the most stable adsorption: OC20-Dense (numpy alone).

Lan et al., npj Comput. Mater. 9, 172 (2023), arXiv 2211.16486, and the validated success of the
Open Catalyst Challenge 2023. A *system* is an adsorbate on a surface, a *configuration* one
placement of it, a *target* the adsorption energy in eV that the reference's relaxation gave.

Every score is a sum over systems divided by another one, so that systems can be resampled. Results
do not depend on the order of dictionaries: candidates are ranked by predicted energy, then by name.
An energy of 0.0 eV is an energy; what is missing is ``None``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ocp_faenet.metrics.bootstrap import Estimate, ratio
from ocp_faenet.metrics.ranks import spearman

#: eV: how close to the minimum is success, how close to its own reference makes valid.
THRESHOLD = 0.1
#: Candidates that the hybrid scores hand to the reference.
TOP_K = (1, 2, 3, 4, 5)

Targets = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Candidate:
    """One configuration of a system as a model proposes it.

    Attributes:
        predicted: adsorption energy in eV by the model.
        reference: adsorption energy in eV of the proposed structure, by the reference (a single
            point or a relaxation from there); ``None`` where there is none.
        scf: self-consistency steps that this took.
        ionic: ionic steps, likewise.
    """

    predicted: float
    reference: float | None = None
    scf: float = 0
    ionic: float = 0


@dataclass(frozen=True)
class Calls:
    """Steps of the reference: ``scf`` and ``ionic``."""

    scf: float
    ionic: float


Candidates = Mapping[str, Mapping[str, Candidate]]
Part = tuple[float, float]


def ranked(candidates: Mapping[str, Candidate]) -> list[str]:
    """Names of the configurations of a system, lowest predicted energy first."""
    return sorted(candidates, key=lambda name: (candidates[name].predicted, name))


def success(energy: float, best: float) -> tuple[bool, bool]:
    """Whether ``energy`` is within 0.1 eV of ``best`` or below; whether it is 0.1 eV below."""
    apart = energy - best
    return apart <= THRESHOLD, apart < -THRESHOLD


def is_valid(predicted: float, reference: float | None) -> bool:
    """Whether a prediction is within 0.1 eV of its own reference energy."""
    return reference is not None and not abs(reference - predicted) > THRESHOLD


def system_scores(
    candidates: Mapping[str, Candidate],
    targets: Mapping[str, float],
    calls: Calls | None = None,
) -> dict[str, Part]:
    """Numerators and denominators of all scores of one system.

    ``success_proxy``: the report's rate, section 5.2: the candidate of lowest predicted energy is
    within 0.1 eV of the *target of its configuration*, and of the system's minimum or below.
    ``ml_success``, ``ml_much_better``: the same with the reference energy of the proposed
    structure, as `dense_eval.py --ml-success` and the challenge's script have it.
    ``hybrid@k``, ``much_better@k``: the best reference energy among the first ``k`` candidates.
    ``scf_speedup@k``, ``ionic_speedup@k``: steps behind all targets over those of ``k`` candidates.
    ``mae``, ``offset`` (absolute mean error of a system), ``within`` (MAE with that mean removed),
    ``regret`` (target of the first candidate above the minimum), in eV; ``spearman`` of predictions
    and targets; ``found@k``: whether the first ``k`` have a target within 0.1 eV of the minimum.
    The last six are over configurations that have a prediction and a target.

    Args:
        candidates: of the system by configuration; those that failed a physical constraint, or
            were not predicted, are not in it.
        targets: likewise, at least one.
        calls: steps of the reference behind all targets.
    """
    order, best = ranked(candidates), min(targets.values())
    parts: dict[str, Part] = {}
    first = candidates[order[0]] if order else None
    own = None if first is None else first.reference
    parts["ml_success"], parts["ml_much_better"] = _judged(first, own, best)
    known = [name for name in order if name in targets]
    chosen = candidates[known[0]] if known else None
    parts["success_proxy"] = _judged(chosen, targets[known[0]] if known else None, best)[0]
    for k in TOP_K:
        parts |= _hybrid(k, [candidates[name] for name in order[:k]], best, calls)
        found = any(success(targets[name], best)[0] for name in known[:k])
        parts[f"found@{k}"] = (float(found), 1.0)
    if known:
        parts |= _errors([(candidates[name].predicted, targets[name]) for name in known], best)
    return parts


def _judged(candidate: Candidate | None, reference: float | None, best: float) -> tuple[Part, Part]:
    if candidate is None or not is_valid(candidate.predicted, reference):
        return (0.0, 1.0), (0.0, 1.0)
    good, better = success(candidate.predicted, best)
    return (float(good), 1.0), (float(better), 1.0)


def _hybrid(
    k: int, chosen: Sequence[Candidate], best: float, calls: Calls | None
) -> dict[str, Part]:
    energies = [each.reference for each in chosen if each.reference is not None]
    good, better = success(min(energies, default=math.inf), best)
    parts = {f"hybrid@{k}": (float(good), 1.0), f"much_better@{k}": (float(better), 1.0)}
    if calls is not None:
        parts[f"scf_speedup@{k}"] = (calls.scf, math.fsum(each.scf for each in chosen))
        parts[f"ionic_speedup@{k}"] = (calls.ionic, math.fsum(each.ionic for each in chosen))
    return parts


def _errors(pairs: Sequence[tuple[float, float]], best: float) -> dict[str, Part]:
    """``pairs`` of prediction and target, lowest prediction first."""
    predicted, target = np.array(pairs, dtype=np.float64).T
    error = predicted - target
    count = float(len(error))
    rho = spearman(predicted, target)
    return {
        "mae": (float(np.abs(error).sum()), count),
        "offset": (abs(float(error.mean())), 1.0),
        "within": (float(np.abs(error - error.mean()).sum()), count),
        "regret": (float(target[0] - best), 1.0),
        "spearman": (0.0, 0.0) if rho is None else (rho, 1.0),
    }


def scores(
    candidates: Candidates,
    targets: Targets,
    calls: Mapping[str, Calls] | None = None,
    systems: Iterable[str] | None = None,
    *,
    samples: int = 2000,
) -> dict[str, Estimate]:
    """All scores over ``systems``, those of ``targets`` if not given, as `system_scores` has them.

    A system without candidates fails; see `system_scores` for the rest. Rates are between 0 and 1.

    Args:
        candidates: by system and configuration.
        targets: likewise, in eV.
        calls: by system; without them there are no speed-ups.
        systems: which; every one has targets.
        samples: of the bootstrap.

    Raises:
        ValueError: no systems, or one without targets or, where ``calls`` are given, without them.
    """
    names = sorted(targets if systems is None else systems)
    if not names:
        raise ValueError("no system to score")
    for name in names:
        if not targets.get(name):
            raise ValueError(f"system {name}: no targets")
        if calls is not None and name not in calls:
            raise ValueError(f"system {name}: its reference's steps are unknown")
    every = [
        system_scores(candidates.get(name, {}), targets[name], calls[name] if calls else None)
        for name in names
    ]
    keys = sorted({key for parts in every for key in parts})
    return {
        key: ratio(
            [parts.get(key, (0.0, 0.0))[0] for parts in every],
            [parts.get(key, (0.0, 0.0))[1] for parts in every],
            samples=samples,
        )
        for key in keys
    }


def perfect(targets: Targets) -> dict[str, dict[str, Candidate]]:
    """What an oracle proposes: every configuration with its target."""
    return {
        system: {name: Candidate(energy, energy) for name, energy in configs.items()}
        for system, configs in targets.items()
    }


def random_choice(targets: Targets) -> dict[str, float]:
    """Expected scores of knowing each system's energies, but not which configuration has which.

    Then a random configuration is chosen: ``success_proxy`` and ``hybrid@1`` are the share within
    0.1 eV of the minimum, ``mae`` the mean difference of two configurations of a system, ``regret``
    the mean target above the minimum; ``found@k`` is the chance of one good among ``k`` drawn.
    """
    shares, regrets, apart, count = [], [], 0.0, 0
    found: dict[int, list[float]] = {k: [] for k in TOP_K}
    for configs in targets.values():
        energies = np.array(sorted(configs.values()))
        good = int(sum(success(energy, energies[0])[0] for energy in energies))
        n = len(energies)
        shares.append(good / n)
        regrets.append(float(energies.mean() - energies[0]))
        apart += float(np.abs(energies[:, None] - energies[None]).mean(axis=1).sum())
        count += n
        for k in TOP_K:
            missed = math.comb(n - good, min(k, n)) / math.comb(n, min(k, n))
            found[k].append(1.0 - missed)
    share = float(np.mean(shares))
    return {
        "success_proxy": share,
        "hybrid@1": share,
        "mae": apart / count,
        "regret": float(np.mean(regrets)),
        "spearman": 0.0,
        **{f"found@{k}": float(np.mean(values)) for k, values in found.items()},
    }
