"""Trainer ``faenet``: the stock one, plus what no configuration can express."""

from __future__ import annotations

import datetime
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.common.registry import registry

from ocp_faenet.adapters.checkpoints import is_write_error
from ocp_faenet.adapters.conserving import ConservingTrainer
from ocp_faenet.adapters.finetuning import (
    layered_optimizer,
    scales_of,
    self_contained,
    taken_heads,
)
from ocp_faenet.adapters.interruption import INTERRUPTION, RunInterruptedError
from ocp_faenet.adapters.preflight import check_labels, check_run_config
from ocp_faenet.adapters.symmetry import validation_errors
from ocp_faenet.adapters.training_log import LossTerms, Throughput, close_logger, report_skipped

#: Short names of our models and what stands for them in any process.
DOTTED = {
    "faenet": "ocp_faenet.FAENet",
    "faenet_backbone": "ocp_faenet.FAENetBackbone",
    "faenet_energy_head": "ocp_faenet.FAENetEnergyHead",
    "faenet_force_head": "ocp_faenet.FAENetForceHead",
    "faenet_denoising_head": "ocp_faenet.FAENetDenoisingHead",
    "faenet_positions_head": "ocp_faenet.FAENetPositionsHead",
}


def dotted_names(section: Any) -> Any:
    """A model configuration with `DOTTED` names under ``name``, ``model`` and ``module``."""
    if not isinstance(section, dict):
        return section
    return {
        key: DOTTED.get(value, value)
        if key in ("name", "model", "module") and isinstance(value, str)
        else dotted_names(value)
        for key, value in section.items()
    }


@registry.register_trainer("faenet")
class FAENetTrainer(ConservingTrainer):
    """`OCPTrainer` with what a configuration cannot express.

    1. The configuration and the data files are checked before anything is built.
    2. A checkpoint is written beside the old one and then put in its place, so that a run
       killed in the middle of writing, or a full disk, leaves the last good checkpoint.
    3. Run ids are unique; the stock ones are 128 seconds coarse, and a second run within that
       time silently resumes the first. ``--timestamp-id`` still decides where it is given.
    4. Short names of our models are stored as dotted ones, so that a checkpoint opens in a
       process that has never imported this package (`OCPCalculator`).
    5. ``evaluation_metrics.symmetry_metrics: true`` logs symmetry errors with each validation,
       ``evaluation_metrics.throughput: true`` the speed of training; several losses are logged
       each by itself too.
    6. A resumed run is the run that was stopped: the scheduler takes the step that the stock
       checkpoint misses, and a validation that a checkpoint came before is done again.
    7. A run that is asked to stop (`interruption`) does so between two steps.
    8. The loss ``energy_conservation`` compares two outputs of the model (`ConservingTrainer`).
    9. ``optim.layer_lr_decay`` lets layers near the input learn more slowly, the checkpoint of
       a fine-tuned model opens without the one it started from, and heads that are taken over
       from there keep their normalizers (`finetuning`).

    Checkpoints open in the stock trainer and the other way round.
    """

    best_val_metric: float | None

    def load(self, inference_only: bool) -> None:
        """Build everything, after a look at the configuration.

        Raises:
            ValueError: see `check_run_config`.
        """
        self._unsaved: dict[str, str] = {}
        self._validated: tuple[int, Any] | None = None
        self._resumed = False
        asked = (self.config["evaluation_metrics"] or {}).get("throughput")
        self._throughput = Throughput(distutils.get_world_size()) if asked else None
        if not inference_only:
            splits = {"train": "dataset", "val": "val_dataset", "test": "test_dataset"}
            splits["relax"] = "relax_dataset"
            dataset = {split: self.config[section] for split, section in splits.items()}
            check_run_config({**self.config, "dataset": dataset})
        self.config["model"] = dotted_names(self.config["model"])
        super().load(inference_only)

    def load_datasets(self) -> None:
        """Build the stock loaders.

        Raises:
            ValueError: a split of which ``first_n``, ``max_atoms`` and the like leave nothing, or
                that has no labels.
        """
        super().load_datasets()
        for split in ("train", "val", "test"):
            dataset = getattr(self, f"{split}_dataset", None)
            if dataset is not None and len(dataset) == 0:
                raise ValueError(
                    f"dataset.{split}: no record is left after first_n, sample_n, max_atoms or "
                    "subset_to; loosen them"
                )
            if dataset is not None and split != "test":
                check_labels(split, dataset[0], self.output_targets)

    def load_model(self) -> None:
        """The stock model; its configuration is kept without a starting checkpoint."""
        self._heads_from = taken_heads(self.config["model"])
        super().load_model()
        self.config["model"] = self_contained(self.config["model"], self._unwrapped_model)

    def load_references_and_normalizers(self) -> None:
        """The stock scales, or those of the checkpoint whose heads go on."""
        super().load_references_and_normalizers()
        if self._heads_from is None:
            return
        logging.info(f"Heads and their normalizers are those of {self._heads_from}")
        found = scales_of(self._heads_from, torch.device(self.device))
        for mine, theirs in zip((self.normalizers, self.elementrefs), found, strict=True):
            mine.clear()
            mine.update(theirs)

    def load_optimizer(self) -> None:
        """The stock optimizer, or one with a learning rate for each layer."""
        if self.config["optim"].get("layer_lr_decay") is None:
            super().load_optimizer()
        else:
            self.optimizer = layered_optimizer(self._unwrapped_model, self.config["optim"])

    def load_loss(self) -> None:
        """The stock losses, each of which is remembered for the log."""
        super().load_loss()
        self._terms = LossTerms(self.loss_functions)

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
                if self._throughput is not None:
                    self._throughput.start()
                super().train(disable_eval_tqdm)
            except RunInterruptedError:
                self._stop()
                return
        if "checkpoint.pt" in self._unsaved:
            self.save()
        if self._unsaved:
            raise OSError("; ".join(self._unsaved.values()))
        report_skipped(self, "train")

    def validate(self, split: str = "val", disable_tqdm: bool = False) -> Any:
        """The stock validation; then symmetry errors to the log, where asked for."""
        if self._throughput is not None:
            self._throughput.stop()
        with self._own_weights_back():
            metrics = super().validate(split, disable_tqdm)
        if self.config["evaluation_metrics"].get("symmetry_metrics"):
            errors = validation_errors(self, split)
            if self.logger is not None and distutils.is_master():
                self.logger.log(errors, step=self.step, split=split)
        report_skipped(self, split)
        if self._throughput is not None:
            self._throughput.start()
        return metrics

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """The stock predictions; what was skipped is said."""
        with self._own_weights_back():
            predictions = super().predict(*args, **kwargs)
        report_skipped(self, "test")
        return predictions

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
        partial = place / f"{checkpoint_file}.partial"
        try:
            written = super().save(metrics, partial.name, training_state)
            if written is None:
                return None
            with open(written, "rb+") as file:
                os.fsync(file.fileno())
            partial.replace(place / checkpoint_file)
        except (OSError, RuntimeError) as error:
            if not is_write_error(error):
                raise
            partial.unlink(missing_ok=True)
            message = f"{place / checkpoint_file}: not written at step {self.step} ({error})"
            self._unsaved[checkpoint_file] = message
            logging.error(f"{message}; the one before is kept. Make room on the disk")
            return None
        self._unsaved.pop(checkpoint_file, None)
        return str(place / checkpoint_file)

    def _forward(self, batch: Any) -> Any:
        # The first rank alone: another one that stopped a step early would leave it waiting.
        if INTERRUPTION.asked and distutils.is_master():
            if self.model.training:  # the host has counted a step that is not begun
                self.step -= 1
                self.epoch = self.step / len(self.train_loader)
            raise RunInterruptedError
        return super()._forward(batch)

    def _compute_metrics(
        self, out: Any, batch: Any, evaluator: Any, metrics: Any = None
    ) -> dict[str, Any]:
        found: dict[str, Any] = super()._compute_metrics(out, batch, evaluator, metrics)
        found = self._terms.add_to(found, evaluator)
        if self.model.training and self._throughput is not None:
            found = self._throughput.add_to(found, evaluator, batch)
        return found

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

    def _stop(self) -> None:
        done = self._validated if self._validated and self._validated[0] == self.step else None
        path = self.save(metrics=done and done[1])
        if distutils.is_master():
            logging.info(f"Stopped after step {self.step}; checkpoint: {path}")
        close_logger(self.logger, preempted=True)
        INTERRUPTION.leave()

    @staticmethod
    def _get_timestamp(device: torch.device, suffix: str | None) -> str:
        """Second and a random tail, the same on every rank."""
        now = datetime.datetime.now().strftime("%Y-%m-%d-%H-%M-%S")
        stamp = [f"{now}-{uuid.uuid4().hex[:6]}"]
        distutils.broadcast_object_list(stamp, src=0, device=device)
        return "-".join([stamp[0], suffix] if suffix else stamp)
