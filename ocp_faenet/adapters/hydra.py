"""FAENet as a hydra backbone with heads.

The host hands a head nothing but the batch and what the backbone returned, so frames, topology
and, where forces are gradients, the positions that the energy depends on travel in there.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import BackboneInterface, GraphModelMixin, HeadInterface
from torch import Tensor, nn

from ocp_faenet.adapters.frames import stored_frames
from ocp_faenet.adapters.model import expose_graph_settings, model_dtype
from ocp_faenet.adapters.noise import refuse_noise
from ocp_faenet.adapters.schema import validate_config
from ocp_faenet.adapters.seeding import PassSeeds, derive_seed, seeded
from ocp_faenet.adapters.unpack import named_cells, unpack
from ocp_faenet.models.backbone import Embedding
from ocp_faenet.models.backbone import FAENetBackbone as CoreBackbone
from ocp_faenet.models.config import FAENetConfig, ForceMode
from ocp_faenet.models.faenet import EnergyHead, ForceHead
from ocp_faenet.models.gradients import at_own_positions, gradients_taken
from ocp_faenet.nn.conservation import GradientOrder

EMBEDDING = "faenet"
ENERGY_KEYS = ("energy_head", "out_dim", "dropout_lin")
FORCE_KEYS = ("force_decoder_type", "force_decoder_model_config")


@dataclass(frozen=True)
class BackboneState:
    """What heads get: the embedding (of each row of frames, see `Embedding`), the positions of a
    gradient, the seed of this pass, and how many training passes there were before it.
    """

    embedding: Embedding
    positions: Tensor | None
    seed: int | None
    passes: int = 0


@registry.register_model("faenet_backbone")
class FAENetBackbone(nn.Module, BackboneInterface, GraphModelMixin):
    """FAENet up to its final embeddings; takes the keys of `FAENetConfig`, heads' included.

    Raises:
        ValueError: see `validate_config`.
    """

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.mapping = dict(config)
        self.config = validate_config(config)
        expose_graph_settings(self, self.config)
        self.core = CoreBackbone(self.config)
        self.seeds = PassSeeds()

    def forward(self, data: Any) -> dict[str, Any]:
        """``node_embedding`` ``(N, C)``, mean over frames, and the state for our own heads."""
        # `OCPCalculator` asks the hydra model for edges made on the fly, which does not pass it on.
        calculated = not self.training and "edge_index" not in data
        otf_graph = self.otf_graph or calculated
        graph = unpack(data, self.config, model_dtype(self), otf_graph=otf_graph)
        refuse_noise(data, self.training)
        rotations = stored_frames(data, graph, self.config) if self.training else None
        passes = self.seeds.passes
        seed = self.seeds() if self.training else None
        positions = None
        with _gradients(self), seeded(seed, graph.positions.device):
            if takes_gradient(self):
                graph, positions = at_own_positions(graph)
            with named_cells(data, graph):
                embedding = self.core(graph, rotations=rotations)
        state = BackboneState(embedding, positions, seed, passes)
        return {"node_embedding": embedding.mean(), EMBEDDING: state}


class FAENetHead(nn.Module, HeadInterface):
    """Base of our heads: the backbone's configuration, overridden by the head's own keys."""

    keys: tuple[str, ...] = ()

    def __init__(self, backbone: Any, **config: Any) -> None:
        super().__init__()
        name = type(self).__name__
        if not isinstance(backbone, FAENetBackbone):
            raise ValueError(
                f"{name}: the backbone is a {type(backbone).__name__}; "
                "set model.backbone.model: ocp_faenet.FAENetBackbone"
            )
        for key in config:
            if key not in self.keys:
                known = ", ".join(self.keys)
                raise ValueError(f"{name}: unknown key {key!r} (value {config[key]!r}); {known}")
        self.config = validate_config({**backbone.mapping, **config})
        backbone.seeds.restart()  # a backbone from a checkpoint begins anew

    def state(self, emb: Mapping[str, Any]) -> BackboneState:
        """What our backbone left in ``emb``."""
        found: BackboneState = emb[EMBEDDING]
        return found


@registry.register_model("faenet_energy_head")
class FAENetEnergyHead(FAENetHead):
    """``energy`` ``(B, out_dim)``, and the forces that are its gradient where asked for.

    With ``regress_forces: from_energy`` also ``forces``; in training with
    ``direct_with_gradient_target`` also ``forces_grad_target``, both ``(N, 3)``.
    """

    keys = ENERGY_KEYS

    def __init__(self, backbone: Any, **config: Any) -> None:
        super().__init__(backbone, **config)
        self.head = EnergyHead(self.config)
        self.gradient_order = GradientOrder.FIRST

    def forward(self, data: Any, emb: Mapping[str, Any]) -> dict[str, Tensor]:
        """Energies of the batch; see the class."""
        state = self.state(emb)
        seed = None if state.seed is None else derive_seed(state.seed, 1)
        with _gradients(self), seeded(seed, state.embedding.final.device):
            out = {"energy": self.head(state.embedding)}
            if state.positions is not None:
                out |= self._gradient(out["energy"], state.positions)
        return out if self.training else {key: value.detach() for key, value in out.items()}

    def _gradient(self, energy: Tensor, positions: Tensor) -> dict[str, Tensor]:
        conservative = self.config.regress_forces is ForceMode.FROM_ENERGY
        second = conservative or self.gradient_order is GradientOrder.SECOND
        (gradient,) = torch.autograd.grad(
            energy.sum(), positions, create_graph=second and self.training, retain_graph=True
        )
        return {"forces" if conservative else "forces_grad_target": -gradient}


@registry.register_model("faenet_force_head")
class FAENetForceHead(FAENetHead):
    """``forces`` ``(N, 3)`` decoded from the embeddings (``regress_forces: direct...``).

    Raises:
        ValueError: the backbone is set to forces from the energy.
    """

    keys = FORCE_KEYS

    def __init__(self, backbone: Any, **config: Any) -> None:
        super().__init__(backbone, **config)
        if self.config.regress_forces is ForceMode.FROM_ENERGY:
            raise ValueError(
                "FAENetForceHead: regress_forces: 'from_energy' takes forces from the energy "
                "head; drop this head, or set regress_forces: direct in the backbone"
            )
        self.head = ForceHead(self.config)

    def forward(self, data: Any, emb: Mapping[str, Any]) -> dict[str, Tensor]:
        """Forces of the batch; see the class."""
        return {"forces": self.head(self.state(emb).embedding)}


def takes_gradient(module: Any) -> bool:
    """Whether this pass differentiates the energy with respect to positions."""
    config: FAENetConfig = module.config
    if config.regress_forces is ForceMode.DIRECT_WITH_GRADIENT_TARGET:
        return module.training and module.gradient_order > GradientOrder.NONE
    return config.regress_forces is ForceMode.FROM_ENERGY


def _gradients(module: nn.Module) -> AbstractContextManager[None]:
    """Gradients on where this pass needs them, whatever the trainer says; else as they are."""
    return gradients_taken() if takes_gradient(module) else nullcontext()
