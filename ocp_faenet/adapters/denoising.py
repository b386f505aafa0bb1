"""Head, losses and metrics of Noisy Nodes and of denoising, as the host knows them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.modules import evaluator as host_evaluator
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from ocp_faenet.adapters.hydra import FORCE_KEYS, FAENetHead
from ocp_faenet.adapters.noise import OFFSET, SPECIES, TARGET
from ocp_faenet.models.denoising import DenoisingHead, WeightSchedule, weighted_gradient
from ocp_faenet.models.noise_config import check_classes


@registry.register_model("faenet_denoising_head")
class FAENetDenoisingHead(FAENetHead):
    """``denoising`` ``(N, 3)``, and ``species`` ``(N, classes)`` with ``species_classes``.

    Keys: ``force_decoder_type`` and ``force_decoder_model_config`` as in the backbone;
    ``species_classes``, atomic numbers, those of ``transforms.noisy_nodes``; ``weight_schedule``
    (`WeightSchedule`), a factor that goes from ``start`` to ``end`` within ``steps``.

    Raises:
        ValueError: wrong keys or values; in training a batch without target, or with another
            number of species classes.
    """

    keys = (*FORCE_KEYS, "species_classes", "weight_schedule")

    def __init__(
        self,
        backbone: Any,
        *,
        species_classes: list[int] | None = None,
        weight_schedule: Mapping[str, Any] | None = None,
        **config: Any,
    ) -> None:
        super().__init__(backbone, **config)
        self.classes = tuple(species_classes or ())
        if self.classes:
            check_classes(self.classes)
        self.schedule = None if weight_schedule is None else _schedule(weight_schedule)
        self.head = DenoisingHead(self.config, len(self.classes))

    def forward(self, data: Any, emb: Mapping[str, Any]) -> dict[str, Tensor]:
        """Vectors and logits of the batch; see the class."""
        state = self.state(emb)
        self._check(data)
        vectors, logits = self.head(state.embedding)
        if OFFSET in data:
            vectors = vectors + data[OFFSET].to(vectors.dtype)
        out = {TARGET: vectors}
        if logits is not None:
            out[SPECIES] = logits
        if self.training and self.schedule is not None:
            weight = self.schedule(state.passes)
            out = {key: weighted_gradient(value, weight) for key, value in out.items()}
        return out

    def _check(self, data: Any) -> None:
        if self.training and TARGET not in data:
            raise ValueError(
                f"FAENetDenoisingHead: no {TARGET!r} in the batch; add transforms.noisy_nodes or "
                "transforms.denoising to dataset.train and to every split that is evaluated"
            )
        given = data[SPECIES].shape[-1] if SPECIES in data else 0
        if (self.training or given) and given != len(self.classes):
            raise ValueError(
                f"FAENetDenoisingHead: species_classes of the head are {len(self.classes)}, those "
                f"of transforms.noisy_nodes {given}; write the same list in both"
            )


def _schedule(config: Mapping[str, Any]) -> WeightSchedule:
    known = set(WeightSchedule.__dataclass_fields__)
    if unknown := sorted(set(config) - known):
        raise ValueError(
            f"weight_schedule: unknown key {unknown[0]!r} (value {config[unknown[0]]!r}); "
            f"{', '.join(sorted(known))}"
        )
    try:
        return TypeAdapter(WeightSchedule).validate_python(dict(config))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise ValueError(
            f"weight_schedule.{key}: {first['input']!r}; {reason}" if key else reason
        ) from None


def _rows(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that have a target; with none, one row that is right and teaches nothing."""
    kept = target.isfinite().all(-1)
    if not bool(kept.any()):
        nothing = pred[:1] * 0.0
        return nothing, nothing.detach()
    return pred[kept], target[kept]


class AtomLoss(nn.Module, ABC):
    """Base: a number for each atom that has a target; the host takes their mean over ranks."""

    def forward(self, pred: Tensor, target: Tensor, natoms: Tensor) -> Tensor:
        """``(N, D)`` and ``(N, D)``, NaN rows where there is no target, to ``(n,)``."""
        return self.each(*_rows(pred, target))

    @staticmethod
    @abstractmethod
    def each(pred: Tensor, target: Tensor) -> Tensor:
        """``(n, D)`` and ``(n, D)`` to ``(n,)``."""


@registry.register_loss("noisy_nodes")
class NoisyNodesLoss(AtomLoss):
    """``mean_i |d_i - t_i|``: lengths, not components, so that poses do not matter."""

    @staticmethod
    def each(pred: Tensor, target: Tensor) -> Tensor:
        """``(n, 3)`` and ``(n, 3)`` to ``(n,)``."""
        length: Tensor = torch.linalg.vector_norm(pred - target, dim=-1)
        return length


@registry.register_loss("denoising")
class DenoisingLoss(AtomLoss):
    """``mean_i |e_i - eps_i|^2`` (report, equation 18, divided by the number of atoms)."""

    @staticmethod
    def each(pred: Tensor, target: Tensor) -> Tensor:
        """``(n, 3)`` and ``(n, 3)`` to ``(n,)``."""
        return (pred - target).square().sum(-1)


@registry.register_loss("species_cross_entropy")
class SpeciesLoss(AtomLoss):
    """Cross-entropy of the true species of atoms whose species was corrupted."""

    @staticmethod
    def each(pred: Tensor, target: Tensor) -> Tensor:
        """Logits ``(n, classes)`` and one-hot rows to ``(n,)``."""
        return -(target * torch.log_softmax(pred, dim=-1)).sum(-1)


def _metric(loss: type[AtomLoss]) -> Any:
    """The unweighted loss as a metric of the host, so that its log holds it by itself."""

    def metric(prediction: Any, target: Any, key: Any) -> dict[str, float]:
        each = loss.each(*_rows(prediction[key].detach(), target[key]))
        return {"metric": each.mean().item(), "total": each.sum().item(), "numel": each.numel()}

    return metric


def _accuracy(prediction: Any, target: Any, key: Any) -> dict[str, float]:
    """Share of the corrupted atoms whose species is recognised."""
    pred, true = _rows(prediction[key].detach(), target[key])
    right = (pred.argmax(-1) == true.argmax(-1)).float()
    return {"metric": right.mean().item(), "total": right.sum().item(), "numel": right.numel()}


#: ``evaluation_metrics`` by name: the host finds one among the globals of its evaluator.
METRICS = {
    "denoising_l2mae": _metric(NoisyNodesLoss),
    "denoising_square": _metric(DenoisingLoss),
    "species_cross_entropy": _metric(SpeciesLoss),
    "species_accuracy": _accuracy,
}

for _name, _function in METRICS.items():
    setattr(host_evaluator, _name, _function)
