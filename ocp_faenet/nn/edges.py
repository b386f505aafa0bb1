"""Edge embeddings from relative positions and distances."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ocp_faenet.nn.activations import SMOOTH, Activation
from ocp_faenet.nn.basis import GaussianSmearing, cosine_cutoff
from ocp_faenet.nn.cells import ONE, CellGrid, Signs, choose_grid, leading, turn
from ocp_faenet.nn.edge_features import Cells, EdgeFeatures
from ocp_faenet.nn.init import xavier_linear
from ocp_faenet.nn.kept import Kept
from ocp_faenet.nn.messages import Taps

#: Grid points of the radial table for each Gaussian: a spacing of 0.05 widths, at which cubic
#: interpolation of a Gaussian is right to 5e-7.
GRID_PER_GAUSSIAN = 20


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
    fine grid of distances and interpolated wherever that is less work; the first half is a smooth
    function of three numbers, and on the CPU becomes polynomials in cells of space (`nn.cells`).
    Later layers then take their products with the tables instead of with every edge. It is never
    done where a gradient with respect to positions is asked for, in double precision, or for
    activations with kinks.

    Args:
        cutoff: Å.
        num_gaussians: size of the radial basis ``G``.
        num_filters: channels of ``e_ij``; the first half comes from relative positions.
        tabulate: allow the tables; for message passing that takes linear maps of ``e_ij``.
        envelope: take ``e_ij`` to zero at the cutoff, without the tables; for message passing whose
            filters it is.
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
        envelope: bool = False,
    ) -> None:
        super().__init__()
        self.act = act
        self.cutoff = cutoff
        self.tabulate = tabulate and not second_layer and not envelope
        self.envelope = envelope
        self.smooth = act in SMOOTH
        self.grid_points = GRID_PER_GAUSSIAN * num_gaussians
        self.basis = GaussianSmearing(cutoff, num_gaussians)
        self.directional = xavier_linear(3, num_filters // 2)
        self.radial = nn.Linear(num_gaussians, num_filters - num_filters // 2)
        self.second = xavier_linear(num_filters, num_filters) if second_layer else None
        self.kept_radial, self.kept_cells = Kept(), Kept()

    def forward(
        self, relative_positions: Tensor, distances: Tensor, signs: Signs | None = None
    ) -> EdgeFeatures:
        """Embeddings of edges.

        Args:
            relative_positions: ``(F, E, 3)`` in each frame, Å.
            distances: ``(E,)`` their lengths, Å.
            signs: of the axes of each frame against the first, where that is all that differs
                and they form a group.
        """
        frames = relative_positions.shape[0]
        single = self._single_precision(relative_positions, distances)
        cells = self._in_cells(relative_positions, signs or ONE) if single else None
        dense = None if cells is not None else self.act(self.directional(relative_positions))
        pays = len(distances) > self.grid_points or not torch.is_grad_enabled()
        if single and (pays or cells is not None):
            taps = cubic_taps(distances, self.cutoff, self.grid_points)
            return EdgeFeatures(frames, dense, cells, self._radial_table(distances), taps)
        radial = self._radial(distances)
        if dense is None or (self.tabulate and frames > 1):
            own_row = torch.arange(len(distances), device=distances.device).unsqueeze(-1)
            ones = torch.ones_like(distances).unsqueeze(-1)
            return EdgeFeatures(frames, dense, cells, radial, Taps(own_row, ones))
        dense = torch.cat([dense, radial.expand(frames, -1, -1)], dim=-1)
        dense = dense if self.second is None else self.act(self.second(dense))
        if self.envelope:
            dense = dense * cosine_cutoff(distances, self.cutoff).unsqueeze(-1)
        return EdgeFeatures(frames, dense)

    def _radial(self, distances: Tensor) -> Tensor:
        """``(E,)`` to ``(E, C2)``."""
        return self.act(self.radial(self.basis(distances)))

    def _radial_table(self, like: Tensor) -> Tensor:
        """Radial channels on the grid of distances, ``(R, C2)``."""
        grid = torch.linspace(
            0, self.cutoff, self.grid_points, dtype=like.dtype, device=like.device
        )
        parameters = (self.radial.weight, self.radial.bias, self.basis.offset)
        return self.kept_radial.get(parameters, (), lambda: self._radial(grid))

    def _single_precision(self, relative_positions: Tensor, distances: Tensor) -> bool:
        """Whether tables are right to the precision asked for."""
        return (
            self.tabulate
            and self.smooth
            and distances.dtype is torch.float32
            and len(distances) > 0
            and not distances.requires_grad
            and not relative_positions.requires_grad
            and float(distances.max()) <= self.cutoff * (1 + 5e-6)
        )

    def _in_cells(self, relative_positions: Tensor, signs: Signs) -> Cells | None:
        """The directional channels in cells of space, where that saves work."""
        weight: Tensor = self.directional.weight
        frames, edges = relative_positions.shape[:2]
        if self.act is not F.silu or relative_positions.device.type != "cpu":
            return None
        grid = choose_grid(
            self.cutoff, float(weight.detach().abs().sum(1).max()), frames * edges,
            weight.shape[0], kept=not torch.is_grad_enabled(), signs=signs,
        )  # fmt: skip
        if grid is None:
            return None
        seen = relative_positions[0] if len(signs) > 1 else relative_positions.flatten(0, 1)
        cell, local, frame = grid.place(seen)
        cell, order = torch.sort(cell, stable=True)
        counts = torch.bincount(cell, minlength=grid.num_cells).tolist()
        basis = grid.basis(local[order])
        directions, coefficients = self._coefficients(grid)
        if directions is not None:
            basis = turn(basis, directions, counts)
        if len(signs) > 1:
            order = (frame[order] * edges + order.unsqueeze(-1)).flatten()
        return Cells(coefficients, basis, order, tuple(counts))

    def _coefficients(self, grid: CellGrid) -> tuple[Tensor | None, Tensor]:
        """``(cells, K, G, C1)`` of ``act(W v + b)``, in inference in their leading directions."""
        parameters = (self.directional.weight, self.directional.bias)

        def make() -> tuple[Tensor | None, Tensor]:
            nodes = grid.nodes().to(self.directional.weight)
            found = grid.coefficients(self.act(self.directional(nodes)))
            if torch.is_grad_enabled() or not bool(found.isfinite().all()):
                return None, found
            return leading(found, grid.degree)

        return self.kept_cells.get(parameters, (grid,), make)
