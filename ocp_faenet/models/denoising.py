"""The auxiliary decoder of Noisy Nodes and of denoising (report, equations 16 and 18)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from ocp_faenet.models.backbone import Embedding
from ocp_faenet.models.config import FAENetConfig
from ocp_faenet.models.faenet import ForceHead
from ocp_faenet.nn.activations import activation
from ocp_faenet.nn.init import xavier_linear


class ScheduleShape(str, Enum):
    """How the weight of the auxiliary loss goes from its start to its end."""

    LINEAR = "linear"
    COSINE = "cosine"


@dataclass(frozen=True)
class WeightSchedule:
    """A factor of the auxiliary loss, by training step; the loss's coefficient comes on top.

    Attributes:
        start, end: factor at step 0, and from step ``steps`` on.
        steps: training steps between them.
        shape: straight, or half a cosine.

    Raises:
        ValueError: a negative factor, or no steps.
    """

    start: float = 1.0
    end: float = 0.0
    steps: int = 1000
    shape: ScheduleShape = ScheduleShape.LINEAR

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"weight_schedule.{name}: {getattr(self, name)} is negative")
        if self.steps < 1:
            raise ValueError(f"weight_schedule.steps: {self.steps}; at least 1")

    def __call__(self, step: int) -> float:
        """The factor at a step, from 0."""
        done = min(step / self.steps, 1.0)
        if self.shape is ScheduleShape.COSINE:
            done = (1.0 - math.cos(math.pi * done)) / 2.0
        return self.start + (self.end - self.start) * done


class _WeightedGradient(torch.autograd.Function):
    """Identity, whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.weight, None


def weighted_gradient(x: Tensor, weight: float) -> Tensor:
    """``x``; what is learned through it counts ``weight`` times.

    The gradient is that of ``weight * loss(x)``, while the loss keeps its value, so that its
    curve in a log shows what was learned and not the schedule.
    """
    out: Tensor = _WeightedGradient.apply(x, weight)  # type: ignore[no-untyped-call]
    return out


class DenoisingHead(nn.Module):
    """A vector for each atom, through the frames, and its species where asked for.

    The vectors are decoded and turned back as forces are (report, equation 8), hence turn with
    the structure exactly as those do.

    Args:
        config: of the backbone; ``force_decoder_type`` and its sizes are those of this decoder.
        num_species: classes of the species head, 0 for none.
    """

    def __init__(self, config: FAENetConfig, num_species: int = 0) -> None:
        super().__init__()
        self.vectors = ForceHead(config)
        self.act = activation(config.act)
        width = config.hidden_channels
        self.hidden = xavier_linear(width, width) if num_species else None
        self.species = xavier_linear(width, num_species) if num_species else None

    def forward(self, embedding: Embedding) -> tuple[Tensor, Tensor | None]:
        """``(N, 3)`` in the target's unit, and logits ``(N, classes)``, mean over frames."""
        logits = None
        if self.hidden is not None and self.species is not None:
            logits = self.species(self.act(self.hidden(embedding.final))).mean(0)
            logits = embedding.of_all_atoms(logits)
        return self.vectors(embedding), logits
