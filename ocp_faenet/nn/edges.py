"""Edge features, kept in two parts so that what frames share is computed once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ocp_faenet.nn.activations import Activation
from ocp_faenet.nn.init import xavier_linear


@dataclass(frozen=True)
class EdgeFeatures:
    """Edge embeddings ``e_ij``: channels that depend on the frame, then channels that do not.

    Attributes:
        directional: ``(F, E, C1)``, from relative positions in each frame.
        radial: ``(E, C2)``, from distances, the same in every frame; ``None`` where a second
            layer has mixed both parts (then ``C1`` is all channels).
    """

    directional: Tensor
    radial: Tensor | None

    def linear(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``weight @ e_ij + bias``: ``(F, E, out)`` for ``weight`` ``(out, C1 + C2)``.

        The product with the radial part is taken once for all frames.
        """
        split = self.directional.shape[-1]
        if self.radial is None:
            return F.linear(self.directional, weight, bias)
        return F.linear(self.directional, weight[:, :split]) + F.linear(
            self.radial, weight[:, split:], bias
        )

    def full(self) -> Tensor:
        """All channels, ``(F, E, C1 + C2)``."""
        if self.radial is None:
            return self.directional
        radial = self.radial.expand(self.directional.shape[0], -1, -1)
        return torch.cat([self.directional, radial], dim=-1)


class EdgeEmbedding(nn.Module):
    """Edge embeddings from relative positions and radial basis (report, section 3.1).

    .. math:: e_{ij} = \\sigma(W_1 x_{ij} + b_1 \\,\\|\\, W_2 rbf(d_{ij}) + b_2)

    and, with ``second_layer``, one more perceptron on top.

    Args:
        num_gaussians: size of the radial basis ``G``.
        num_filters: channels of ``e_ij``; the first half comes from relative positions.
    """

    def __init__(
        self, num_gaussians: int, num_filters: int, act: Activation, *, second_layer: bool
    ) -> None:
        super().__init__()
        self.act = act
        self.directional = xavier_linear(3, num_filters // 2)
        self.radial = nn.Linear(num_gaussians, num_filters - num_filters // 2)
        self.second = xavier_linear(num_filters, num_filters) if second_layer else None

    def forward(self, relative_positions: Tensor, radial_basis: Tensor) -> EdgeFeatures:
        """``(F, E, 3)`` vectors in each frame, Å, and ``(E, G)`` radial basis."""
        directional = self.act(self.directional(relative_positions))
        radial = self.act(self.radial(radial_basis))
        features = EdgeFeatures(directional, radial)
        if self.second is None:
            return features
        return EdgeFeatures(self.act(features.linear(self.second.weight, self.second.bias)), None)
