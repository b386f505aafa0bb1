"""Where the runs of a grid go: to SLURM through submitit, or one after the other here."""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit import AutoExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ocp_faenet.adapters.runner import Runner, run
from ocp_faenet.adapters.runs import write_json
from ocp_faenet.adapters.sweeps import Job


class RankDiedError(RuntimeError):
    """A rank ended with an error or by a signal, and the others were ended."""


@dataclass(frozen=True)
class ClusterOptions:
    """What the host has no argument for.

    Attributes:
        requeues: how often a job that was stopped by a signal is queued again.
        signal_delay: seconds between SLURM's signal and the end of the job.
    """

    requeues: int = 3
    signal_delay: int = 90


def complete(jobs: Sequence[Job], options: ClusterOptions) -> list[Job]:
    """``jobs`` with what their process has to know, and a group for W&B where they are many."""
    group = jobs[0].run_id.removesuffix("-run0")
    return [_completed(job, options, group if len(jobs) > 1 else None) for job in jobs]


def _completed(job: Job, options: ClusterOptions, group: str | None) -> Job:
    config = copy.deepcopy(job.config)
    config["run_dir"] = os.path.abspath(config["run_dir"])
    config["cluster"] = {"requeues": options.requeues, "requeued": 0}
    if group is not None:
        logger = config.get("logger", "wandb")
        logger = {"name": logger} if isinstance(logger, str) else dict(logger or {})
        config["logger"] = {**logger, "group": logger.get("group") or group}
    return Job(job.run_id, config, job.varied)


def write_manifest(
    logdir: Path, jobs: Sequence[Job], slurm_ids: Sequence[str] | None = None
) -> Path:
    """What was started together, for `collect`: ``LOGDIR/sweeps/ID.json``."""
    entries = [
        {
            "run": job.run_id,
            "run_dir": job.config["run_dir"],
            "varied": job.varied,
            "job": slurm_ids[index] if slurm_ids else None,
        }
        for index, job in enumerate(jobs)
    ]
    path = logdir / "sweeps" / f"{jobs[0].run_id.removesuffix('-run0')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"started": time.strftime("%Y-%m-%d %H:%M:%S"), "runs": entries})
    return path


def submit(
    jobs: Sequence[Job], arguments: argparse.Namespace, options: ClusterOptions
) -> list[str]:
    """Hand ``jobs`` to SLURM and return their numbers.

    Raises:
        ValueError: no SLURM here, or it refuses the jobs; one line with its reason.
    """
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise ValueError("--submit: no sbatch and srun on this machine; leave it out to run here")
    executor = AutoExecutor(
        folder=arguments.logdir.absolute() / "%j",
        cluster="slurm",
        slurm_max_num_timeout=options.requeues,
    )
    try:
        executor.update_parameters(**_parameters(jobs, arguments, options))
        for job in jobs:
            job.config["slurm"] = {"requested": copy.deepcopy(executor.parameters)}
        submitted = executor.map_array(Runner(), [job.config for job in jobs])
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
        lines = [line for line in str(error).splitlines() if "error" in line.lower()]
        reason = (lines or str(error).splitlines() or ["no reason given"])[-1]
        raise ValueError(f"--submit: SLURM refused the jobs: {reason}") from None
    return [job.job_id for job in submitted]


def _parameters(
    jobs: Sequence[Job], arguments: argparse.Namespace, options: ClusterOptions
) -> dict[str, Any]:
    """What submitit asks SLURM for; a CPU job asks for no GPU."""
    workers = max(int(job.config["optim"].get("num_workers", 0)) for job in jobs)
    wanted = {
        "name": arguments.identifier or "ocp-faenet",
        "mem_gb": arguments.slurm_mem,
        "timeout_min": arguments.slurm_timeout * 60,
        "slurm_partition": arguments.slurm_partition,
        "gpus_per_node": None if arguments.cpu else arguments.num_gpus,
        "cpus_per_task": workers + 1,
        "tasks_per_node": arguments.num_gpus,
        "nodes": arguments.num_nodes,
        "slurm_qos": arguments.slurm_qos,
        "slurm_account": arguments.slurm_account,
        "slurm_additional_parameters": jobs[0].config.get("slurm") or None,
        "slurm_signal_delay_s": options.signal_delay,
        # A rank that dies takes its job with it; the others would wait for it.
        "slurm_srun_args": ["--kill-on-bad-exit=1"],
    }
    return {key: value for key, value in wanted.items() if value is not None}


def run_in_turn(jobs: Sequence[Job], num_ranks: int, tell: Callable[[int, Job], None]) -> list[Job]:
    """Run ``jobs`` here, each in a process of its own, and return those that failed.

    Args:
        jobs: the grid.
        num_ranks: processes of each run.
        tell: called with the index and the job before each one.
    """
    failed = []
    for index, job in enumerate(jobs):
        tell(index, job)
        content = json.dumps({"config": job.config, "ranks": num_ranks})
        command = [sys.executable, "-m", "ocp_faenet.adapters.launch"]
        if subprocess.run(command, input=content, text=True).returncode != 0:
            failed.append(job)
    return failed


def run_here(
    config: dict[str, Any], num_ranks: int, entry: Callable[[dict[str, Any]], None] = run
) -> None:
    """Run ``config`` in this process, or in ``num_ranks`` that it starts.

    Args:
        config: of the run.
        num_ranks: processes.
        entry: what each of several ranks calls; a function of a module.

    Raises:
        RankDiedError: one of several did.
    """
    if num_ranks == 1:
        Runner()(config)
        return
    config = copy.deepcopy(config)
    if config["optim"].get("num_workers"):
        # LMDB environments do not pickle, which the launcher's processes would need.
        config["optim"]["num_workers"] = 0
        logging.warning("Several local ranks: optim.num_workers is set to 0")
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        # A free port. On the default one, runs on the same machine meet in the store of the first
        # and die when that one ends.
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(launch, entry)(config)
    except ChildFailedError as error:
        raise RankDiedError(_first_death(error)) from error


def _first_death(error: ChildFailedError) -> str:
    rank, failure = error.get_first_failure()
    message = failure.message
    text = message.get("message", "") if isinstance(message, dict) else str(message)
    first = text.splitlines()[0] if text else "no message"
    return f"rank {rank} ended with exit code {failure.exitcode} ({first}); the others were ended"


if __name__ == "__main__":
    read = json.loads(sys.stdin.read())
    try:
        run_here(read["config"], read["ranks"])
    except RankDiedError as failure:
        sys.exit(str(failure))
