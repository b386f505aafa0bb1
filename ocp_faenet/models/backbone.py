"""FAENet's backbone: embedding and interaction blocks over all frames at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ocp_faenet.geometry.frames import common_signs
from ocp_faenet.geometry.pairs import undirected_pairs
from ocp_faenet.models.config import FAENetConfig, MPType, NormScope, SkipConnection
from ocp_faenet.models.ewald import long_range
from ocp_faenet.models.frame_provider import Frames, Origin
from ocp_faenet.models.frames import frame_providers
from ocp_faenet.models.graph import AtomGraph
from ocp_faenet.nn.activations import activation
from ocp_faenet.nn.cells import Signs
from ocp_faenet.nn.edges import EdgeEmbedding
from ocp_faenet.nn.init import xavier_linear
from ocp_faenet.nn.interaction import (
    BaseInteraction,
    InteractionSettings,
    SimpleInteraction,
    UpDownLocalEnvInteraction,
    UpDownScaleBaseInteraction,
    UpDownScaleInteraction,
)
from ocp_faenet.nn.nodes import AtomEmbedding
from ocp_faenet.nn.topology import Topology

INTERACTIONS = {
    MPType.BASE: BaseInteraction,
    MPType.SIMPLE: SimpleInteraction,
    MPType.UPDOWNSCALE: UpDownScaleInteraction,
    MPType.UPDOWNSCALE_BASE: UpDownScaleBaseInteraction,
    MPType.UPDOWN_LOCAL_ENV: UpDownLocalEnvInteraction,
}

#: Forms that take only linear maps of the edge embedding.
TABULATED = (MPType.BASE, MPType.UPDOWNSCALE, MPType.UPDOWNSCALE_BASE)


@dataclass(frozen=True)
class Embedding:
    """What heads need of the backbone.

    Attributes:
        layers: atom embeddings ``(F, N', C)`` after the embedding block and each interaction.
        final: ``(F, N', C)``, the embeddings that are read out.
        rotations: ``(R, F, 3, 3)`` frames in which they were made.
        topology: of the graph that they were made on, ``R`` structures of together ``N'`` atoms.
        origin: where numbers of frames differ, each structure is embedded once for each of its
            rows of ``F``; ``None`` where ``R`` is ``B`` and ``N'`` is ``N``.
        kept: mask over all atoms of the structures of those embedded, ``None`` for all.
    """

    layers: tuple[Tensor, ...]
    final: Tensor
    rotations: Tensor
    topology: Topology
    origin: Origin | None = None
    kept: Tensor | None = None

    def turn_back(self, vectors: Tensor) -> Tensor:
        """Vectors ``(F, N', 3)`` in each frame to their mean in space ``(N, 3)`` (equation 8)."""
        rotations = self.rotations[self.topology.batch]  # (N', F, 3, 3)
        with torch.autocast(vectors.device.type, enabled=False):
            turned = torch.einsum("fnk,nfjk->nj", vectors.to(rotations.dtype), rotations)
        turned = turned / rotations.shape[1]
        return self.of_all_atoms(turned)

    def mean(self) -> Tensor:
        """Final embeddings, mean over frames, of all atoms: ``(N, C)``."""
        return self.of_all_atoms(self.final.mean(0))

    def of_structures(self, values: Tensor) -> Tensor:
        """Values ``(F, R, D)`` in each frame to their mean ``(B, D)``."""
        mean = values.mean(0)
        return mean if self.origin is None else self.origin.of_structures(mean)

    def of_all_atoms(self, values: Tensor) -> Tensor:
        """Values ``(N', D)``, mean over frames, to ``(N, D)``: zeros where atoms were left out."""
        if self.origin is not None:
            values = self.origin.of_atoms(values)
        if self.kept is None:
            return values
        everywhere = values.new_zeros(self.kept.shape[0], values.shape[1])
        return everywhere.masked_scatter(self.kept.unsqueeze(-1), values)


def edges_in_frames(graph: AtomGraph, rotations: Tensor) -> tuple[Tensor, Tensor, Signs | None]:
    """Edge vectors in every frame; autocast is left out, as in `AtomGraph.with_positions`.

    Returns:
        The vectors ``(F, E, 3)``, Å; their lengths ``(E,)``, Å; and the signs of the axes of each
        frame against the first, where that is all that differs.
    """
    signs = common_signs(rotations)
    frames = rotations if signs is None else rotations[:, :1]
    edge_frames = frames[graph.batch[graph.edge_index[1]]]  # (E, F, 3, 3)
    with torch.autocast(rotations.device.type, enabled=False):
        turned = torch.einsum("ej,efjk->fek", graph.edge_vectors, edge_frames)
        distances = graph.edge_vectors.norm(dim=-1)
    if signs is not None:
        turned = turned * turned.new_tensor(signs).unsqueeze(1)
    return turned, distances, signs


class FAENetBackbone(nn.Module):
    """Frames, embedding block and interaction blocks (report, section 3.1, equations 5 and 6).

    Edge vectors are turned into every frame; topology, distances and radial basis are shared.
    """

    def __init__(self, config: FAENetConfig) -> None:
        super().__init__()
        self.config = config
        act = activation(config.act)
        self.train_frames, self.eval_frames = frame_providers(config)
        self.edge_embedding = EdgeEmbedding(
            config.cutoff,
            config.num_gaussians,
            config.edge_filters,
            act,
            second_layer=config.second_layer_MLP,
            tabulate=config.mp_type in TABULATED,
            envelope=config.envelope,
        )
        self.atom_embedding = AtomEmbedding(
            config.hidden_channels,
            act,
            tag_channels=config.tag_hidden_channels,
            period_group_channels=config.pg_hidden_channels,
            properties=config.phys_embeds,
            property_channels=config.phys_hidden_channels,
            second_layer=config.second_layer_MLP,
        )
        self.interactions = nn.ModuleList(
            INTERACTIONS[config.mp_type](self._settings(config, layer))
            for layer in range(config.num_interactions)
        )
        self.long_range = long_range(config)
        self.mix_atoms = None
        if config.skip_co is SkipConnection.CONCAT_ATOM:
            width = config.hidden_channels
            self.mix_atoms = xavier_linear((config.num_interactions + 1) * width, width)
        self.act = act

    @staticmethod
    def _settings(config: FAENetConfig, layer: int) -> InteractionSettings:
        return InteractionSettings(
            hidden_channels=config.hidden_channels,
            num_filters=config.edge_filters,
            act=activation(config.act),
            graph_norm=config.graph_norm,
            norm_per_graph=config.graph_norm_scope is NormScope.GRAPH,
            complex_mp=config.complex_mp,
            dropout=config.dropout_lin if layer >= config.first_dropout_layer() else 0.0,
        )

    def forward(
        self,
        graph: AtomGraph,
        *,
        rotations: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Embedding:
        """Embeddings of all atoms in all frames.

        Args:
            graph: the structures.
            rotations: ``(B, F, 3, 3)`` frames made elsewhere; by default they are made here.
            generator: source of random frames and dropped edges.

        Raises:
            ValueError: tags are needed but the graph has none, or a structure has no atom left.
        """
        if self.config.tag_hidden_channels and graph.tags is None:
            raise ValueError(
                "tags: the structures have none, but tag_hidden_channels is "
                f"{self.config.tag_hidden_channels}; add tags, or set tag_hidden_channels: 0"
            )
        graph, kept = self._rewired(graph)
        if rotations is None:
            provider = self.train_frames if self.training else self.eval_frames
            frames = provider.frames(graph, generator)
        else:
            frames = Frames(rotations)
        copies, origin = frames.copies(graph)
        if self.training and self.config.dropout_edge > 0:
            copies = self._drop_edges(copies, generator)
        layers, final = self._propagate(copies, frames.rotations)
        return Embedding(tuple(layers), final, frames.rotations, copies.topology, origin, kept)

    def _rewired(self, graph: AtomGraph) -> tuple[AtomGraph, Tensor | None]:
        """What the network sees, and the mask of the atoms kept, ``None`` for all."""
        if self.config.graph_rewiring is None:
            return graph, None
        if graph.tags is None:
            raise ValueError("graph_rewiring: remove-tag-0 needs tags; the structures have none")
        kept = graph.tags > 0
        if bool(kept.all()):
            return graph, None
        left = torch.bincount(graph.batch[kept], minlength=graph.num_graphs)
        if bool((left == 0).any()):
            raise ValueError(
                f"graph_rewiring: every atom of structure {int(left.argmin())} of the batch has "
                "tag 0; set tags (0 subsurface, 1 surface, 2 adsorbate), or graph_rewiring: null"
            )
        return graph.keep_atoms(kept), kept

    def _propagate(self, graph: AtomGraph, rotations: Tensor) -> tuple[list[Tensor], Tensor]:
        """Embeddings after each layer and those read out, ``(F, N, C)`` each."""
        topology = graph.topology
        edges = self.edge_embedding(*edges_in_frames(graph, rotations)).on(topology)
        h = self.atom_embedding(graph.atomic_numbers, graph.tags).unsqueeze(0)  # (1, N, C)
        layers = [h]
        spaces = self.long_range.prepare(graph, rotations)
        for layer, interaction in enumerate(self.interactions):
            short = interaction(h, edges, topology)
            h = h + self.long_range(layer, h, short, spaces)  # (F, N, C)
            layers.append(h)
        if self.mix_atoms is not None:
            h = self.act(self.mix_atoms(torch.cat(torch.broadcast_tensors(*layers), dim=-1)))
        return layers, h

    def _drop_edges(self, graph: AtomGraph, generator: torch.Generator | None) -> AtomGraph:
        pair, n = undirected_pairs(graph.edge_index, graph.cell_offsets, graph.num_atoms)
        kept = torch.rand(n, generator=generator) >= self.config.dropout_edge
        return graph.keep_edges(kept.to(pair.device)[pair])
