"""What is known of OC20-Dense as published, to check files that say they are it.

The placements are those of the data set's README, the targets and splits those of the report
(section 5.2, splits by OC20's validation sets, each system in one).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ocp_faenet.data.dense_membership import DenseSplit
from ocp_faenet.data.dense_split import DenseTables, SplitPlan


@dataclass(frozen=True)
class PublishedCounts:
    """Counts of the published files.

    Attributes:
        placements: in the mapping.
        targets: valid ones.
        splits: configurations of the disjoint splits; they sum to the targets.
        id_systems: of the ID split.
    """

    placements: int = 85_658
    targets: int = 65_073
    splits: Mapping[DenseSplit, int] = field(
        default_factory=lambda: {
            DenseSplit.ID: 15_450,
            DenseSplit.OOD_ADS: 15_751,
            DenseSplit.OOD_CAT: 16_233,
            DenseSplit.OOD_BOTH: 17_639,
        }
    )
    id_systems: int = 244


def seems_published(tables: DenseTables, counts: PublishedCounts) -> bool:
    """Whether mapping or targets have as many entries as the published ones.

    Files of which one was cut short or filtered are still known by the other.
    """
    return len(tables.mapping) == counts.placements or _targets(tables) == counts.targets


def differences(
    plan: SplitPlan, tables: DenseTables, counts: PublishedCounts, *, as_reported: bool
) -> list[str]:
    """Every count that is not the published one, with both numbers; none if all agree.

    Args:
        plan: the splits of all records.
        tables: that they were made from.
        counts: wanted.
        as_reported: whether the splits are by the report's definition, each system in one; by
            another one their sizes are not published.
    """
    pairs = {
        "placements in the mapping": (len(tables.mapping), counts.placements),
        "valid targets": (_targets(tables), counts.targets),
    }
    if as_reported:
        pairs |= {
            f"configurations in {split.value}": (len(plan.places[split]), wanted)
            for split, wanted in counts.splits.items()
        }
        pairs["systems in id"] = (len(plan.systems[DenseSplit.ID]), counts.id_systems)
    return [
        f"{found:,} {name}, {abs(found - wanted):,} {'more' if found > wanted else 'fewer'} than "
        f"{wanted:,}"
        for name, (found, wanted) in pairs.items()
        if found != wanted
    ]


def _targets(tables: DenseTables) -> int:
    return sum(map(len, tables.targets.values()))
