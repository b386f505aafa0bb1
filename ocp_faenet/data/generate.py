"""Driver: run the jobs of a data set, keep their results, write its files."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ocp_faenet.data.dense import write_dense
from ocp_faenet.data.jobs import Job, Result, plan, run_job
from ocp_faenet.data.lmdb_io import write_lmdb, write_metadata
from ocp_faenet.data.presets import PRESETS, Preset
from ocp_faenet.data.records import Arrays, to_data
from ocp_faenet.data.systems import Split

FORMAT = 1  # raised when the same seed would give other data
CACHE = ".cache"
MANIFEST = "manifest.json"
MAPPING = "oc20_data_mapping.pkl"

Progress = Callable[[int], None]


class OutputError(ValueError):
    """The output folder holds something else."""


def generate(
    out: Path,
    preset_name: str,
    seed: int,
    *,
    workers: int = 1,
    progress: Progress = lambda done: None,
) -> dict[str, Any]:
    """Build a data set in `out`, going on where an earlier call with these settings stopped.

    Args:
        out: folder of the data set.
        preset_name: a key of `PRESETS`.
        seed: same seed, same bytes, whatever the number of workers.
        workers: processes.
        progress: told of every finished relaxation job by its number of records.

    Returns:
        The manifest: settings, counts, outcomes of the relaxations.

    Raises:
        OutputError: when `out` holds a data set made with other settings.
    """
    preset = PRESETS[preset_name]
    settings = {"format": FORMAT, "seed": seed, "preset": asdict(preset)}
    manifest = out / MANIFEST
    if manifest.is_file():
        found = json.loads(manifest.read_text())
        if found.get("settings") != settings:
            raise OutputError(
                f"{out} holds another data set (see {manifest}); choose another folder or remove it"
            )
        return dict(found)
    cache = out / CACHE / _fingerprint(settings)
    cache.mkdir(parents=True, exist_ok=True)
    jobs = plan(preset, seed)
    _run(jobs, cache, workers, progress)
    summary = _write_all(out, preset, jobs, cache)
    text = json.dumps({"settings": settings, **summary}, indent=2, sort_keys=True) + "\n"
    _replace(manifest, text.encode())
    shutil.rmtree(out / CACHE)
    return {"settings": settings, **summary}


def _fingerprint(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _run(jobs: list[Job], cache: Path, workers: int, progress: Progress) -> None:
    missing = []
    for job in jobs:
        if (cache / job.name).is_file():
            progress(job.count)
        else:
            missing.append(job)
    if workers <= 1:
        for job in missing:
            progress(_run_to_file(job, cache))
        return
    context = multiprocessing.get_context("spawn")
    with (
        _one_thread(),
        ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent) as pool,
    ):
        futures = [pool.submit(_run_to_file, job, cache) for job in missing]
        try:
            for future in as_completed(futures):
                progress(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _one_thread() -> Iterator[None]:
    """Processes started within use one thread each."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _die_with_parent() -> None:
    """End this worker when the process that started it is gone."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_to_file(job: Job, cache: Path) -> int:
    _replace(cache / job.name, pickle.dumps(run_job(job), protocol=4))
    return job.count


def _results(jobs: list[Job], cache: Path) -> Iterator[Result]:
    for job in jobs:
        with (cache / job.name).open("rb") as handle:
            yield pickle.load(handle)


def _write_all(out: Path, preset: Preset, jobs: list[Job], cache: Path) -> dict[str, Any]:
    counts: dict[str, int] = {}
    outcomes: dict[str, dict[str, int]] = {}
    mapping: dict[str, dict[str, Any]] = {}
    for split in Split:
        own = [job for job in jobs if job.split is split and not job.dense]
        for task in ("is2re", "s2ef"):
            folder = out / task / split.value
            counts[f"{task}/{split.value}"] = _write_folder(folder, _stream(own, cache, task))
        ended: Counter[str] = Counter()
        for result in _results(own, cache):
            ended.update(result.outcomes)
            for record, entry in zip(result.is2re, result.mapping, strict=True):
                mapping[f"random{record['sid']}"] = entry
        outcomes[split.value] = dict(sorted(ended.items()))
    _replace(out / MAPPING, pickle.dumps(mapping, protocol=4))
    dense = list(_results([job for job in jobs if job.dense], cache))
    counts["dense"] = write_dense(out / "dense", dense, _write_folder)
    ended = Counter()
    for result in dense:
        ended.update(result.outcomes)
    outcomes["dense"] = dict(sorted(ended.items()))
    return {"counts": counts, "outcomes": outcomes}


def _stream(jobs: list[Job], cache: Path, task: str) -> Iterator[Arrays]:
    for result in _results(jobs, cache):
        yield from result.is2re if task == "is2re" else result.s2ef


def _write_folder(folder: Path, records: Iterator[Arrays]) -> int:
    natoms: list[int] = []
    neighbors: list[int] = []

    def noted() -> Iterator[Any]:
        for arrays in records:
            natoms.append(len(arrays["pos"]))
            neighbors.append(arrays["edge_index"].shape[1])
            yield to_data(arrays)

    count = write_lmdb(folder / "data.lmdb", noted())
    write_metadata(folder / "metadata.npz", natoms, neighbors)
    return count
