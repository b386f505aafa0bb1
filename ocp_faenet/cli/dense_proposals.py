"""The configurations of each system in the order in which a model proposes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ocp_faenet.cli.dense_inputs import read_energies
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.data.dense_membership import plain_id
from ocp_faenet.data.dense_tables import Placement
from ocp_faenet.data.lmdb_io import LmdbError
from ocp_faenet.data.reader import open_lmdb
from ocp_faenet.data.relaxed_positions import read_relaxed_positions, whole_structure
from ocp_faenet.data.schema import Fields, array_of


@dataclass(frozen=True)
class Proposal:
    """A configuration, its predicted energy in eV, and where the model puts the atoms, if it
    does."""

    sid: str
    config: str
    predicted: float
    record: Fields
    positions: np.ndarray[Any, Any] | None

    @property
    def start(self) -> np.ndarray[Any, Any]:
        """Initial positions (N, 3) in Å."""
        return array_of(self.record["pos"]).astype(np.float64)

    @property
    def structure(self) -> np.ndarray[Any, Any]:
        """Positions (N, 3) in Å: the model's relaxed ones, else the initial ones."""
        return self.start if self.positions is None else self.positions.astype(np.float64)


def proposals(
    predictions: Sequence[Path], data: Sequence[Path], relaxed: Sequence[Path]
) -> dict[str, list[Proposal]]:
    """All configurations of each system, lowest predicted energy first.

    Raises:
        BadInputError: unreadable files, or a record without system or prediction, or, with
            ``relaxed``, without relaxed positions.
    """
    records = _records(data)
    mapping = {
        sid: Placement(str(record["system_id"]), str(record["config_id"]), "", "")
        for sid, record in records.items()
    }
    energies = read_energies(predictions, mapping, "the LMDBs of --data")
    moved = _moved(relaxed, records)
    out: dict[str, list[Proposal]] = {}
    for sid, place in mapping.items():
        if place.config_id not in energies.get(place.system_id, {}):
            raise BadInputError(
                f"sid {sid} of the LMDBs has no prediction; predict the whole split"
            )
        energy = energies[place.system_id][place.config_id][0]
        out.setdefault(place.system_id, []).append(
            Proposal(sid, place.config_id, energy, records[sid], moved.get(sid))
        )
    for own in out.values():
        own.sort(key=lambda each: (each.predicted, each.config))
    return dict(sorted(out.items()))


def _records(data: Sequence[Path]) -> dict[str, Fields]:
    """Records of splits by sid."""
    records: dict[str, Fields] = {}
    try:
        for path in data:
            with open_lmdb(path) as found:
                for record in found:
                    if not {"system_id", "config_id", "sid"} <= record.keys():
                        raise BadInputError(f"{path}: no system_id; split with: dense split")
                    sid = plain_id(record["sid"])
                    if sid in records:
                        raise BadInputError(
                            f"{path}: sid {sid} is in the LMDBs twice; give it once"
                        )
                    records[sid] = record
    except LmdbError as error:
        raise BadInputError(str(error)) from error
    return records


def _moved(relaxed: Sequence[Path], records: dict[str, Fields]) -> dict[str, np.ndarray[Any, Any]]:
    """Relaxed positions (N, 3) of every record, or none at all if there is no file."""
    moved: dict[str, np.ndarray[Any, Any]] = {}
    try:
        for path in relaxed:
            for sid, positions in read_relaxed_positions(path).items():
                if sid in records:
                    moved[sid] = whole_structure(records[sid], positions)
    except ValueError as error:
        raise BadInputError(str(error)) from error
    absent = [sid for sid in records if sid not in moved]
    if relaxed and absent:
        raise BadInputError(
            f"sid {absent[0]} has no relaxed positions ({len(absent)} such); relax the whole LMDB"
        )
    return moved
