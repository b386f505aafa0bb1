"""What an S2EF model's relaxations save the oracle, on the embedded dense set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairchem.core.datasets import data_list_collater

from ocp_faenet.adapters.host_model import open_model, open_records
from ocp_faenet.adapters.relaxation import resumable_relax
from ocp_faenet.adapters.runs import RunSpec
from ocp_faenet.data.dense_oracle import follow, potential_of
from ocp_faenet.data.dense_prepare import SPLITS
from ocp_faenet.data.reader import open_lmdb
from ocp_faenet.data.relaxed_positions import whole_structure
from ocp_faenet.data.schema import Fields, array_of
from ocp_faenet.metrics.dense_saving import Ends, by_candidates, each_candidate
from ocp_faenet.metrics.relaxations import max_force

#: Best-ranked structures of a system that the oracle is handed.
TOP_K = 5
#: Steps after which a model's relaxation ends anyway.
STEPS = 50
#: Structures relaxed at a time, and the options of the host's LBFGS (configs/oc20_dense/emt).
BATCH = 20
OPTIONS = {"maxstep": 0.04, "memory": 50, "damping": 1.0, "alpha": 70.0}
HEADINGS = {"initial": "initial", "model": "relaxed"}


@dataclass(frozen=True)
class ModelEnd:
    """Where a model relaxes a configuration to.

    Attributes:
        record: its initial structure.
        energy: of its end by the model, eV.
        positions: (N, 3) there, Å.
        converged: whether the model feels no more than the force at which it was to stop.
    """

    record: Fields
    energy: float
    positions: np.ndarray
    converged: bool


def saving_of(spec: RunSpec, result: Mapping[str, Any]) -> dict[str, float]:
    """The measurement ``saving``: calls of the oracle from the model's structures and without it.

    The model relaxes every configuration of the dense ID split of the data set that it was trained
    on, until no force is above its own force MAE on the first validation split, or for `STEPS`
    steps, and ranks them by its energies there. The oracle relaxes the `TOP_K` best of each system,
    from these structures and from the initial ones of the same configurations.

    Raises:
        ValueError: a model without forces, or a data set without ``dense_splits``.
    """
    error = float(next(iter(result["splits"].values()))["forces_mae"])
    src = relaxed_split_of(spec)
    ends = relax_split(Path(result["checkpoint"]), src, fmax=error, steps=STEPS)
    return saved(ends)


def relaxed_split_of(spec: RunSpec) -> Path:
    """The dense ID split of the data set that the run was trained on."""
    data = Path(spec.config()["dataset"]["train"]["src"]).parents[2]
    return data / SPLITS / "id" / "data.lmdb"


@torch.no_grad()  # stock models ask for gradients by themselves, and the host moves in place
def relax_split(
    checkpoint: Path, src: Path, *, fmax: float, steps: int
) -> dict[str, list[ModelEnd]]:
    """Every configuration of a split relaxed by a model, by system, its lowest energy first.

    Atoms that the model's loader took out of its training data are taken out here too, and stay
    where they are.

    Raises:
        ValueError: an unreadable checkpoint or LMDB, or a model without forces.
    """
    model = open_model(checkpoint, needs="forces")
    dataset = open_records(src, model)
    ends: dict[str, list[ModelEnd]] = {}
    with open_lmdb(src) as stored:
        for first in range(0, len(dataset), BATCH):
            places = range(first, min(first + BATCH, len(dataset)))
            batch = data_list_collater([dataset[place] for place in places], otf_graph=True)
            done = resumable_relax(batch, model.trainer, steps, fmax, dict(OPTIONS))
            sizes = done.natoms.tolist()
            parts = zip(done.energy, done.pos.split(sizes), done.forces.split(sizes), strict=True)
            for place, (energy, pos, forces) in zip(places, parts, strict=True):
                record = stored[place]
                positions = whole_structure(record, pos.detach().double().numpy())
                converged = max_force(forces.detach().numpy()) <= fmax
                moved = ModelEnd(record, float(energy), positions, converged)
                ends.setdefault(str(record["system_id"]), []).append(moved)
    for own in ends.values():
        own.sort(key=lambda each: (each.energy, str(each.record["config_id"])))
    return dict(sorted(ends.items()))


def saved(ends: Mapping[str, list[ModelEnd]]) -> dict[str, float]:
    """What the oracle makes of the `TOP_K` lowest of each system, by column of a study's table."""
    best = [each for ranked in ends.values() for each in ranked[:TOP_K]]
    every = [each for ranked in ends.values() for each in ranked]
    columns = {"model converged %": 100.0 * float(np.mean([each.converged for each in every]))}
    forces: dict[str, list[float]] = {start: [] for start in HEADINGS}
    for each in best:
        forces["initial"].append(largest_force(each.record, array_of(each.record["pos"])))
        forces["model"].append(largest_force(each.record, each.positions))
    found = {start: _followed(ends, start) for start in HEADINGS}
    for start, name in HEADINGS.items():
        one = each_candidate(found[start])
        columns[f"{name}: max force (eV/Å)"] = float(np.median(forces[start]))
        columns[f"{name}: EMT calls, median"] = one["median"]
        columns[f"{name}: EMT calls, mean"] = one["mean"]
    for k in (1, 3, TOP_K):
        for start, name in HEADINGS.items():
            share = by_candidates(found[start], k)["found"]
            columns[f"{name}: found by k = {k} (%)"] = 100.0 * share
    return columns


def largest_force(record: Fields, positions: Any) -> float:
    """The oracle's largest force on a free atom, eV/Å."""
    at = np.asarray(positions, dtype=np.float64)
    return max_force(potential_of(record)(at).forces[array_of(record["fixed"]) == 0])


def _followed(ends: Mapping[str, list[ModelEnd]], start: str) -> list[Ends]:
    """Where the oracle ends from the best of each system."""
    out = []
    for ranked in ends.values():
        done = [
            follow(
                each.record, each.positions if start == "model" else array_of(each.record["pos"])
            )
            for each in ranked[:TOP_K]
        ]
        lowest = min(float(each.record["y_relaxed"]) for each in ranked)
        out.append(Ends([d.calls for d in done], [d.energy for d in done], lowest))
    return out
