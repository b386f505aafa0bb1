"""Energy conservation: direct forces against the gradient of the predicted energy.

Report, equation 9 (after arXiv 2305.05577): ``sum_i || f_i - (-dE/dx_i) ||_2``, the gradient taken
as the force that it stands for. Reduction over atoms is left to the host: its mean, or
``reduction: sum``.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, IntEnum

from torch import Tensor, nn


class GradientOrder(IntEnum):
    """How far the gradient of the energy is followed in a training pass.

    ``FIRST``: it is a constant. ``SECOND``: it has a graph of its own, to be trained through.
    """

    NONE = 0
    FIRST = 1
    SECOND = 2


class Branch(str, Enum):
    """Which of the two the loss teaches; the other one is a constant to it."""

    FORCES = "forces"
    ENERGY = "energy"
    BOTH = "both"

    @property
    def order(self) -> GradientOrder:
        """What the loss needs of the gradient."""
        return GradientOrder.FIRST if self is Branch.FORCES else GradientOrder.SECOND


class ConservationNorm(str, Enum):
    """Of the difference: Euclidean for each atom (equation 9), or by component."""

    L2 = "l2"
    MAE = "mae"
    MSE = "mse"


_NORMS: dict[ConservationNorm, Callable[[Tensor], Tensor]] = {
    ConservationNorm.L2: lambda d: d.norm(dim=-1),  # (N,)
    ConservationNorm.MAE: lambda d: d.abs(),  # (N, 3)
    ConservationNorm.MSE: lambda d: d.square(),  # (N, 3)
}


class EnergyConservationLoss(nn.Module):
    """``|| f - (-dE/dx) ||`` of each atom, before reduction.

    Args:
        norm: of the difference.
        gradient_to: the branch that is taught.
    """

    def __init__(
        self, norm: ConservationNorm = ConservationNorm.L2, gradient_to: Branch = Branch.BOTH
    ) -> None:
        super().__init__()
        self.norm = norm
        self.gradient_to = gradient_to

    def forward(self, forces: Tensor, gradient: Tensor, natoms: Tensor | None = None) -> Tensor:
        """``forces`` and ``gradient = -dE/dx`` ``(N, 3)`` in the same units, to ``(N,)`` or
        ``(N, 3)``; ``natoms`` is what the host hands every loss.
        """
        if self.gradient_to is Branch.FORCES:
            gradient = gradient.detach()
        elif self.gradient_to is Branch.ENERGY:
            forces = forces.detach()
        return _NORMS[self.norm](forces - gradient)
