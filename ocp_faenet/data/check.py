"""What an LMDB holds against the OC20 schema."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ocp_faenet.data.lmdb_io import LmdbError
from ocp_faenet.data.reader import open_lmdb
from ocp_faenet.data.schema import (
    EDGE_KEYS,
    Fields,
    Kind,
    array_of,
    faults,
    kind_of,
    missing_keys,
    tagged_as_ase,
)


@dataclass(frozen=True)
class BadRecord:
    """The first record with a fault."""

    index: int
    sid: str
    fault: str


@dataclass
class Report:
    """Findings on one LMDB.

    Attributes:
        path, kind, records: what it is.
        bad: number of records with faults; `first_bad` is the first of them.
        missing: by key, in how many records it is missing.
        ranges: least and largest value by quantity (eV, eV/Å, Å).
        elements: how many atoms there are of each atomic number.
        notes: what is allowed but good to know.
    """

    path: Path
    kind: Kind
    records: int
    bad: int = 0
    first_bad: BadRecord | None = None
    missing: dict[str, int] = field(default_factory=dict)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    elements: dict[int, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain types for a JSON file."""
        first = None if self.first_bad is None else vars(self.first_bad)
        content = {key: value for key, value in vars(self).items() if key != "first_bad"}
        return {**content, "path": str(self.path), "kind": self.kind.value, "first_bad": first}


def check_lmdb(path: Path, progress: Callable[[int], object] = lambda done: None) -> Report:
    """Read every record of a file and report.

    Args:
        path: the LMDB file.
        progress: told 1 for each record.

    Raises:
        LmdbError: the file is missing, no LMDB, truncated, empty, or its first record unreadable.
    """
    with open_lmdb(path) as records:
        kind = kind_of(records[0])
        report = Report(path, kind, len(records))
        missing: Counter[str] = Counter()
        elements: Counter[int] = Counter()
        oddities: Counter[str] = Counter()
        for index in range(len(records)):
            try:
                fields = records[index]
                found = list(faults(fields, kind))
            except LmdbError as error:
                fields, found = {}, [str(error).removeprefix(f"{path}: ")]
            if found:
                _note_bad(report, index, fields, found)
            if fields:
                missing.update(missing_keys(fields, kind))
                missing.update(key for key in EDGE_KEYS if key not in fields)
                oddities.update(_oddities(fields))
                _widen(report.ranges, fields)
                elements.update(_elements(fields))
            progress(1)
    report.missing = dict(missing)
    report.elements = dict(sorted(elements.items()))
    report.notes = [f"{count} of {len(records)} records {what}" for what, count in oddities.items()]
    return report


def _note_bad(report: Report, index: int, fields: Fields, found: list[str]) -> None:
    report.bad += 1
    if report.first_bad is None:
        sid = fields.get("sid")
        name = "unknown" if sid is None else str(array_of(sid).reshape(-1)[0])
        report.first_bad = BadRecord(index, name, "; ".join(found))


def _oddities(fields: Fields) -> Iterable[str]:
    if "edge_index" not in fields:
        yield "have no edges: train with otf_graph: true"
    if "tags" in fields and not array_of(fields["tags"]).any():
        yield "have all tags zero, as OC22 has them: no surface and no adsorbate are marked"
    if {"tags", "pos"} <= fields.keys() and tagged_as_ase(fields["pos"], fields["tags"]):
        yield "have tag 0 on top, as ASE has it: set 0 below the surface, 1 at it, 2 above"
    if "fixed" in fields and array_of(fields["fixed"]).all():
        yield "have every atom fixed: they add nothing to a force loss over free atoms"


def _elements(fields: Fields) -> Counter[int]:
    numbers = array_of(fields.get("atomic_numbers", np.empty(0))).ravel()
    return Counter(int(z) for z in numbers[np.isfinite(numbers)])


def _widen(ranges: dict[str, tuple[float, float]], fields: Fields) -> None:
    for name, values in _quantities(fields):
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = ranges.get(name, (np.inf, -np.inf))
            ranges[name] = (min(low, float(finite.min())), max(high, float(finite.max())))


def _quantities(fields: Fields) -> Iterable[tuple[str, Any]]:
    for key in ("y_init", "y_relaxed", "y"):
        if key in fields:
            yield f"{key} (eV)", array_of(fields[key]).astype(float).ravel()
    for key, name in (("force", "force norm (eV/Å)"), ("cell", "cell length (Å)")):
        if key in fields and array_of(fields[key]).size % 3 == 0:
            rows = array_of(fields[key]).astype(float).reshape(-1, 3)
            yield name, np.linalg.norm(rows, axis=1)
    if "pos" in fields:
        n_atoms = len(array_of(fields["pos"]))
        yield "natoms", np.array([n_atoms], dtype=float)
        if "edge_index" in fields and n_atoms:
            n_edges = array_of(fields["edge_index"]).shape[-1]
            yield "edges per atom", np.array([n_edges / n_atoms])
