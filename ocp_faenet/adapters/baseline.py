"""A model that looks at nothing: what a table of errors is to be read beside."""

from __future__ import annotations

from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import GraphModelMixin
from torch import Tensor, nn

from ocp_faenet.adapters.positions import POSITIONS


@registry.register_model("faenet_baseline")
class Baseline(nn.Module, GraphModelMixin):
    """The mean energy of the training structures, no force, and no displacement.

    It goes through the host's trainer and evaluator as any model does, so that its errors are
    counted on the same atoms with the same normalisers. It learns nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.otf_graph = False
        self.nothing = nn.Parameter(torch.zeros(1))  # the host's optimizer asks for a parameter

    def forward(self, data: Any) -> dict[str, Tensor]:
        """``energy`` ``(B, 1)``, ``forces`` ``(N, 3)``, ``positions`` ``(N, 3)`` in Å."""
        positions = data.pos.to(self.nothing.dtype)
        nothing = 0 * self.nothing
        return {
            "energy": nothing.expand(len(data.natoms), 1),
            "forces": nothing.expand(len(positions), 3),
            POSITIONS: positions + nothing,
        }
