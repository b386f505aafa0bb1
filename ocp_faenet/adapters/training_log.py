"""What a trainer's log lacks: each loss apart, and how fast the run is."""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import Any

import wandb
from fairchem.core.common import distutils
from torch import Tensor, nn


class LossTerms:
    """The summands of the last loss, each times its coefficient, by name.

    Args:
        losses: the host's ``loss_functions``, pairs of a target and its ``fn`` and
            ``coefficient``; their functions are wrapped in place.
    """

    def __init__(self, losses: list[tuple[str, dict[str, Any]]]) -> None:
        self.last: dict[str, Tensor] = {}
        seen: Counter[str] = Counter()
        for target, entry in losses:
            seen[target] += 1
            name = f"loss_{target}" if seen[target] == 1 else f"loss_{target}_{seen[target]}"
            entry["fn"] = _Recorded(entry["fn"], entry["coefficient"], name, self.last)

    def add_to(self, metrics: dict[str, Any], evaluator: Any) -> dict[str, Any]:
        """``metrics`` with each summand, where there are several."""
        if len(self.last) > 1:
            for name, value in self.last.items():
                metrics = evaluator.update(name, value.item(), metrics)
        return metrics


class _Recorded(nn.Module):
    def __init__(self, fn: Any, coefficient: float, name: str, store: dict[str, Tensor]) -> None:
        super().__init__()
        self.fn, self.coefficient, self.name, self.store = fn, coefficient, name, store

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        value: Tensor = self.fn(*args, **kwargs)
        self.store[self.name] = self.coefficient * value.detach()
        return value


class Throughput:
    """Structures and atoms per second of training, without the time between `stop` and `start`.

    Args:
        ranks: processes that train; each sees its own share of a batch.
    """

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self._since: float | None = None

    def start(self) -> None:
        """The clock runs from here."""
        self._since = time.perf_counter()

    def stop(self) -> None:
        """What follows, a validation say, is no training."""
        self._since = None

    def add_to(self, metrics: dict[str, Any], evaluator: Any, batch: Any) -> dict[str, Any]:
        """``metrics`` with the rates of the step that ends here, weighted by its time."""
        now = time.perf_counter()
        if self._since is not None:
            counts = {
                "samples_per_second": batch.natoms.numel(),
                "atoms_per_second": int(batch.natoms.sum()),
            }
            for name, count in counts.items():
                rate = {"total": count * self.ranks, "numel": now - self._since, "metric": None}
                metrics = evaluator.update(name, rate, metrics)
        self._since = now
        return metrics


def report_skipped(trainer: Any, split: str) -> None:
    """Say how many corrupt records of ``split`` were left out, over all ranks, if it may."""
    subset: Any = getattr(trainer, f"{split}_dataset", None)
    dataset: Any = getattr(subset, "dataset", subset)
    if not getattr(dataset, "skip_corrupt", False):
        return
    total = int(distutils.all_reduce(float(dataset.skipped), device=trainer.device))
    if total and distutils.is_master():
        logging.warning(f"dataset.{split}: {total} corrupt records skipped")
    if trainer.logger is not None:
        trainer.logger.log({"skipped_records": total}, step=trainer.step, split=split)


def close_logger(logger: Any, *, preempted: bool = False) -> None:
    """Bring a logger's content to disk; a process that is being ended may not get to it."""
    if logger is None:
        return
    if hasattr(logger, "writer"):
        logger.writer.close()
    elif wandb.run is not None:
        if preempted:
            logger.mark_preempting()
        wandb.finish()
