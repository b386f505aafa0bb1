"""OC20-Dense's dictionaries, read by the restricted unpickler and checked.

After the README of AdsorbML: `oc20dense_mapping.pkl`, `oc20dense_targets.pkl`,
`oc20dense_ref_energies.pkl`, `oc20dense_compute.pkl`, `oc20dense_tags.pkl`, and the results file of
its `dense_eval.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocp_faenet.data.unpickle import restricted_loads

#: In the compute file, the relaxation of the clean surface; both sides need it, neither counts it.
CLEAN = "surface"


class DenseTableError(ValueError):
    """A table that cannot be used; the message names the file, the entry and the remedy."""


@dataclass(frozen=True)
class Placement:
    """What the mapping says of one sid."""

    system_id: str
    config_id: str
    adsorbate: str
    mpid: str


@dataclass(frozen=True)
class Result:
    """One entry of AdsorbML's results file; energies in eV, ``reference`` ``None`` if missing."""

    predicted: float
    reference: float | None
    scf: float
    ionic: float


def load_table(path: Path) -> dict[Any, Any]:
    """A pickled dictionary.

    Raises:
        DenseTableError: no such file, no pickle of plain data, no dictionary, or an empty one.
    """
    if not path.is_file():
        raise DenseTableError(f"{path}: no such file")
    try:
        table = restricted_loads(path.read_bytes())
    except ValueError as error:
        raise DenseTableError(f"{path}: {error}") from error
    if not isinstance(table, dict) or not table:
        raise DenseTableError(f"{path}: a filled dictionary is needed, not {_described(table)}")
    return table


def read_mapping(path: Path) -> dict[str, Placement]:
    """Placements by sid (a string, as ``fairchem --mode predict`` writes ids).

    Raises:
        DenseTableError: missing keys, two sids of one placement, or a system of two adsorbates.
    """
    mapping: dict[str, Placement] = {}
    seen: dict[tuple[str, str], str] = {}
    parts: dict[str, tuple[str, str]] = {}
    for key, entry in load_table(path).items():
        wanted = ("system_id", "config_id", "adsorbate", "mpid")
        if not isinstance(entry, Mapping) or any(name not in entry for name in wanted):
            raise DenseTableError(f"{path}: sid {key}: {', '.join(wanted)} are needed")
        found = Placement(*(str(entry[name]) for name in wanted))
        place = (found.system_id, found.config_id)
        if place in seen:
            raise DenseTableError(f"{path}: sids {seen[place]} and {key} are both {place}")
        own = (found.adsorbate, found.mpid)
        if parts.setdefault(found.system_id, own) != own:
            raise DenseTableError(
                f"{path}: system {found.system_id} is both {parts[found.system_id]} and {own}"
            )
        seen[place] = str(key)
        mapping[str(key)] = found
    return mapping


def read_targets(path: Path) -> dict[str, dict[str, float]]:
    """Adsorption energies in eV by system and configuration.

    Raises:
        DenseTableError: a system without targets, a configuration twice, an energy that is none.
    """
    targets: dict[str, dict[str, float]] = {}
    for system, entries in load_table(path).items():
        own = targets[str(system)] = {}
        for entry in _pairs(path, system, entries):
            name, energy = str(entry[0]), _number(entry[1])
            if name in own:
                raise DenseTableError(f"{path}: system {system}: {name} is there twice")
            if energy is None or not math.isfinite(energy):
                raise DenseTableError(f"{path}: system {system}, {name}: {entry[1]!r} is no energy")
            own[name] = energy
        if not own:
            raise DenseTableError(f"{path}: system {system} has no targets; leave it out")
    return targets


def _pairs(path: Path, system: Any, entries: Any) -> list[Any]:
    items = list(entries.items()) if isinstance(entries, Mapping) else entries
    if not isinstance(items, list | tuple) or any(
        not isinstance(item, list | tuple) or len(item) != 2 for item in items
    ):
        raise DenseTableError(
            f"{path}: system {system}: a list of (config_id, energy) is needed, not "
            f"{_described(entries)}"
        )
    return list(items)


def read_ref_energies(path: Path) -> dict[str, float]:
    """Energy of relaxed clean slab and gas reference in eV by system.

    Raises:
        DenseTableError: an energy that is none.
    """
    table = {}
    for system, value in load_table(path).items():
        energy = _number(value)
        if energy is None or not math.isfinite(energy):
            raise DenseTableError(f"{path}: system {system}: {value!r} is no energy")
        table[str(system)] = energy
    return table


def read_tags(path: Path) -> dict[str, NDArray[np.int64]]:
    """Tags (N,) by system: 0 below, 1 surface, 2 adsorbate.

    Raises:
        DenseTableError: other values.
    """
    table = {}
    for system, value in load_table(path).items():
        tags = np.asarray(value)
        if tags.ndim != 1 or not np.isin(tags, (0, 1, 2)).all():
            raise DenseTableError(f"{path}: system {system}: tags of 0, 1 and 2 are needed")
        table[str(system)] = tags.astype(np.int64)
    return table


def read_compute(path: Path) -> dict[str, dict[str, tuple[float, float]]]:
    """SCF and ionic steps by system and configuration, clean surfaces left out.

    Raises:
        DenseTableError: an entry without ``scf`` or ``ionic``, or with a negative one.
    """
    table: dict[str, dict[str, tuple[float, float]]] = {}
    for system, entries in load_table(path).items():
        if not isinstance(entries, Mapping):
            raise DenseTableError(f"{path}: system {system}: a dictionary by configuration")
        own = table[str(system)] = {}
        for name, entry in entries.items():
            if name == CLEAN:
                continue
            steps = [
                _number(entry.get(key)) if isinstance(entry, Mapping) else None
                for key in ("scf", "ionic")
            ]
            if steps[0] is None or steps[1] is None or not (steps[0] >= 0 and steps[1] >= 0):
                raise DenseTableError(f"{path}: system {system}, {name}: {entry!r} counts no steps")
            own[str(name)] = (steps[0], steps[1])
    return table


def read_results(path: Path) -> dict[str, dict[str, Result]]:
    """AdsorbML's results file, by system and configuration.

    Raises:
        DenseTableError: keys that are missing, or numbers that are none.
    """
    table: dict[str, dict[str, Result]] = {}
    for system, entries in load_table(path).items():
        if not isinstance(entries, Mapping):
            raise DenseTableError(f"{path}: system {system}: a dictionary by configuration")
        table[str(system)] = {
            str(name): _result(path, f"system {system}, {name}", entry)
            for name, entry in entries.items()
        }
    return table


def _result(path: Path, where: str, entry: Any) -> Result:
    if not isinstance(entry, Mapping) or "ml_energy" not in entry or "ml+dft_energy" not in entry:
        raise DenseTableError(f"{path}: {where}: ml_energy and ml+dft_energy are needed")
    predicted, reference = _number(entry["ml_energy"]), _number(entry["ml+dft_energy"])
    steps = [_number(entry.get(key, 0)) for key in ("scf_steps", "ionic_steps")]
    for key, value in (("ml_energy", predicted), ("ml+dft_energy", reference)):
        missing = key == "ml+dft_energy" and entry[key] is None
        if not missing and (value is None or not math.isfinite(value)):
            raise DenseTableError(
                f"{path}: {where}: {key} is {entry[key]!r}; leave out what has no prediction, "
                "None where the reference is missing"
            )
    if predicted is None or steps[0] is None or steps[1] is None:
        raise DenseTableError(f"{path}: {where}: {dict(entry)!r} counts no steps")
    return Result(predicted, reference, steps[0], steps[1])


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float | np.number):
        return float(value)
    return None


def _described(value: Any) -> str:
    return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else repr(value)
