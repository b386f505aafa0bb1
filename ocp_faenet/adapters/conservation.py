"""Loss ``energy_conservation`` from a configuration to the trainer.

The host knows losses of an output against a target of the batch; this one is of two outputs. So
`FAENetTrainer` keeps it apart::

    loss_functions:
      - energy_conservation:
          fn: energy_conservation
          coefficient: 10
          norm: l2
          gradient_to: both
          from_epoch: 2
          every: 1
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fairchem.core.common.registry import registry
from fairchem.core.modules.loss import DDPLoss
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from ocp_faenet.nn.conservation import (
    Branch,
    ConservationNorm,
    EnergyConservationLoss,
    GradientOrder,
)

NAME = "energy_conservation"
#: Where a model of ours leaves ``-dE/dx``.
GRADIENT = "forces_grad_target"


class Term(BaseModel):
    """The entry of ``loss_functions``.

    Attributes:
        fn: `NAME`.
        coefficient: weight in the sum of losses.
        reduction: over atoms, ``mean`` or ``sum``, as for the host's own.
        norm: of the difference.
        gradient_to: which branch it teaches.
        from_epoch: first epoch in which it counts, from 0.
        every: it counts in each ``every``-th step of an epoch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    fn: str
    coefficient: float = Field(ge=0)
    reduction: str = Field(default="mean", pattern="^(mean|sum)$")
    norm: ConservationNorm = ConservationNorm.L2
    gradient_to: Branch = Branch.BOTH
    from_epoch: int = Field(default=0, ge=0)
    every: int = Field(default=1, ge=1)

    def active(self, step: int, steps_per_epoch: int) -> bool:
        """Whether it counts in training step ``step``, counted from 1 as the host does."""
        epoch, place = divmod(step - 1, steps_per_epoch)
        return epoch >= self.from_epoch and place % self.every == 0 and self.coefficient > 0


def split_losses(entries: Any) -> tuple[Term | None, list[Any]]:
    """The conservation term of ``loss_functions``, and the host's entries.

    Raises:
        ValueError: an unknown or missing key, a value out of range, or two such terms.
    """
    found, rest = [], []
    for entry in entries or []:
        ours = {k: v for k, v in entry.items() if isinstance(v, Mapping) and v.get("fn") == NAME}
        if not ours and NAME not in entry:
            rest.append(entry)
            continue
        try:
            found.append(Term.model_validate(ours[NAME] if NAME in ours else entry[NAME]))
        except (ValidationError, KeyError) as error:
            raise ValueError(f"loss_functions.{NAME}: {_reason(error)}") from None
    if len(found) > 1:
        raise ValueError(f"loss_functions: {len(found)} entries {NAME}; give one")
    return (found[0] if found else None), rest


def _reason(error: ValidationError | KeyError) -> str:
    if isinstance(error, KeyError):
        return f"it stands under another name; write - {NAME}: {{fn: {NAME}, coefficient: 10}}"
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    return f"{key}: {first['input']!r}; {first['msg'][:1].lower()}{first['msg'][1:]}"


@registry.register_loss(NAME)
class StockLoss(nn.Module):
    """What the stock trainer finds under the name.

    Raises:
        ValueError: always: it cannot compare two outputs.
    """

    def __init__(self) -> None:
        raise ValueError(
            f"loss_functions.{NAME}: compares two outputs of the model, which the stock trainer "
            "cannot; set trainer: ocp_faenet.FAENetTrainer"
        )


@dataclass(frozen=True)
class Conservation:
    """The term with its loss, ready for batches."""

    term: Term
    loss: DDPLoss

    @classmethod
    def of(cls, term: Term) -> Conservation:
        """The loss as the host reduces its own, over all ranks."""
        loss = DDPLoss("l2mae", reduction=term.reduction)
        loss.loss_fn = EnergyConservationLoss(term.norm, term.gradient_to)
        return cls(term, loss)

    def __call__(
        self, forces: Tensor, gradient: Tensor, mask: Tensor, natoms: Tensor, scales: Scales
    ) -> Tensor:
        """Weighted loss over the atoms of ``mask`` ``(N,)``.

        Args:
            forces: ``(N, 3)``, normalised.
            gradient: ``-dE/dx`` ``(N, 3)`` of the normalised energy, per Å.
            mask: the atoms on which forces are trained.
            natoms: of each structure.
            scales: of the normalisers.
        """
        same_units = gradient * (scales.energy / scales.forces)
        value: Tensor = self.loss(forces[mask], same_units[mask], natoms)
        return self.term.coefficient * value


@dataclass(frozen=True)
class Scales:
    """Deviations by which targets were divided: eV, and eV/Å."""

    energy: float = 1.0
    forces: float = 1.0

    @classmethod
    def of(cls, normalizers: Mapping[str, Any]) -> Scales:
        """From the trainer's normalisers."""
        found = {
            key: float(normalizers[key].rmsd) if key in normalizers else 1.0
            for key in ("energy", "forces")
        }
        return cls(**found)


@contextmanager
def gradient_taken(model: nn.Module, order: GradientOrder) -> Iterator[dict[str, Tensor]]:
    """Set how far ``model`` follows the gradient, and catch it: `GRADIENT` is in what is given."""
    parts: list[Any] = [part for part in model.modules() if hasattr(part, "gradient_order")]
    before = [part.gradient_order for part in parts]
    caught: dict[str, Tensor] = {}

    def catch(module: Any, inputs: Any, out: Any) -> None:
        found = _find(out)
        if found is not None:
            caught[GRADIENT] = found

    for part in parts:
        part.gradient_order = order
    handle = model.register_forward_hook(catch)
    try:
        yield caught
    finally:
        handle.remove()
        for part, value in zip(parts, before, strict=True):
            part.gradient_order = value


def _find(out: Mapping[str, Any]) -> Tensor | None:
    """The gradient among the outputs, or those of a hydra head."""
    if GRADIENT in out:
        return out[GRADIENT]
    heads = (_find(value) for value in out.values() if isinstance(value, Mapping))
    return next((found for found in heads if found is not None), None)
