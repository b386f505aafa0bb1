"""OC20-Dense: the published counts, on made tables that have exactly those (issue 7, point 1)."""

from __future__ import annotations

import json
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dense_cases import dense
from ocp_faenet.cli import dense_split as verb
from ocp_faenet.data.dense_membership import DenseSplit, Members, by_validation
from ocp_faenet.data.dense_published import PublishedCounts, differences, seems_published
from ocp_faenet.data.dense_split import DenseTables, Loss, plan_splits
from ocp_faenet.data.dense_tables import read_mapping, read_targets

PLACEMENTS = 85_658
SIZES = {"id": 15_450, "ood_ads": 15_751, "ood_cat": 16_233, "ood_both": 17_639}
SYSTEMS = {"id": 244, "ood_ads": 243, "ood_cat": 243, "ood_both": 243}
#: Adsorbates and bulks of OC20's validation splits; ID occurs in OOD-cat and OOD-ads as well.
OCCUR = {
    "id": ({"*A"}, {"mp-0", "mp-1"}),
    "ood_ads": ({"*A", "*N"}, {"mp-0"}),
    "ood_cat": ({"*A"}, {"mp-1", "mp-9"}),
    "ood_both": ({"*N"}, {"mp-9"}),
}
PARTS = {
    "id": ("*A", "mp-0"), "ood_ads": ("*N", "mp-0"),
    "ood_cat": ("*A", "mp-9"), "ood_both": ("*N", "mp-9"),
}  # fmt: skip


def shares(total: int, count: int) -> list[int]:
    return [total // count + (place < total % count) for place in range(count)]


@pytest.fixture(scope="module")
def made() -> dict[str, dict[Any, Any]]:
    """Mapping, targets and reference energies with the published numbers of each."""
    spare = iter(shares(PLACEMENTS - sum(SIZES.values()), sum(SYSTEMS.values())))
    mapping: dict[int, dict[str, str]] = {}
    targets: dict[str, list[tuple[str, float]]] = {}
    for split, total in SIZES.items():
        adsorbate, bulk = PARTS[split]
        for place, valid in enumerate(shares(total, SYSTEMS[split])):
            system = f"{split}_{place}"
            names = [f"rand{k}" for k in range(valid + next(spare))]
            targets[system] = [(name, -0.01 * k) for k, name in enumerate(names[:valid])]
            for name in names:
                mapping[len(mapping)] = {
                    "system_id": system, "config_id": name, "mpid": bulk, "adsorbate": adsorbate,
                }  # fmt: skip
    return {"mapping": mapping, "targets": targets, "ref_energies": dict.fromkeys(targets, -1.0)}


def folder_of(made: dict[str, dict[Any, Any]], folder: Path) -> Path:
    for name, content in made.items():
        (folder / f"oc20dense_{name}.pkl").write_bytes(pickle.dumps(content))
    return folder


@pytest.fixture(scope="module")
def tables(made, tmp_path_factory) -> DenseTables:
    folder = folder_of(made, tmp_path_factory.mktemp("published"))
    return DenseTables(
        read_mapping(folder / "oc20dense_mapping.pkl"),
        read_targets(folder / "oc20dense_targets.pkl"),
        made["ref_energies"],
    )


def rule(overlapping: bool = False):
    occurring = {
        split: Members(*(frozenset(names) for names in OCCUR[split.value])) for split in DenseSplit
    }
    return partial(by_validation, validation=occurring, overlapping=overlapping)


def test_the_published_counts_come_out(tables):
    plan = plan_splits(list(tables.mapping), tables, rule())
    assert {split.value: len(places) for split, places in plan.places.items()} == SIZES
    assert {split.value: len(names) for split, names in plan.systems.items()} == SYSTEMS
    assert sum(SIZES.values()) == 65_073
    assert plan.losses == {Loss.NO_TARGET: PLACEMENTS - 65_073}
    assert seems_published(tables, PublishedCounts())
    assert differences(plan, tables, PublishedCounts(), as_reported=True) == []
    # The negative control: overlapping splits hold more, and are not compared with these.
    both = plan_splits(list(tables.mapping), tables, rule(overlapping=True))
    assert sum(map(len, both.places.values())) > 65_073
    assert differences(both, tables, PublishedCounts(), as_reported=False) == []
    assert differences(both, tables, PublishedCounts(), as_reported=True) == [
        "31,201 configurations in ood_ads, 15,450 more than 15,751",
    ]


def test_every_count_that_differs_is_told(tables):
    """One target too few, one system in another split, a placement too many: each by itself."""
    without = {name: dict(own) for name, own in tables.targets.items()}
    lost = without["id_0"].popitem()[0]
    fewer = DenseTables(tables.mapping, without, tables.ref_energies)
    plan = plan_splits(list(tables.mapping), fewer, rule())
    assert lost
    assert differences(plan, fewer, PublishedCounts(), as_reported=True) == [
        "65,072 valid targets, 1 fewer than 65,073",
        "15,449 configurations in id, 1 fewer than 15,450",
    ]
    assert seems_published(fewer, PublishedCounts())  # by its mapping
    elsewhere = {
        sid: place if place.system_id != "id_243" else type(place)(
            place.system_id, place.config_id, "*N", "mp-9"
        )
        for sid, place in tables.mapping.items()
    }  # fmt: skip
    moved = DenseTables(elsewhere, tables.targets, tables.ref_energies)
    plan = plan_splits(list(tables.mapping), moved, rule())
    size = len(tables.targets["id_243"])
    assert differences(plan, moved, PublishedCounts(), as_reported=True) == [
        f"{15_450 - size:,} configurations in id, {size} fewer than 15,450",
        f"{17_639 + size:,} configurations in ood_both, {size} more than 17,639",
        "243 systems in id, 1 fewer than 244",
    ]


@pytest.fixture
def command(made, tmp_path, monkeypatch):
    """`dense split` on the made tables, LMDBs of nothing but sids, splits that are not written."""
    folder_of(made, tmp_path)
    known = {
        f"random{split}{k}{m}": {"ads_symbols": adsorbate, "bulk_mpid": bulk}
        for split, (adsorbates, bulks) in OCCUR.items()
        for k, adsorbate in enumerate(sorted(adsorbates))
        for m, bulk in enumerate(sorted(bulks))
    }
    (tmp_path / "oc20.pkl").write_bytes(pickle.dumps(known))
    sids = {tmp_path / "data.lmdb": [str(sid) for sid in made["mapping"]]}
    for split in SIZES:
        names = [name.removeprefix("random") for name in known]
        own = [n for n in names if n[:-2] == split]
        sids[tmp_path / "val" / f"val_{split}"] = own
    written: list[Path] = []
    monkeypatch.setattr(verb, "sids_of", sids.__getitem__)
    monkeypatch.setattr(verb.splits, "write_splits", lambda out, *rest: written.append(out) or {})

    def run(*more: object):
        args = ["split", "--data", tmp_path / "data.lmdb", "--oc20-mapping", tmp_path / "oc20.pkl"]
        done = dense(*args, "--validation", tmp_path / "val", *more, tmp_path / "out")
        return done, bool(written)

    return run


def test_the_command_compares_and_says_so(command, tmp_path):
    done, written = command("--json", tmp_path / "c.json")
    assert done.exit_code == 0, done.output
    assert written
    assert "The published counts, and the report's splits." in done.output
    assert json.loads((tmp_path / "c.json").read_text())["counts"] == SIZES
    overlapping, _ = command("--overlapping")
    assert "The published counts." in overlapping.output
    assert "published" not in command("--any")[0].output


def test_the_command_warns_or_refuses(command, made, tmp_path):
    changed = {**made["targets"], "ood_cat_3": made["targets"]["ood_cat_3"][:-2]}
    (tmp_path / "oc20dense_targets.pkl").write_bytes(pickle.dumps(changed))
    told = "16,231 configurations in ood_cat, 2 fewer than 16,233"
    refused, written = command("--published")
    assert refused.exit_code == 2
    assert told in refused.stderr.splitlines()[-1]
    assert not written
    warned, written = command()
    assert warned.exit_code == 0
    assert told in warned.stderr
    assert "Warning: Not the published counts: 65,071 valid targets, 2 fewer" in warned.stderr
    assert written
