"""FAENet: backbone and heads on a batch of structures."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ocp_faenet.models.backbone import Embedding, FAENetBackbone
from ocp_faenet.models.config import (
    DecoderNorm,
    DecoderType,
    EnergyHeadType,
    FAENetConfig,
    ForceMode,
    SkipConnection,
)
from ocp_faenet.models.gradients import at_own_positions, gradients_taken
from ocp_faenet.models.graph import AtomGraph
from ocp_faenet.nn.activations import activation
from ocp_faenet.nn.conservation import GradientOrder
from ocp_faenet.nn.decoders import (
    DECODER_NORMS,
    ForceDecoder,
    MLPDecoder,
    ResidualDecoder,
    ResidualUpDownDecoder,
    SimpleDecoder,
)
from ocp_faenet.nn.heads import AddLayers, AtomWeights, EnergyReadout, LastOnly, MixLayers

DECODERS: dict[DecoderType, type[ForceDecoder]] = {
    DecoderType.SIMPLE: SimpleDecoder,
    DecoderType.MLP: MLPDecoder,
    DecoderType.RES: ResidualDecoder,
    DecoderType.RES_UPDOWN: ResidualUpDownDecoder,
}


class EnergyHead(nn.Module):
    """Energies of graphs from the embeddings of one or all layers, mean over frames."""

    def __init__(self, config: FAENetConfig) -> None:
        super().__init__()
        final = config.energy_head is EnergyHeadType.FINAL
        initial = config.energy_head is EnergyHeadType.INITIAL
        self.initial_weights = AtomWeights(config.hidden_channels) if initial else None
        self.readout = EnergyReadout(
            config.hidden_channels,
            activation(config.act),
            out_dim=config.out_dim,
            weights_from_final=final,
            dropout=config.dropout_lin,
        )
        self.every_layer = config.skip_co in (SkipConnection.ADD, SkipConnection.CONCAT)
        self.combine: nn.Module = LastOnly()
        if config.skip_co is SkipConnection.ADD:
            self.combine = AddLayers()
        elif config.skip_co is SkipConnection.CONCAT:
            self.combine = MixLayers(config.num_interactions + 1, config.out_dim)

    def forward(self, embedding: Embedding) -> Tensor:
        """``(B, out_dim)``, in the units of the (normalised) target."""
        alpha = None
        if self.initial_weights is not None:
            alpha = self.initial_weights(embedding.layers[0])
        read = embedding.layers if self.every_layer else (embedding.final,)
        energies = [self.readout(h, alpha, embedding.topology) for h in read]
        energy: Tensor = self.combine(energies)  # (F, R, out_dim)
        return embedding.of_structures(energy)


class ForceHead(nn.Module):
    """Vectors of atoms, turned back from each frame and averaged (report, equation 8)."""

    def __init__(self, config: FAENetConfig) -> None:
        super().__init__()
        kind = config.force_decoder_type
        settings = config.force_decoder_model_config[kind]
        norm: DecoderNorm | None = settings.norm
        self.decoder = DECODERS[kind](
            config.hidden_channels,
            settings.hidden_channels,
            DECODER_NORMS[None if norm is None else norm.value],
            activation(config.act),
        )

    def forward(self, embedding: Embedding) -> Tensor:
        """``(N, 3)``, in the units of the (normalised) target."""
        frames = embedding.rotations.shape[1]
        h = embedding.final.expand(frames, -1, -1)
        return embedding.turn_back(self.decoder(h))


class FAENetCore(nn.Module):
    """FAENet on a bare PyTorch: structures in, energies and forces out.

    With frames ``F(X)``, energies are ``1/|F| sum_U E(X U)`` and forces
    ``1/|F| sum_U f(X U) U^T`` (report, equation 1; arXiv 2305.05577).

    Args:
        config: all choices.
    """

    def __init__(self, config: FAENetConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = FAENetBackbone(config)
        self.energy_head = EnergyHead(config)
        direct = config.regress_forces in (
            ForceMode.DIRECT,
            ForceMode.DIRECT_WITH_GRADIENT_TARGET,
        )
        self.force_head = ForceHead(config) if direct else None

    def forward(
        self,
        graph: AtomGraph,
        *,
        rotations: Tensor | None = None,
        generator: torch.Generator | None = None,
        gradient: GradientOrder = GradientOrder.FIRST,
    ) -> dict[str, Tensor]:
        """Predictions of a batch.

        Args:
            graph: the structures.
            rotations: ``(B, F, 3, 3)`` frames made elsewhere; by default they are made here.
            generator: source of random frames.
            gradient: how far a training pass with a gradient target follows the gradient.

        Returns:
            ``energy`` ``(B, out_dim)``; with ``regress_forces`` ``forces`` ``(N, 3)``; in
            training with a gradient target also ``forces_grad_target`` ``(N, 3)``, ``-dE/dx``,
            unless ``gradient`` is ``NONE``.
            ``hidden_state`` ``(N, C)``: final embeddings, mean over frames.
        """
        mode = self.config.regress_forces
        if mode is ForceMode.FROM_ENERGY:
            out = self._predict_with_gradient(
                graph, rotations, generator, second_order=self.training
            )
            out["forces"] = out.pop("gradient_forces")
            return out if self.training else {k: v.detach() for k, v in out.items()}
        if mode is ForceMode.DIRECT_WITH_GRADIENT_TARGET and self.training and gradient:
            second_order = gradient is GradientOrder.SECOND
            out = self._predict_with_gradient(
                graph, rotations, generator, second_order=second_order
            )
            out["forces_grad_target"] = out.pop("gradient_forces")
            return out
        return self._predict(graph, rotations, generator)

    def _predict(
        self, graph: AtomGraph, rotations: Tensor | None, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        embedding = self.backbone(graph, rotations=rotations, generator=generator)
        out = {
            "energy": self.energy_head(embedding),
            "hidden_state": embedding.mean(),
        }
        if self.force_head is not None:
            out["forces"] = self.force_head(embedding)
        return out

    def _predict_with_gradient(
        self,
        graph: AtomGraph,
        rotations: Tensor | None,
        generator: torch.Generator | None,
        *,
        second_order: bool,
    ) -> dict[str, Tensor]:
        """Predictions and ``gradient_forces = -dE/dx``, through the frames too.

        Without ``second_order`` the gradient is a constant: no graph of it is built.
        """
        with gradients_taken():
            graph, positions = at_own_positions(graph)
            out = self._predict(graph, rotations, generator)
            (gradient,) = torch.autograd.grad(
                out["energy"].sum(), positions, create_graph=second_order, retain_graph=True
            )
        out["gradient_forces"] = -gradient
        return out
