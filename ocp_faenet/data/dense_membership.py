"""Which dense systems are in the domain of OC20's training set, by two definitions.

`Definition.VALIDATION`, the report's (section 5.2): a system is of a split when both its adsorbate
and its bulk occur in OC20's validation split of that name. `Definition.TRAINING`: by whether its
adsorbate and its bulk occur in OC20's training set at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ocp_faenet.data.dense_tables import DenseTableError, load_table
from ocp_faenet.data.reader import lmdb_files, open_lmdb


class DenseSplit(str, Enum):
    """The report's four splits; the values name their folders."""

    ID = "id"
    OOD_ADS = "ood_ads"
    OOD_CAT = "ood_cat"
    OOD_BOTH = "ood_both"

    @property
    def oc20(self) -> str:
        """Folder of OC20's validation split of the same kind."""
        return f"val_{self.value}"


class Definition(str, Enum):
    """How a system finds its split."""

    VALIDATION = "validation"
    TRAINING = "training"


@dataclass(frozen=True)
class Members:
    """Adsorbates (``*OH``) and bulks (``mp-23``) that occur in some OC20 data."""

    adsorbates: frozenset[str]
    bulks: frozenset[str]

    def has(self, adsorbate: str, bulk: str) -> bool:
        """Whether both occur."""
        return adsorbate in self.adsorbates and bulk in self.bulks


def by_training(adsorbate: str, bulk: str, train: Members) -> tuple[DenseSplit, ...]:
    """The split of a system: what of it is new to the training set."""
    new = (adsorbate not in train.adsorbates, bulk not in train.bulks)
    return (
        {
            (False, False): DenseSplit.ID,
            (True, False): DenseSplit.OOD_ADS,
            (False, True): DenseSplit.OOD_CAT,
            (True, True): DenseSplit.OOD_BOTH,
        }[new],
    )


def by_validation(
    adsorbate: str, bulk: str, validation: Mapping[DenseSplit, Members], *, overlapping: bool
) -> tuple[DenseSplit, ...]:
    """The splits of a system; none where it occurs in no validation split.

    Args:
        adsorbate, bulk: of the system.
        validation: what occurs in OC20's validation splits.
        overlapping: all that it occurs in; else the first in the order ID, OOD-ads, OOD-cat,
            OOD-both, so that what may count as known never counts as new.
    """
    every = tuple(split for split in DenseSplit if validation[split].has(adsorbate, bulk))
    return every if overlapping else every[:1]


def members(mapping: Mapping[str, Mapping[str, Any]], sids: Iterable[str]) -> Members:
    """What occurs among the records ``sids`` of OC20's own mapping.

    Raises:
        DenseTableError: a sid that the mapping lacks.
    """
    adsorbates, bulks = set(), set()
    for sid in sids:
        entry = mapping.get(sid)
        if entry is None:
            raise DenseTableError(
                f"OC20's mapping has no {sid}; take the oc20_data_mapping.pkl of these LMDBs"
            )
        adsorbates.add(str(entry["ads_symbols"]))
        bulks.add(str(entry["bulk_mpid"]))
    return Members(frozenset(adsorbates), frozenset(bulks))


def read_oc20_mapping(path: Path) -> dict[str, Mapping[str, Any]]:
    """OC20's ``oc20_data_mapping.pkl`` by sid, without the ``random`` before it.

    Raises:
        DenseTableError: an entry without ``bulk_mpid`` or ``ads_symbols``.
    """
    table: dict[str, Mapping[str, Any]] = {}
    for key, entry in load_table(path).items():
        if not isinstance(entry, Mapping) or not {"bulk_mpid", "ads_symbols"} <= entry.keys():
            raise DenseTableError(f"{path}: {key}: bulk_mpid and ads_symbols are needed")
        table[str(key).removeprefix("random")] = entry
    return table


def sids_of(path: Path) -> list[str]:
    """Ids of the records of an LMDB, or of the LMDBs in a folder.

    Raises:
        LmdbError: none there, or an unreadable record.
        DenseTableError: a record without a sid.
    """
    found = []
    for file in lmdb_files(path):
        with open_lmdb(file) as records:
            for index, record in enumerate(records):
                if "sid" not in record:
                    raise DenseTableError(f"{file}: record {index} has no sid")
                found.append(plain_id(record["sid"]))
    return found


def plain_id(sid: Any) -> str:
    """A sid as the host's ``predict`` writes it."""
    return str(sid.item() if hasattr(sid, "item") else sid)
