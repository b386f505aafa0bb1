"""The part of `FAENetTrainer` that knows forces and positions."""

from __future__ import annotations

from typing import Any

import torch
from fairchem.core.trainers import OCPTrainer

from ocp_faenet.adapters.conservation import (
    GRADIENT,
    Conservation,
    Scales,
    gradient_taken,
    split_losses,
)
from ocp_faenet.adapters.positions import POSITIONS, with_periodicity
from ocp_faenet.adapters.preflight import check_free_atoms, check_scales
from ocp_faenet.nn.conservation import GradientOrder


class ConservingTrainer(OCPTrainer):
    """`OCPTrainer` with the loss ``energy_conservation`` (`Conservation`) and IS2RS metrics."""

    conservation: Conservation | None = None
    metrics: dict[str, Any]

    def load_references_and_normalizers(self) -> None:
        """Build the stock normalisers.

        Raises:
            ValueError: forces that are the gradient of the energy, but not in their own units.
        """
        super().load_references_and_normalizers()
        check_scales(self.config["model"], Scales.of(self.normalizers))

    def load_loss(self) -> None:
        """Build the stock losses, and ours of two outputs.

        Raises:
            ValueError: see `split_losses`.
        """
        entries = self.config["loss_functions"]
        term, self.config["loss_functions"] = split_losses(entries)
        try:
            super().load_loss()
        finally:
            self.config["loss_functions"] = entries
        self.conservation = None if term is None else Conservation.of(term)

    def _forward(self, batch: Any) -> Any:
        """The stock outputs; in training steps that conserve energy also the gradient."""
        if not self.model.training:
            return super()._forward(batch)
        order, ours = GradientOrder.NONE, self.conservation
        if ours is not None and ours.term.active(self.step, len(self.train_loader)):
            order = ours.term.gradient_to.order
        with gradient_taken(self._unwrapped_model, order) as caught:
            outputs = super()._forward(batch)
        return {**outputs, **caught}

    def _compute_metrics(self, out: Any, batch: Any, evaluator: Any, metrics: Any = None) -> Any:
        """The stock metrics; for positions the batch says what is periodic."""
        if POSITIONS in self.output_targets:
            batch = with_periodicity(batch)
        return super()._compute_metrics(out, batch, evaluator, metrics)

    def _compute_loss(self, out: Any, batch: Any) -> Any:
        """The stock sum, and the conservation term where the gradient was taken.

        Raises:
            ValueError: see `check_free_atoms`.
        """
        check_free_atoms(batch, self.output_targets)
        loss = super()._compute_loss(out, batch)
        if self.conservation is None or GRADIENT not in out:
            return loss
        mask = torch.ones_like(batch.fixed, dtype=torch.bool)
        if self.output_targets["forces"].get("train_on_free_atoms", True):
            mask = batch.fixed == 0
        term = self.conservation(
            out["forces"], out[GRADIENT], mask, batch.natoms, Scales.of(self.normalizers)
        )
        self.metrics = self.evaluator.update("loss_energy_conservation", term.item(), self.metrics)
        return loss + term
