"""Many runs, a few at a time, each in a process of its own.

The processes are forked from a server that has imported the host once, which takes as long as the
training of a small run, and has done nothing else: no thread, no random number, no data.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from ocp_faenet.adapters.runs import RunSpec, load_result

#: Called with the number of finished runs and the work done, in runs (4.5 of 9, say).
Progress = Callable[[int, float], None]


#: Left in the environment by a run of this process, or by what launched it: a run that took
#: them would meet others at the same port.
RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE")


class RunFailedError(RuntimeError):
    """A run ended without a result; the message names it, its last words and its log."""


@dataclass
class _Job:
    spec: RunSpec
    folder: Path
    process: BaseProcess

    def fraction(self) -> float:
        """How much of the training is done, 0 to 1."""
        with suppress(OSError, ValueError, KeyError):
            state = json.loads((self.folder / "progress.json").read_text())
            return min(float(state["step"] / state["steps"]), 1.0)
        return 0.0

    def result(self) -> dict[str, Any]:
        result = load_result(self.folder)
        if result is None:
            log = self.folder / "log.txt"
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            last = lines[-1] if lines else "no output"
            raise RunFailedError(
                f"{self.spec.name}, seed {self.spec.seed}: {last} (exit code "
                f"{self.process.exitcode}; log: {log})"
            )
        return result


def run_all(
    specs: Sequence[RunSpec],
    root: Path,
    jobs: int = 1,
    progress: Progress | None = None,
    interval: float = 0.5,
) -> list[dict[str, Any]]:
    """Results of ``specs``, in their order, training those that have none.

    Args:
        specs: what to run; started in this order, so put the longest first.
        root: where the runs' folders are.
        jobs: how many at a time, each with ``spec.threads`` threads.
        progress: told about the state of things every ``interval`` seconds.
        interval: seconds between looks at the processes.

    Raises:
        RunFailedError: a run ended without a result. The others are stopped; what they had
            reached is in their checkpoints.
    """
    folders = [spec.folder(root) for spec in specs]
    results = {folder: load_result(folder) for folder in folders}
    by_folder = dict(zip(folders, specs, strict=True))
    queue = [(spec, folder) for folder, spec in by_folder.items() if results[folder] is None]
    running: list[_Job] = []
    try:
        while queue or running:
            while queue and len(running) < jobs:
                running.append(_start(*queue.pop(0)))
            time.sleep(interval)
            for job in [job for job in running if not job.process.is_alive()]:
                running.remove(job)
                results[job.folder] = job.result()
            if progress is not None:
                done = sum(result is not None for result in results.values())
                progress(done, done + sum(job.fraction() for job in running))
    finally:
        for job in running:
            job.process.terminate()
        for job in running:
            job.process.join()
    return [result for folder in folders if (result := results[folder]) is not None]


def _start(spec: RunSpec, folder: Path) -> _Job:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(spec.to_json() + "\n")
    threads = str(spec.threads)
    environment = {
        **{key: value for key, value in os.environ.items() if key not in RENDEZVOUS},
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "WANDB_MODE": os.environ.get("WANDB_MODE", "offline"),
    }
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ocp_faenet.adapters.worker"])
    process = context.Process(target=_work, args=(folder, environment), name=folder.name)
    with _environment(environment):
        forkserver.ensure_running()  # libraries that count threads look when they are imported
        process.start()
    return _Job(spec, folder, process)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """``os.environ`` is ``variables``, for a while."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _work(folder: Path, environment: Mapping[str, str]) -> None:
    """What a process of the pool does: the run in ``folder``, all its output to ``log.txt``."""
    from ocp_faenet.adapters import worker

    os.environ.clear()
    os.environ.update(environment)
    with (folder / "log.txt").open("ab") as log, open(os.devnull, "rb") as nothing:
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source.fileno(), target)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    worker.execute(folder)


def _end_with_parent() -> None:
    """Nobody waits for the run of a study that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
