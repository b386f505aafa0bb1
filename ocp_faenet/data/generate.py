"""Driver: from settings to the files of a data set.

Layout of the folder::

    is2re/{train,val_id,val_ood_ads,val_ood_cat,val_ood_both}/{data.lmdb,metadata.npz}
    s2ef/...                                                   the same splits
    dense/{data.lmdb,metadata.npz,oc20dense_*.pkl}             OC20-Dense's formats
    oc20_data_mapping.pkl                                      what each sid is
    manifest.json                                              settings, counts, outcomes

While it is being made, results of single jobs lie in `.cache`; the folder is removed at the end.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch_geometric.data import Data

from ocp_faenet.data.dense import dense_tables
from ocp_faenet.data.edges import Arrays
from ocp_faenet.data.jobs import SPLITS, Job, plan
from ocp_faenet.data.lmdb_io import write_lmdb, write_metadata
from ocp_faenet.data.pool import Progress, read_results, replace_file, run_jobs
from ocp_faenet.data.presets import Preset
from ocp_faenet.data.records import to_data

FORMAT = 1  # raised whenever a seed comes to mean other data
CACHE = ".cache"
MANIFEST = "manifest.json"
MAPPING = "oc20_data_mapping.pkl"


class OutputError(ValueError):
    """The output folder holds something else."""


def generate(
    out: Path,
    preset: Preset,
    seed: int,
    *,
    workers: int = 1,
    progress: Progress = lambda done: None,
) -> dict[str, Any]:
    """Build a data set in `out`, going on where an earlier call with these settings stopped.

    Args:
        out: folder of the data set; one that is complete is left as it is.
        preset: sizes.
        seed: same seed, same bytes, whatever the number of workers.
        workers: processes.
        progress: told the number of relaxed records as they come.

    Returns:
        The manifest: `settings`, `counts` of records, `outcomes` of the relaxations.

    Raises:
        OutputError: when `out` holds a data set made with other settings, or is no folder.
    """
    settings = {"format": FORMAT, "seed": seed, "preset": asdict(preset)}
    found = _existing(out, settings)
    if found is not None:
        return found
    cache = out / CACHE / _fingerprint(settings)
    cache.mkdir(parents=True, exist_ok=True)
    jobs = plan(preset, seed)
    run_jobs(jobs, cache, workers, progress)
    manifest = {"settings": settings, **_write_files(out, jobs, cache)}
    text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    replace_file(out / MANIFEST, text.encode())
    shutil.rmtree(out / CACHE)
    return manifest


def _existing(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest in `out`, if there is one and it is of these settings."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; give a folder")
    path = out / MANIFEST
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise OutputError(f"{path} is not readable ({error}); remove it") from error
    if found.get("settings") != settings:
        raise OutputError(f"{out} holds another data set (see {path}); remove it or choose another")
    return found


def _fingerprint(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _write_files(out: Path, jobs: list[Job], cache: Path) -> dict[str, Any]:
    counts: dict[str, int] = {}
    outcomes: dict[str, dict[str, int]] = {}
    mapping: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        own = [job for job in jobs if job.split is split and not job.dense]
        for task in ("is2re", "s2ef"):
            counts[f"{task}/{split.value}"] = write_folder(
                out / task / split.value, _structures(own, cache, task)
            )
        ended: Counter[str] = Counter()
        for result in read_results(own, cache):
            ended.update(result.outcomes)
            for record, entry in zip(result.is2re, result.mapping, strict=True):
                mapping[f"random{record['sid']}"] = entry
        outcomes[split.value] = dict(sorted(ended.items()))
    replace_file(out / MAPPING, _table_bytes(mapping))
    counts["dense"], outcomes["dense"] = _write_dense(out / "dense", jobs, cache)
    return {"counts": counts, "outcomes": outcomes}


def _write_dense(folder: Path, jobs: list[Job], cache: Path) -> tuple[int, dict[str, int]]:
    results = list(read_results([job for job in jobs if job.dense], cache))
    count = write_folder(folder, (record for result in results for record in result.is2re))
    for name, table in dense_tables(results).items():
        replace_file(folder / f"oc20dense_{name}.pkl", _table_bytes(table))
    ended: Counter[str] = Counter()
    for result in results:
        ended.update(result.outcomes)
    return count, dict(sorted(ended.items()))


def _structures(jobs: list[Job], cache: Path, task: str) -> Iterator[Arrays]:
    for result in read_results(jobs, cache):
        yield from result.is2re if task == "is2re" else result.s2ef


def write_folder(folder: Path, structures: Iterator[Arrays]) -> int:
    """An LMDB and its metadata in `folder`; the number of records."""
    natoms: list[int] = []
    neighbors: list[int] = []

    def noted() -> Iterator[Data]:
        for arrays in structures:
            natoms.append(len(arrays["pos"]))
            neighbors.append(arrays["edge_index"].shape[1])
            yield to_data(arrays)

    count = write_lmdb(folder / "data.lmdb", noted())
    write_metadata(folder / "metadata.npz", natoms, neighbors)
    return count


def _table_bytes(table: dict[Any, Any]) -> bytes:
    """Pickle of plain containers and arrays that depends on their values alone."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=4)
    pickler.fast = True  # no memo: it would record which equal objects are one and the same
    pickler.dump(table)
    return buffer.getvalue()
