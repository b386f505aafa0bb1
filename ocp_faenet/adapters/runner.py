"""One run of the host in this process: locally, as a rank, or as a job that submitit started.

Everything that a job needs is in its configuration and in the installed package.
"""

from __future__ import annotations

import contextlib
import logging
import netrc
import os
import signal
import sys
import time
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import new_trainer_context, setup_logging
from submitit import JobEnvironment
from submitit.helpers import Checkpointable, DelayedSubmission

from ocp_faenet.adapters.interruption import INTERRUPTION
from ocp_faenet.adapters.run_records import RunRecord
from ocp_faenet.adapters.trainer import FAENetTrainer
from ocp_faenet.adapters.training_log import close_logger

#: Stock names of `OCPTrainer`; a run of ours is trained by ours under each of them.
STOCK_TRAINERS = ("ocp", "energy", "forces")
#: First port of those that several ranks of a SLURM job meet at; the job's number is added.
FIRST_PORT = 20000


class Runner(Checkpointable):
    """The host's run of a configuration, stopped and started again without a trace.

    ``config["cluster"]`` holds ``requeues``, how often the job may be queued again, and
    ``requeued``, how often it has been.
    """

    def __call__(self, config: dict[str, Any]) -> None:
        """Run what ``config`` describes; see `prepare` for what is mended first."""
        setup_logging()
        config = prepare(config)
        _listen(config)
        record = RunRecord.of(config)
        with record.kept(), new_trainer_context(config=config) as context:
            trainer = context.trainer
            announce(trainer.config["cmd"])
            record.follow(trainer)
            context.task.setup(trainer)
            context.task.run()
            record.finish(trainer)
            close_logger(trainer.logger)

    def checkpoint(  # type: ignore[override]  # to submitit, None means no more
        self, config: dict[str, Any]
    ) -> DelayedSubmission | None:
        """What submitit queues again after a signal: the trainer has saved itself already."""
        cluster = dict(config.get("cluster") or {})
        done, allowed = int(cluster.get("requeued", 0)), int(cluster.get("requeues", 0))
        if done >= allowed:
            logging.warning(
                f"Queued again {done} times of {allowed} (--requeues); the same command with "
                f"--timestamp-id {config['timestamp_id']} goes on from the checkpoint"
            )
            return None
        cluster["requeued"] = done + 1
        return DelayedSubmission(Runner(), {**config, "cluster": cluster})


def run(config: dict[str, Any]) -> None:
    """`Runner` as a function, for launchers of several ranks."""
    Runner()(config)


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """``config`` and this process, ready for the host.

    - The stock trainer is replaced by `FAENetTrainer`, under the names that the host knows.
    - W&B stays offline where there is no key.
    - A job that starts again goes on from its own checkpoint, not from the one of ``--checkpoint``.
    - A CPU job on SLURM meets over gloo; the host would take NCCL and `CUDA_VISIBLE_DEVICES`.
    - Without a GPU a local run takes the CPU.

    Raises:
        ValueError: a job that asked SLURM for a GPU sees none.
    """
    config = dict(config)
    if not config["cpu"] and not torch.cuda.is_available():
        if config["submit"]:
            raise ValueError("no GPU is visible to this job; submit it with --cpu, or where one is")
        logging.warning("No GPU here: running on the CPU")
        config |= {"cpu": True, "distributed_backend": "gloo"}
    for name in STOCK_TRAINERS:
        registry.mapping["trainer_name_mapping"][name] = FAENetTrainer
    wandb_offline_without_key()
    own = Path(config["run_dir"]) / "checkpoints" / config["timestamp_id"] / "checkpoint.pt"
    if config["mode"] == "train" and own.is_file() and started_before(config):
        config["checkpoint"] = str(own)
    if not config["submit"]:
        if config["world_size"] == 1:
            distutils.setup_env_local()
        return config
    job = JobEnvironment()
    port = FIRST_PORT + int(job.raw_job_id) % 20000
    distutils.DISTRIBUTED_PORT = port
    if config["cpu"]:
        os.environ["MASTER_ADDR"] = job.hostnames[0]
        os.environ["MASTER_PORT"] = str(port)
        os.environ["RANK"] = str(job.global_rank)
        os.environ["LOCAL_RANK"] = str(job.local_rank)
        config["submit"] = False  # the host's way for processes whose launcher said where to meet
    return config


def started_before(config: Mapping[str, Any]) -> bool:
    """Whether this job is not on its first attempt, by our count or by SLURM's."""
    requeued = int((config.get("cluster") or {}).get("requeued", 0))
    return requeued > 0 or int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0


def wandb_offline_without_key() -> None:
    """Set ``WANDB_MODE=offline`` where W&B would otherwise ask for a key.

    W&B itself is not asked: it would read its mode then, and keep it.
    """
    if "WANDB_MODE" not in os.environ and not _wandb_key():
        os.environ["WANDB_MODE"] = "offline"
        logging.info("W&B: no key, so offline; `wandb sync FOLDER` uploads a run later")


def _wandb_key() -> bool:
    """Whether W&B will find a key: in the environment or where `wandb login` leaves it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    host = urllib.parse.urlsplit(url).hostname or url
    for place in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if place and netrc.netrc(os.path.expanduser(place)).authenticators(host):
                return True
    return False


def announce(cmd: Mapping[str, Any]) -> None:
    """Log where everything goes."""
    if not distutils.is_master():
        return
    logging.info(f"Run {cmd['timestamp_id']} ({cmd['identifier'] or 'no identifier'})")
    for name in ("checkpoint_dir", "results_dir", "logs_dir"):
        logging.info(f"{name}: {os.path.abspath(cmd[name])}")
    if "SUBMITIT_FOLDER" in os.environ:
        paths = JobEnvironment().paths
        logging.info(f"standard output: {paths.stdout}; standard error: {paths.stderr}")


def _listen(config: Mapping[str, Any]) -> None:
    """Leave what has to be done on a signal to the moment between two steps."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        asks = [signal.SIGTERM, signal.SIGUSR2]
        INTERRUPTION.listen(asks, lambda signum: _leave_local(signum, config))
        return
    job = JobEnvironment()
    asked = job._usr_sig()
    requeue = signal.getsignal(asked)

    def leave(signum: int) -> None:
        if job.global_rank != 0:
            time.sleep(300)  # the first rank queues the job again, which ends this one
        if callable(requeue):
            requeue(signum, None)
        sys.exit(128 + signum)

    INTERRUPTION.listen([asked], leave)


def _leave_local(signum: int, config: Mapping[str, Any]) -> None:
    logging.warning(
        f"Ended by {signal.Signals(signum).name}; the same command with --timestamp-id "
        f"{config['timestamp_id']} goes on from the last checkpoint"
    )
    sys.exit(128 + signum)
