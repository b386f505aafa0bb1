"""The splits of an embedded set's dense part, made where a study looks for them."""

from __future__ import annotations

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
    write_splits,
)
from ocp_faenet.data.dense_tables import read_mapping, read_ref_energies, read_targets
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
    """The splits of ``data/dense`` by what occurs in the IS2RE training set, unless they are there.

    Raises:
        DenseTableError, LmdbError: a table or an LMDB that is missing or unreadable.
    """
    out = data / SPLITS
    if (out / SUMMARY).is_file() and (out / FINETUNE / "val" / "data.lmdb").is_file():
        return out
    own = {n: data / "dense" / f"oc20dense_{n}.pkl" for n in ("mapping", "targets", "ref_energies")}
    tables = DenseTables(
        read_mapping(own["mapping"]),
        read_targets(own["targets"]),
        read_ref_energies(own["ref_energies"]),
    )
    known = read_oc20_mapping(data / "oc20_data_mapping.pkl")
    train = members(known, sids_of(find_lmdb(data, "is2re", "train", "all")))
    lmdb = data / "dense" / "data.lmdb"
    plan = plan_splits(sids_of(lmdb), tables, partial(by_training, train=train))
    cut = finetuning_systems(plan.systems[DenseSplit.ID], SHARE, seed=0)
    summary = {"definition": Definition.TRAINING.value, "overlapping": False, "finetune": cut}
    write_splits(out, lmdb, plan, tables, cut, summary)
    return out


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
