"""Run jobs in worker processes and keep every result on disk.

This module and what it imports stay free of PyTorch, so that workers start quickly.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from ocp_faenet.data.dense import run_dense_job
from ocp_faenet.data.jobs import Job, Result
from ocp_faenet.data.relax_job import run_relax_job

Progress = Callable[[int], object]


def replace_file(path: Path, content: bytes) -> None:
    """Write a file under another name and move it, so that it is whole or absent."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def run_jobs(jobs: list[Job], cache: Path, workers: int, progress: Progress) -> None:
    """Run the jobs whose results `cache` lacks.

    Args:
        jobs: the work.
        cache: folder of results, one file for each job.
        workers: processes; 1 runs everything in this one.
        progress: told the number of records of every job that is done.
    """
    missing = []
    for job in jobs:
        if (cache / job.name).is_file():
            progress(job.count)
        else:
            missing.append(job)
    if workers <= 1:
        for job in missing:
            progress(_run_to_file(job, cache))
    elif missing:
        _run_in_pool(missing, cache, workers, progress)


def read_results(jobs: list[Job], cache: Path) -> Iterator[Result]:
    """Results of `jobs`, in their order."""
    for job in jobs:
        with (cache / job.name).open("rb") as handle:
            yield pickle.load(handle)


def _run_to_file(job: Job, cache: Path) -> int:
    result = run_dense_job(job) if job.dense else run_relax_job(job)
    replace_file(cache / job.name, pickle.dumps(result, protocol=4))
    return job.count


def _run_in_pool(jobs: list[Job], cache: Path, workers: int, progress: Progress) -> None:
    context = multiprocessing.get_context("spawn")
    with _one_thread_each():
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_obey_parent)
        try:
            for future in as_completed([pool.submit(_run_to_file, job, cache) for job in jobs]):
                progress(future.result())
        finally:  # after an interruption, jobs that run are finished and the others dropped
            pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread_each() -> Iterator[None]:
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


def _obey_parent() -> None:
    """Leave interruptions to the process that started this worker, and end when it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
