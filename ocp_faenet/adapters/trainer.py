"""Trainer ``faenet``: the stock one, plus what no configuration can express."""

from __future__ import annotations

import datetime
import os
import uuid
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.common.registry import registry
from fairchem.core.trainers import OCPTrainer

from ocp_faenet.adapters.preflight import check_run_config
from ocp_faenet.adapters.symmetry import validation_errors

#: Short names of our models and what stands for them in any process.
DOTTED = {
    "faenet": "ocp_faenet.FAENet",
    "faenet_backbone": "ocp_faenet.FAENetBackbone",
    "faenet_energy_head": "ocp_faenet.FAENetEnergyHead",
    "faenet_force_head": "ocp_faenet.FAENetForceHead",
    "faenet_denoising_head": "ocp_faenet.FAENetDenoisingHead",
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
class FAENetTrainer(OCPTrainer):
    """`OCPTrainer` with five additions.

    1. The configuration and the data files are checked before anything is built.
    2. A checkpoint is written beside the old one and then put in its place, so that a run
       killed in the middle of writing leaves the last good checkpoint.
    3. Run ids are unique; the stock ones are 128 seconds coarse, and a second run within that
       time silently resumes the first. ``--timestamp-id`` still decides where it is given.
    4. Short names of our models are stored as dotted ones, so that a checkpoint opens in a
       process that has never imported this package (`OCPCalculator`).
    5. ``evaluation_metrics.symmetry_metrics: true`` logs symmetry errors with each validation.

    Checkpoints open in the stock trainer and the other way round.
    """

    def load(self, inference_only: bool) -> None:
        """Build everything, after a look at the configuration.

        Raises:
            ValueError: see `check_run_config`.
        """
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
            ValueError: a split of which ``first_n``, ``max_atoms`` and the like leave nothing.
        """
        super().load_datasets()
        for split in ("train", "val", "test"):
            dataset = getattr(self, f"{split}_dataset", None)
            if dataset is not None and len(dataset) == 0:
                raise ValueError(
                    f"dataset.{split}: no record is left after first_n, sample_n, max_atoms or "
                    "subset_to; loosen them"
                )

    def validate(self, split: str = "val", disable_tqdm: bool = False) -> Any:
        """The stock validation; then symmetry errors to the log, where asked for."""
        metrics = super().validate(split, disable_tqdm)
        if self.config["evaluation_metrics"].get("symmetry_metrics"):
            errors = validation_errors(self, split)
            if self.logger is not None and distutils.is_master():
                self.logger.log(errors, step=self.step, split=split)
        return metrics

    def save(
        self,
        metrics: Any = None,
        checkpoint_file: str = "checkpoint.pt",
        training_state: bool = True,
    ) -> str | None:
        """Write a checkpoint under a temporary name, then move it to its own."""
        written = super().save(metrics, f"{checkpoint_file}.partial", training_state)
        if written is None:
            return None
        with open(written, "rb+") as file:
            os.fsync(file.fileno())
        return str(Path(written).replace(Path(written).with_name(checkpoint_file)))

    @staticmethod
    def _get_timestamp(device: torch.device, suffix: str | None) -> str:
        """Second and a random tail, the same on every rank."""
        now = datetime.datetime.now().strftime("%Y-%m-%d-%H-%M-%S")
        stamp = [f"{now}-{uuid.uuid4().hex[:6]}"]
        distutils.broadcast_object_list(stamp, src=0, device=device)
        return "-".join([stamp[0], suffix] if suffix else stamp)
