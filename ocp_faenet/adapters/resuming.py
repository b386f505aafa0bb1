"""The part of `FAENetTrainer` by which a run that was stopped goes on as if it had not been."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.trainers import OCPTrainer

from ocp_faenet.adapters.checkpoints import is_write_error, save_beside
from ocp_faenet.adapters.interruption import (
    INTERRUPTION,
    LoaderContext,
    RunInterruptedError,
    prepare_loader_process,
)
from ocp_faenet.adapters.training_log import close_logger


class ResumingTrainer(OCPTrainer):
    """`OCPTrainer` that stops between two steps and resumes where it stopped.

    - A checkpoint is written beside the old one and then put in its place, so that a run
      killed in the middle of writing, or a full disk, leaves the last good checkpoint.
    - A resumed run is the run that was stopped: the scheduler takes the step that the stock
      checkpoint misses, and a validation that a checkpoint came before is done again.
    - A run that is asked to stop (`interruption`) does so between two steps; the signal does not
      end the processes of its loaders.
    """

    best_val_metric: float | None

    def load(self, inference_only: bool) -> None:
        """Build everything; nothing is unsaved, validated or resumed yet."""
        self._unsaved: dict[str, str] = {}
        self._validated: tuple[int, Any] | None = None
        self._resumed = self._stopped = False
        super().load(inference_only)

    def get_dataloader(self, dataset: Any, sampler: Any, workers: int | None = None) -> Any:
        """The stock loader, whose processes leave signals to this one."""
        loader = super().get_dataloader(dataset, sampler, workers)
        if loader.num_workers > 0:
            loader.multiprocessing_context = LoaderContext()
            loader.worker_init_fn = prepare_loader_process
        return loader

    def load_checkpoint(
        self,
        checkpoint_path: str,
        checkpoint: dict[str, Any] | None = None,
        inference_only: bool = False,
    ) -> None:
        """The stock loading; then the scheduler is where it was when the next step began.

        The host saves between the step of the optimizer and that of the scheduler.
        """
        if checkpoint is None and os.path.isfile(checkpoint_path):
            logging.info(f"Loading checkpoint from: {checkpoint_path}")
            place = torch.device("cpu") if self.cpu else self.device
            checkpoint = torch.load(checkpoint_path, map_location=place, weights_only=False)
        super().load_checkpoint(checkpoint_path, checkpoint, inference_only)
        if inference_only or checkpoint is None:
            return
        self._resumed = True
        if checkpoint.get("val_metrics"):
            self._validated = (self.step, checkpoint["val_metrics"])
        by_step = self.scheduler.scheduler_type not in ("Null", "ReduceLROnPlateau")
        if by_step and self.scheduler.scheduler.last_epoch == self.step - 1:
            self.scheduler.step()

    def train(self, disable_eval_tqdm: bool = False) -> None:
        """The stock training, which a signal may end between two steps.

        Raises:
            OSError: at the end, where a checkpoint could not be written.
        """
        with INTERRUPTION.deferred():
            try:
                self._repeat_validation(disable_eval_tqdm)
                self._begin()
                super().train(disable_eval_tqdm)
            except RunInterruptedError:
                self._stop()
                return
        if "checkpoint.pt" in self._unsaved:
            self.save()
        if self._unsaved:
            raise OSError("; ".join(self._unsaved.values()))

    def validate(self, split: str = "val", disable_tqdm: bool = False) -> Any:
        """The stock validation; an interrupted one leaves the weights of training."""
        with self._own_weights_back():
            return super().validate(split, disable_tqdm)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """The stock predictions; interrupted ones leave the weights of training."""
        with self._own_weights_back():
            return super().predict(*args, **kwargs)

    def update_best(self, primary_metric: str, val_metrics: Any, **kwargs: Any) -> None:
        """The stock comparison; one that is interrupted counts as not made."""
        before = self.best_val_metric
        try:
            super().update_best(primary_metric, val_metrics, **kwargs)
        except RunInterruptedError:
            self.best_val_metric = before
            raise
        self._validated = (self.step, val_metrics)

    def save(
        self,
        metrics: Any = None,
        checkpoint_file: str = "checkpoint.pt",
        training_state: bool = True,
    ) -> str | None:
        """Write a checkpoint under a temporary name, then move it to its own.

        A disk that is full leaves the checkpoint that was there; training goes on, and `train`
        ends with the error if no later one could be written.
        """
        place = Path(self.config["cmd"]["checkpoint_dir"])
        try:
            written = save_beside(super().save, metrics, checkpoint_file, training_state)
        except (OSError, RuntimeError) as error:
            if not is_write_error(error):
                raise
            (place / f"{checkpoint_file}.partial").unlink(missing_ok=True)
            message = f"{place / checkpoint_file}: not written at step {self.step} ({error})"
            self._unsaved[checkpoint_file] = message
            logging.error(f"{message}; the one before is kept. Make room on the disk")
            return None
        if written is not None:
            self._unsaved.pop(checkpoint_file, None)
        return written

    def _forward(self, batch: Any) -> Any:
        # The first rank alone: another one that stopped a step early would leave it waiting.
        if INTERRUPTION.asked and distutils.is_master():
            if self.model.training:  # the host has counted a step that is not begun
                self.step -= 1
                self.epoch = self.step / len(self.train_loader)
            raise RunInterruptedError
        return super()._forward(batch)

    @contextmanager
    def _own_weights_back(self) -> Iterator[None]:
        """An interrupted evaluation gives back the weights that its average stood in for."""
        try:
            yield
        except RunInterruptedError:
            if self.ema is not None:
                self.ema.restore()
            raise

    def _repeat_validation(self, disable_tqdm: bool) -> None:
        """Validate where the loaded checkpoint was written just before a validation."""
        every = self.config["optim"].get("eval_every", len(self.train_loader))
        metric = self.evaluation_metrics.get(
            "primary_metric", self.evaluator.task_primary_metric[self.name]
        )
        done = self._validated is not None and self._validated[0] == self.step
        due = self._resumed and self.step > 0 and self.step % every == 0 and not done
        if not due or self.val_loader is None or metric != self.primary_metric:
            return
        metrics = self.validate("val", disable_tqdm)
        self.update_best(metric, metrics, disable_eval_tqdm=disable_tqdm)
        if self.scheduler.scheduler_type == "ReduceLROnPlateau":
            self.scheduler.step(metrics=metrics[metric]["metric"])

    def _begin(self) -> None:
        """What is done just before the first step; nothing here."""

    def _stop(self) -> None:
        """A checkpoint, with the metrics of a validation at this very step; then the end."""
        self._stopped = True
        done = self._validated if self._validated and self._validated[0] == self.step else None
        path = self.save(metrics=done and done[1])
        if distutils.is_master():
            logging.info(f"Stopped after step {self.step}; checkpoint: {path}")
        close_logger(self.logger, preempted=True)
        INTERRUPTION.leave()
