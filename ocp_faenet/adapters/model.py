"""Model ``faenet``: FAENet as the host's trainers and calculators know a model."""

from __future__ import annotations

from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import GraphModelMixin
from torch import Tensor, nn

from ocp_faenet.adapters.frames import stored_frames
from ocp_faenet.adapters.noise import refuse_noise
from ocp_faenet.adapters.schema import validate_config
from ocp_faenet.adapters.seeding import PassSeeds, seeded
from ocp_faenet.adapters.unpack import named_cells, unpack
from ocp_faenet.models.config import FAENetConfig
from ocp_faenet.models.faenet import FAENetCore
from ocp_faenet.nn.conservation import GradientOrder


@registry.register_model("faenet")
class FAENet(nn.Module, GraphModelMixin):
    """FAENet behind the host's interface; the model itself is `FAENetCore`.

    Args:
        config: the keys of `FAENetConfig`, as they stand in the ``model:`` section.

    Raises:
        ValueError: an unknown key, a wrong type, or keys that contradict each other.
    """

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = validate_config(config)
        expose_graph_settings(self, self.config)
        self.core = FAENetCore(self.config)
        self.seeds = PassSeeds()

    def forward(self, data: Any) -> dict[str, Tensor]:
        """Predictions for a batch, which is not changed.

        Returns:
            ``energy`` ``(B, out_dim)``, with ``regress_forces`` also ``forces`` ``(N, 3)``, and
            what else `FAENetCore` gives.
        """
        graph = unpack(data, self.config, model_dtype(self), otf_graph=self.otf_graph)
        refuse_noise(data, self.training)
        rotations = stored_frames(data, graph, self.config) if self.training else None
        seed = self.seeds() if self.training else None
        with named_cells(data, graph), seeded(seed, graph.positions.device):
            return self.core(graph, rotations=rotations, gradient=self.gradient_order)


def expose_graph_settings(model: Any, config: FAENetConfig) -> None:
    """Set what `GraphModelMixin.generate_graph`, relaxations and `FAENetTrainer` read or set."""
    model.cutoff = config.cutoff
    model.max_neighbors = config.max_num_neighbors
    model.use_pbc = config.use_pbc
    model.use_pbc_single = False
    model.otf_graph = config.otf_graph
    model.gradient_order = GradientOrder.FIRST  # in training with a gradient target


def model_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of a model's weights, to which positions are brought."""
    return next(model.parameters()).dtype
