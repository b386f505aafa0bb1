"""Residual layers."""

from __future__ import annotations

import math

from torch import Tensor, nn

from ocp_faenet.nn.activations import Activation
from ocp_faenet.nn.init import xavier_linear


class ResidualLayer(nn.Module):
    """``(x + act(W2 act(W1 x))) / sqrt 2``, through ``width`` channels.

    The form is that of GemNet (arXiv 2106.08903); the division keeps the variance.
    """

    def __init__(self, channels: int, width: int, act: Activation) -> None:
        super().__init__()
        self.act = act
        self.first = xavier_linear(channels, width)
        self.second = xavier_linear(width, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C)`` to the same shape."""
        update = self.act(self.second(self.act(self.first(x))))
        return (x + update).mul_(math.sqrt(0.5))
