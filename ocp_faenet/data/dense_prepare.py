"""The splits of an embedded set's dense part, made where a study looks for them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from torch_geometric.data import Data

from ocp_faenet.data.dense_membership import (
    Definition,
    DenseSplit,
    by_training,
    members,
    read_oc20_mapping,
    sids_of,
)
from ocp_faenet.data.dense_split import (
    FINETUNE,
    SUMMARY,
    DenseTables,
    finetuning_systems,
    plan_splits,
    read_summary,
    write_splits,
)
from ocp_faenet.data.dense_tables import (
    DenseTableError,
    read_mapping,
    read_ref_energies,
    read_targets,
)
from ocp_faenet.data.digests import file_digest
from ocp_faenet.data.lmdb_io import write_lmdb
from ocp_faenet.data.places import find_lmdb
from ocp_faenet.data.reader import open_lmdb

#: Folder of the splits below a data set.
SPLITS = "dense_splits"
#: Folder beside them of what fine-tuning sees together with the IS2RE training set.
MIXED = "mixed"
#: Of the ID systems, to fine-tune on.
SHARE = 0.8


def prepare_dense(data: Path) -> Path:
    """The splits of ``data/dense`` by what occurs in the IS2RE training set.

    They are made where they are absent, and anew where a file that they were made of is another;
    `SUMMARY` keeps the SHA-256 of each. Splits of another definition, which ``dense split`` put
    there, are left.

    Raises:
        DenseTableError, LmdbError: a table or an LMDB that is missing or unreadable.
    """
    out = data / SPLITS
    sources = _sources(data)
    digests = {name: file_digest(path) for name, path in sources.items() if path.exists()}
    if _up_to_date(out, digests):
        return out
    tables = DenseTables(
        read_mapping(sources["mapping"]),
        read_targets(sources["targets"]),
        read_ref_energies(sources["ref_energies"]),
    )
    train = members(read_oc20_mapping(sources["oc20_mapping"]), sids_of(sources["train"]))
    plan = plan_splits(sids_of(sources["data"]), tables, partial(by_training, train=train))
    cut = finetuning_systems(plan.systems[DenseSplit.ID], SHARE, seed=0)
    summary = {"definition": Definition.TRAINING.value, "overlapping": False, "finetune": cut}
    for name in (MIXED, FINETUNE, *(split.value for split in DenseSplit)):
        shutil.rmtree(out / name, ignore_errors=True)
    write_splits(out, sources["data"], plan, tables, cut, {**summary, "sources": digests})
    return out


def _sources(data: Path) -> dict[str, Path]:
    """What the splits are made of."""
    tables = ("mapping", "targets", "ref_energies")
    return {
        **{name: data / "dense" / f"oc20dense_{name}.pkl" for name in tables},
        "data": data / "dense" / "data.lmdb",
        "oc20_mapping": data / "oc20_data_mapping.pkl",
        "train": find_lmdb(data, "is2re", "train", "all"),
    }


def _up_to_date(out: Path, digests: dict[str, str]) -> bool:
    """Whether the splits are there, and of the files that are there."""
    if not (out / SUMMARY).is_file() or not (out / FINETUNE / "val" / "data.lmdb").is_file():
        return False
    try:
        summary = read_summary(out)
    except DenseTableError:
        return False
    if summary.get("definition") != Definition.TRAINING.value:
        return True
    kept = summary.get("sources", {})
    return all(kept.get(name) == digest for name, digest in digests.items())


def prepare_mixed(data: Path) -> Path:
    """The splits, and beside them the IS2RE training set with the fine-tuning systems after it.

    Records keep the keys that both have, as a batch needs.

    Raises:
        DenseTableError, LmdbError: as `prepare_dense`; a folder of LMDBs for the training set.
    """
    out = prepare_dense(data)
    path = out / MIXED / "train" / "data.lmdb"
    if path.is_file():
        return out
    sources = (find_lmdb(data, "is2re", "train", "all"), out / FINETUNE / "train" / "data.lmdb")
    with open_lmdb(sources[0]) as known, open_lmdb(sources[1]) as dense:
        keys = known[0].keys() & dense[0].keys()

        def every() -> Iterator[Data]:
            for records in (known, dense):
                for fields in records:
                    yield Data(**{key: fields[key] for key in sorted(keys)})

        write_lmdb(path, every())
    return out


#: By what a study calls them.
PREPARATIONS = {"dense": prepare_dense, "dense_mixed": prepare_mixed}
