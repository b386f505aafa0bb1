"""What is known of a run while it lasts and afterwards: ``results/RUN/run.json``."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fairchem.core.common import distutils

from ocp_faenet.adapters.collect import lower_is_better, read_record, record_path
from ocp_faenet.adapters.interruption import INTERRUPTION
from ocp_faenet.adapters.runs import write_json


class RunRecord:
    """State, place and scores of one run, written by its first rank alone.

    Args:
        path: of the file; what an earlier attempt left there is kept.
        content: of this attempt.
    """

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path = path
        self.content = {**read_record(path), **content}

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> RunRecord:
        """The record of the run that ``config`` describes."""
        content = {
            "run": config["timestamp_id"],
            "identifier": config["identifier"],
            "mode": config["mode"],
            "job": os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID"),
            "requeued": int((config.get("cluster") or {}).get("requeued", 0)),
            "state": "running",
        }
        if "SLURM_ARRAY_TASK_ID" in os.environ:
            content["job"] = f"{content['job']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        return cls(record_path(config["run_dir"], config["timestamp_id"]), content)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """State ``running``, then ``finished``, ``stopped`` by a signal, or ``failed``."""
        self.write()
        try:
            yield
        except BaseException as error:
            stopped = INTERRUPTION.signum is not None
            self.content["state"] = "stopped" if stopped else "failed"
            if not stopped:
                self.content["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:500]
            self.write()
            raise
        self.content["state"] = "finished"
        self.content.pop("error", None)
        self.write()

    def follow(self, trainer: Any) -> None:
        """Write the scores of every validation as it ends."""
        validate = trainer.validate

        def recorded(*args: Any, **kwargs: Any) -> Any:
            metrics = validate(*args, **kwargs)
            self._score(trainer, metrics)
            return metrics

        trainer.validate = recorded

    def finish(self, trainer: Any) -> None:
        """The last step."""
        self.content |= {"step": trainer.step, "epoch": trainer.epoch}

    def write(self) -> None:
        """Write the file, whole."""
        if _rank() != 0:
            return
        self.content["updated"] = time.strftime("%Y-%m-%d %H:%M:%S")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.content)

    def _score(self, trainer: Any, metrics: Mapping[str, Any]) -> None:
        name = trainer.evaluation_metrics.get(
            "primary_metric", trainer.evaluator.task_primary_metric[trainer.name]
        )
        scores = {key: float(value["metric"]) for key, value in metrics.items()}
        new, old = scores.get(name), self.content.get("best")
        sign = 1 if lower_is_better(name) else -1
        if new is not None and (old is None or sign * new < sign * old):
            self.content["best"], self.content["best_step"] = new, trainer.step
        self.content |= {"primary_metric": name, "last": scores}
        self.content |= {"step": trainer.step, "epoch": trainer.epoch}
        self.write()


def _rank() -> int:
    """Rank of this process, also before and after the host's process group."""
    if distutils.initialized():
        return distutils.get_rank()
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
