"""Trainer ``faenet``: the stock one, plus what no configuration can express."""

from __future__ import annotations

import datetime
import logging
import uuid
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.common.registry import registry

from ocp_faenet.adapters.conserving import ConservingTrainer
from ocp_faenet.adapters.finetuning import (
    layered_optimizer,
    scales_of,
    self_contained,
    taken_heads,
)
from ocp_faenet.adapters.preflight import check_labels, check_run_config
from ocp_faenet.adapters.resuming import ResumingTrainer
from ocp_faenet.adapters.schedules import LENGTHS, check_length, fitted_schedule
from ocp_faenet.adapters.symmetry import validation_errors
from ocp_faenet.adapters.training_log import LossTerms, Throughput, report_skipped

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
class FAENetTrainer(ResumingTrainer, ConservingTrainer):
    """`OCPTrainer` with what a configuration cannot express.

    1. The configuration and the data files are checked before anything is built.
    2. A run can be stopped at any time and goes on as if it had not been (`ResumingTrainer`).
    3. Run ids are unique; the stock ones are 128 seconds coarse, and a second run within that
       time silently resumes the first. ``--timestamp-id`` still decides where it is given.
    4. Short names of our models are stored as dotted ones, so that a checkpoint opens in a
       process that has never imported this package (`OCPCalculator`).
    5. ``evaluation_metrics.symmetry_metrics: true`` logs symmetry errors with each validation,
       ``evaluation_metrics.throughput: true`` the speed of training; several losses are logged
       each by itself too.
    6. The loss ``energy_conservation`` compares two outputs of the model (`ConservingTrainer`).
    7. ``optim.layer_lr_decay`` lets layers near the input learn more slowly, the checkpoint of
       a fine-tuned model opens without the one it started from, and heads that are taken over
       from there keep their normalizers (`finetuning`).
    8. ``CosineAnnealingLR`` and ``OneCycleLR`` without a length last as long as the run, whatever
       the number of ranks (`schedules`).

    Checkpoints open in the stock trainer and the other way round.
    """

    def load(self, inference_only: bool) -> None:
        """Build everything, after a look at the configuration.

        Raises:
            ValueError: see `check_run_config`.
        """
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

    def load_extras(self) -> None:
        """The stock scheduler and all else; a schedule without a length is as long as the run.

        Raises:
            ValueError: see `fitted_schedule`.
        """
        self.config["optim"] = fitted_schedule(self.config["optim"], self._steps())
        super().load_extras()

    def load_checkpoint(
        self,
        checkpoint_path: str,
        checkpoint: dict[str, Any] | None = None,
        inference_only: bool = False,
    ) -> None:
        """The stock loading; the schedule is then the checkpoint's, which may not fit this run.

        Raises:
            ValueError: see `check_length`.
        """
        super().load_checkpoint(checkpoint_path, checkpoint, inference_only)
        steps = None if inference_only else self._steps()
        kind = self.config["optim"].get("scheduler")
        if steps is not None and self._resumed and kind in LENGTHS:
            given = getattr(self.scheduler.scheduler, LENGTHS[kind])
            check_length(kind, given, steps, f"{checkpoint_path}: {LENGTHS[kind]}")

    def _steps(self) -> int | None:
        """Steps of the run on each rank, if there is something to train on."""
        loader = self.train_loader
        return None if loader is None else self.config["optim"]["max_epochs"] * len(loader)

    def load_loss(self) -> None:
        """The stock losses, each of which is remembered for the log."""
        super().load_loss()
        self._terms = LossTerms(self.loss_functions)

    def train(self, disable_eval_tqdm: bool = False) -> None:
        """The stock training; what was skipped is said at its end."""
        super().train(disable_eval_tqdm)
        if not self._stopped:
            report_skipped(self, "train")

    def validate(self, split: str = "val", disable_tqdm: bool = False) -> Any:
        """The stock validation; then symmetry errors to the log, where asked for."""
        if self._throughput is not None:
            self._throughput.stop()
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
        predictions = super().predict(*args, **kwargs)
        report_skipped(self, "test")
        return predictions

    def _begin(self) -> None:
        if self._throughput is not None:
            self._throughput.start()

    def _compute_metrics(
        self, out: Any, batch: Any, evaluator: Any, metrics: Any = None
    ) -> dict[str, Any]:
        found: dict[str, Any] = super()._compute_metrics(out, batch, evaluator, metrics)
        found = self._terms.add_to(found, evaluator)
        if self.model.training and self._throughput is not None:
            found = self._throughput.add_to(found, evaluator, batch)
        return found

    @staticmethod
    def _get_timestamp(device: torch.device, suffix: str | None) -> str:
        """Second and a random tail, the same on every rank."""
        now = datetime.datetime.now().strftime("%Y-%m-%d-%H-%M-%S")
        stamp = [f"{now}-{uuid.uuid4().hex[:6]}"]
        distutils.broadcast_object_list(stamp, src=0, device=device)
        return "-".join([stamp[0], suffix] if suffix else stamp)
