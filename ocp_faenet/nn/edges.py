"""Edge features, kept in two parts so that what frames share is computed once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ocp_faenet.nn.activations import SMOOTH, Activation
from ocp_faenet.nn.basis import GaussianSmearing
from ocp_faenet.nn.convolution import Taps
from ocp_faenet.nn.init import xavier_linear

#: Grid points of the radial table for each Gaussian: a spacing of 0.05 widths, at which cubic
#: interpolation of a Gaussian is right to 5e-7.
GRID_PER_GAUSSIAN = 20


@dataclass(frozen=True)
class EdgeFeatures:
    """Edge embeddings ``e_ij``: channels that depend on the frame, then channels that do not.

    Attributes:
        dense: ``(F, E, C1)``, from relative positions in each frame; all channels where
            ``radial`` is ``None``.
        radial: ``(K, C2)`` rows from which the other channels are combined: one a edge, or one
            a point of a grid of distances. Shared by all frames.
        taps: the rows of ``radial`` that make up each edge.
    """

    dense: Tensor
    radial: Tensor | None = None
    taps: Taps | None = None

    def full(self) -> Tensor:
        """All channels, ``(F, E, C1 + C2)``."""
        if self.radial is None or self.taps is None:
            return self.dense
        radial = self.taps.gather(self.radial.unsqueeze(0))
        return torch.cat([self.dense, radial.expand(self.dense.shape[0], -1, -1)], dim=-1)


def cubic_taps(distances: Tensor, cutoff: float, points: int) -> Taps:
    """Cubic Lagrange interpolation on an even grid over [0, cutoff].

    Args:
        distances: ``(E,)``, Å, within [0, cutoff].
        points: grid points ``K``, at least 4.

    Returns:
        Four rows and weights for each distance; the weights sum to one.
    """
    t = distances * ((points - 1) / cutoff)
    first = (t.floor().long() - 1).clamp(0, points - 4)
    u = t - first.to(t.dtype)  # position within the four points, in [0, 3]
    a, b, c, d = u, u - 1, u - 2, u - 3
    weights = torch.stack([-b * c * d / 6, a * c * d / 2, -a * b * d / 2, a * b * c / 6], dim=-1)
    return Taps(first.unsqueeze(-1) + torch.arange(4, device=first.device), weights)


class EdgeEmbedding(nn.Module):
    """Edge embeddings from relative positions and radial basis (report, section 3.1).

    .. math:: e_{ij} = \\sigma(W_1 x_{ij} + b_1 \\,\\|\\, W_2 rbf(d_{ij}) + b_2)

    and, with ``second_layer``, one more perceptron on top.

    The second half is a function of a single number, so in single precision it is tabulated on a
    fine grid of distances and interpolated wherever that is less work: later layers then take
    their products with the table instead of with every edge. It is never done where a gradient
    with respect to positions is asked for, in double precision, or for activations with kinks.

    Args:
        cutoff: Å.
        num_gaussians: size of the radial basis ``G``.
        num_filters: channels of ``e_ij``; the first half comes from relative positions.
        tabulate: allow the table; for message passing that takes linear maps of ``e_ij``.
    """

    def __init__(
        self,
        cutoff: float,
        num_gaussians: int,
        num_filters: int,
        act: Activation,
        *,
        second_layer: bool,
        tabulate: bool = True,
    ) -> None:
        super().__init__()
        self.act = act
        self.cutoff = cutoff
        self.tabulate = tabulate and not second_layer
        self.smooth = act in SMOOTH
        self.grid_points = GRID_PER_GAUSSIAN * num_gaussians
        self.basis = GaussianSmearing(cutoff, num_gaussians)
        self.directional = xavier_linear(3, num_filters // 2)
        self.radial = nn.Linear(num_gaussians, num_filters - num_filters // 2)
        self.second = xavier_linear(num_filters, num_filters) if second_layer else None

    def forward(self, relative_positions: Tensor, distances: Tensor) -> EdgeFeatures:
        """``(F, E, 3)`` vectors in each frame and their ``(E,)`` lengths, Å."""
        directional = self.act(self.directional(relative_positions))
        if self._by_table(distances):
            grid = torch.linspace(
                0, self.cutoff, self.grid_points, dtype=distances.dtype, device=distances.device
            )
            taps = cubic_taps(distances, self.cutoff, self.grid_points)
            return EdgeFeatures(directional, self._radial(grid), taps)
        radial = self._radial(distances)
        if self.tabulate and directional.shape[0] > 1:
            own_row = torch.arange(len(distances), device=distances.device).unsqueeze(-1)
            return EdgeFeatures(
                directional, radial, Taps(own_row, torch.ones_like(distances).unsqueeze(-1))
            )
        dense = torch.cat([directional, radial.expand(directional.shape[0], -1, -1)], dim=-1)
        return EdgeFeatures(dense if self.second is None else self.act(self.second(dense)))

    def _radial(self, distances: Tensor) -> Tensor:
        """``(E,)`` to ``(E, C2)``."""
        return self.act(self.radial(self.basis(distances)))

    def _by_table(self, distances: Tensor) -> bool:
        return (
            self.tabulate
            and self.smooth
            and distances.dtype is not torch.float64
            and not distances.requires_grad
            and len(distances) > self.grid_points
        )
