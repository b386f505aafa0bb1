"""The dense set cut into ID, OOD-ads, OOD-cat and OOD-both, every record accounted for."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Data

from ocp_faenet.data.dense_membership import DenseSplit, plain_id
from ocp_faenet.data.dense_tables import DenseTableError, Placement
from ocp_faenet.data.lmdb_io import write_lmdb, write_metadata
from ocp_faenet.data.reader import LmdbRecords, open_lmdb
from ocp_faenet.data.schema import Fields, array_of

#: Written beside the splits; `dense evaluate` and the fine-tuning read it.
SUMMARY = "splits.json"
#: Folder of the ID split cut by system for fine-tuning.
FINETUNE = "finetune"

#: Splits of a system, from its adsorbate and bulk.
Rule = Callable[[str, str], tuple[DenseSplit, ...]]


class Loss(str, Enum):
    """Why a record is in no split."""

    NO_MAPPING = "its sid is not in the mapping"
    NO_SYSTEM = "no placement of its system has a target"
    NO_TARGET = "its own relaxation has no target (anomalous or not converged)"
    NO_REFERENCE = "its system has no reference energy"
    NO_SPLIT = "its adsorbate and bulk are in no OC20 split together"


@dataclass(frozen=True)
class DenseTables:
    """What is known of the records: by sid, and by system (and configuration)."""

    mapping: Mapping[str, Placement]
    targets: Mapping[str, Mapping[str, float]]
    ref_energies: Mapping[str, float]
    tags: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitPlan:
    """Which record goes where.

    Attributes:
        places: places in the LMDB by split, in its order.
        systems: by split, sorted.
        losses: records in no split by reason.
        targets_without_record: (system, configuration) that the LMDB lacks.
        records: in the LMDB.
    """

    places: dict[DenseSplit, list[int]]
    systems: dict[DenseSplit, list[str]]
    losses: dict[Loss, int]
    targets_without_record: list[tuple[str, str]]
    records: int

    def summary(self) -> dict[str, Any]:
        """What goes to `SUMMARY`."""
        return {
            "records": self.records,
            "counts": {split.value: len(places) for split, places in self.places.items()},
            "lost": {loss.name.lower(): count for loss, count in self.losses.items()},
            "targets_without_record": len(self.targets_without_record),
            "systems": {split.value: names for split, names in self.systems.items()},
        }


def plan_splits(sids: list[str], tables: DenseTables, rule: Rule) -> SplitPlan:
    """Find every record's split, or why it has none.

    Args:
        sids: of the LMDB, in its order.
        tables: what is known of them.
        rule: the definition.

    Raises:
        DenseTableError: a sid twice, or no record in any split.
    """
    doubled = [sid for sid, count in Counter(sids).items() if count > 1]
    if doubled:
        raise DenseTableError(f"sid {doubled[0]} is there twice ({len(doubled)} such sids)")
    places: dict[DenseSplit, list[int]] = {split: [] for split in DenseSplit}
    systems: dict[DenseSplit, set[str]] = {split: set() for split in DenseSplit}
    losses: Counter[Loss] = Counter()
    for place, sid in enumerate(sids):
        found = _splits_of(tables.mapping.get(sid), tables, rule)
        if isinstance(found, Loss):
            losses[found] += 1
            continue
        for split in found:
            places[split].append(place)
            systems[split].add(tables.mapping[sid].system_id)
    have = {(p.system_id, p.config_id) for sid in sids if (p := tables.mapping.get(sid))}
    absent = [
        (system, name)
        for system, configs in tables.targets.items()
        for name in configs
        if (system, name) not in have
    ]
    if not any(places.values()):
        reasons = "; ".join(f"{count}: {loss.value}" for loss, count in losses.items())
        raise DenseTableError(f"no record is in any split ({reasons})")
    ordered = {split: sorted(names) for split, names in systems.items()}
    lost = {loss: losses[loss] for loss in Loss if losses[loss]}
    return SplitPlan(places, ordered, lost, absent, len(sids))


def _splits_of(
    placement: Placement | None, tables: DenseTables, rule: Rule
) -> tuple[DenseSplit, ...] | Loss:
    if placement is None:
        return Loss.NO_MAPPING
    if placement.system_id not in tables.targets:
        return Loss.NO_SYSTEM
    if placement.config_id not in tables.targets[placement.system_id]:
        return Loss.NO_TARGET
    if placement.system_id not in tables.ref_energies:
        return Loss.NO_REFERENCE
    return rule(placement.adsorbate, placement.mpid) or Loss.NO_SPLIT


def finetuning_systems(systems: list[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Systems to train and to validate on; all configurations of one go the same way.

    Raises:
        DenseTableError: fewer than two systems.
    """
    if len(systems) < 2:
        raise DenseTableError("fine-tuning needs two systems in the ID split; more data are needed")
    drawn = np.random.default_rng(seed).permutation(len(systems))
    count = min(max(1, round(share * len(systems))), len(systems) - 1)
    names = sorted(systems)
    train = sorted(names[place] for place in drawn[:count])
    return train, [name for name in names if name not in set(train)]


def write_splits(
    out: Path,
    data: Path,
    plan: SplitPlan,
    tables: DenseTables,
    finetune: tuple[list[str], list[str]] | None,
    summary: Mapping[str, Any],
    progress: Callable[[int], Any] = lambda count: None,
) -> dict[str, int]:
    """Write ``<split>/data.lmdb`` with ``metadata.npz``, ``finetune/...`` and, last, `SUMMARY`.

    Returns:
        Records by folder.

    Raises:
        LmdbError: an unreadable record.
        DenseTableError: tags that do not fit a record.
    """
    counts: dict[str, int] = {}
    (out / SUMMARY).unlink(missing_ok=True)
    with open_lmdb(data) as records:
        for split, places in plan.places.items():
            if places:
                counts[split.value] = _write(
                    out / split.value, records, places, tables, None, progress
                )
        for name, systems in zip(("train", "val"), finetune or (), strict=False):
            folder, places = f"{FINETUNE}/{name}", plan.places[DenseSplit.ID]
            counts[folder] = _write(out / folder, records, places, tables, set(systems), progress)
    text = json.dumps({**plan.summary(), **summary, "written": counts}, indent=2) + "\n"
    temporary = out / f".{SUMMARY}.{os.getpid()}.tmp"
    temporary.write_text(text)
    os.replace(temporary, out / SUMMARY)
    return counts


def _write(
    folder: Path,
    records: LmdbRecords,
    places: list[int],
    tables: DenseTables,
    systems: set[str] | None,
    progress: Callable[[int], Any],
) -> int:
    natoms: list[int] = []
    edges: list[int] = []

    def chosen() -> Iterator[Data]:
        for place in places:
            fields = records[place]
            placement = tables.mapping[plain_id(fields["sid"])]
            if systems is not None and placement.system_id not in systems:
                continue
            done = labelled(fields, placement, tables)
            natoms.append(len(done["pos"]))
            edges.append(done["edge_index"].shape[1] if "edge_index" in done else 0)
            progress(1)
            yield Data(**done)

    count = write_lmdb(folder / "data.lmdb", chosen())
    write_metadata(folder / "metadata.npz", natoms, edges if any(edges) else None)
    return count


def labelled(fields: Fields, placement: Placement, tables: DenseTables) -> Fields:
    """A record in the OC20 schema with ``y_relaxed`` (eV), ``system_id`` and ``config_id``.

    Raises:
        DenseTableError: the table of tags has another number of atoms than the record.
    """
    out = {**fields, "y_relaxed": tables.targets[placement.system_id][placement.config_id]}
    out |= {"system_id": placement.system_id, "config_id": placement.config_id}
    out["ref_energy"] = tables.ref_energies[placement.system_id]
    tags = tables.tags.get(placement.system_id)
    if tags is not None and ("tags" not in fields or not array_of(fields["tags"]).any()):
        if len(tags) != len(fields["pos"]):
            raise DenseTableError(
                f"system {placement.system_id}: {len(tags)} tags for the {len(fields['pos'])} "
                f"atoms of sid {plain_id(fields['sid'])}"
            )
        out["tags"] = torch.as_tensor(tags)
    return out


def read_summary(folder: Path) -> dict[str, Any]:
    """What `write_splits` left in ``folder``.

    Raises:
        DenseTableError: it is not there.
    """
    path = folder / SUMMARY if folder.is_dir() else folder
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        if not isinstance(found["systems"], dict):
            raise TypeError("systems")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DenseTableError(
            f"{path}: no summary of splits ({error}); make one: ocp-faenet dense split"
        ) from error
    return found
