"""Configuration of FAENet: published keys, ours beside them, and what contradicts what.

Plain dataclasses, and enums (`choices`), so that a bare PyTorch can build a model; the adapters
check dictionaries from YAML against them (types, unknown keys) before they come here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ocp_faenet.models.choices import (
    Augmentation,
    DecoderNorm,
    DecoderType,
    EnergyHeadType,
    FAMethod,
    ForceMode,
    FrameAveraging,
    FrameSource,
    GraphRewiring,
    MPType,
    NormScope,
    SkipConnection,
    Subgroup,
)
from ocp_faenet.models.ewald_config import EwaldConfig
from ocp_faenet.nn.elements import NUM_PROPERTIES

__all__ = [
    "Augmentation",
    "DecoderConfig",
    "DecoderNorm",
    "DecoderType",
    "EnergyHeadType",
    "FAENetConfig",
    "FAMethod",
    "ForceMode",
    "FrameAveraging",
    "FrameSource",
    "GraphRewiring",
    "MPType",
    "NormScope",
    "SkipConnection",
    "Subgroup",
]


@dataclass(frozen=True)
class DecoderConfig:
    """Size and norm of one force decoder."""

    hidden_channels: int = 128
    norm: DecoderNorm | None = DecoderNorm.BATCH

    def __post_init__(self) -> None:
        _positive("force_decoder_model_config.hidden_channels", self.hidden_channels)


def _default_decoders() -> dict[DecoderType, DecoderConfig]:
    return {kind: DecoderConfig(256 if kind is DecoderType.MLP else 128) for kind in DecoderType}


@dataclass(frozen=True)
class FAENetConfig:
    """All choices of a FAENet. Names and defaults are the published ones unless marked "ours".

    Attributes:
        cutoff: radius of the graph, Å (report, equation 5). Stored edges beyond it are dropped.
        use_pbc: periodic neighbours; needs ``cell``.
        otf_graph: build the graph in the model instead of reading stored edges.
        max_num_neighbors: neighbours of an atom in a graph built here, nearest first; a shell
            of equal distances that does not fit is kept whole.
        graph_rewiring: ``remove-tag-0``: the network sees no subsurface atoms; their forces
            are zero. Neighbours are found before that (PhAST, arXiv 2211.12020, section 4.1).
        act: activation.
        hidden_channels, num_filters, num_interactions, num_gaussians: sizes.
        tag_hidden_channels: width of the tag embedding, 0 for none.
        pg_hidden_channels: width of each of the period and group embeddings, 0 for none.
        phys_embeds: physical properties of the elements in the atom embedding.
        phys_hidden_channels: 0 keeps them fixed; otherwise learned, projected to that width.
        second_layer_MLP: two layers in the embedding block instead of one.
        mp_type, complex_mp, skip_co, energy_head: forms of message passing and output.
        graph_norm: normalise after each convolution.
        graph_norm_scope: ours: ``graph`` (default) or ``batch`` (parity with ``faenet`` 0.1.3).
        out_dim: number of graph properties.
        regress_forces: how forces are predicted, ``None`` for not at all.
        force_decoder_type, force_decoder_model_config: the force decoder, its sizes by type.
        dropout_edge: share of (undirected) edges dropped in training.
        dropout_lin: dropout before linear layers, from ``dropout_lowest_layer`` upward.
        dropout_lowest_layer: ``output`` or ``inter-<i>``.
        frame_averaging: ``2D``, ``3D``, ``DA`` or ``None``.
        fa_method: frames in training.
        eval_fa_method: ours: frames in evaluation; deterministic by default, and ``se3-det``
            where training uses proper rotations only.
        frame_source: ours: what the axes are the principal axes of; published is ``positions``.
        canonical_channels: ours: vectors of each atom in the network of ``fa_method: learned``.
        canonical_subgroup: ours: partial canonicalisation: ``learned`` chooses a right-handed
            frame, and the prediction is averaged over it and its mirror image
            (``reflection``), or over all signs of its axes (``signs``).
        augmentation: ours: ``DA`` rotates about z (``2D``) or freely (``3D``).
        ewald: ours: long-range messages beside the short-range ones, ``None`` for none.
        envelope: ours: messages go to zero at the cutoff, as SchNet's do, so that energies are
            continuous while neighbours come and go, where ``max_num_neighbors`` does not cut
            them off first; for ``mp_type: simple``.

    Raises:
        ValueError: a value out of range, or keys that contradict each other.
    """

    cutoff: float = 6.0
    use_pbc: bool = True
    otf_graph: bool = False
    max_num_neighbors: int = 40
    graph_rewiring: GraphRewiring | None = None
    act: str = "swish"
    hidden_channels: int = 128
    num_filters: int = 128
    num_interactions: int = 4
    num_gaussians: int = 50
    tag_hidden_channels: int = 32
    pg_hidden_channels: int = 32
    phys_embeds: bool = True
    phys_hidden_channels: int = 0
    second_layer_MLP: bool = True  # noqa: N815 (published name)
    mp_type: MPType = MPType.UPDOWNSCALE_BASE
    complex_mp: bool = False
    skip_co: SkipConnection | None = SkipConnection.CONCAT
    energy_head: EnergyHeadType | None = None
    graph_norm: bool = True
    graph_norm_scope: NormScope = NormScope.GRAPH
    out_dim: int = 1
    regress_forces: ForceMode | None = None
    force_decoder_type: DecoderType = DecoderType.MLP
    force_decoder_model_config: dict[DecoderType, DecoderConfig] = field(
        default_factory=_default_decoders
    )
    dropout_edge: float = 0.0
    dropout_lin: float = 0.0
    dropout_lowest_layer: str = "output"
    frame_averaging: FrameAveraging | None = None
    fa_method: FAMethod | None = None
    eval_fa_method: FAMethod | None = None
    frame_source: FrameSource = FrameSource.EDGES
    canonical_channels: int = 16
    canonical_subgroup: Subgroup | None = None
    augmentation: Augmentation = Augmentation.PLANE
    ewald: EwaldConfig | None = None
    envelope: bool = False

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            _positive(name, getattr(self, name))
        for name in ("tag_hidden_channels", "pg_hidden_channels", "phys_hidden_channels"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} is negative; 0 turns it off")
        if self.num_gaussians < 2:
            raise ValueError(f"num_gaussians: {self.num_gaussians}; at least 2 are needed")
        for name in ("dropout_edge", "dropout_lin"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}: {getattr(self, name)} is not in [0, 1)")
        self._check_frames()
        self._check_heads()
        self._check_species()
        if self.envelope and self.mp_type is not MPType.SIMPLE:
            raise ValueError(
                f"envelope: true with mp_type: {self.mp_type.value!r}, whose filters are no "
                "multiple of the edge embedding; use mp_type: simple, or envelope: false"
            )
        if self.ewald is not None:
            self.ewald.check_periodicity(self.use_pbc)
            if self.frame_averaging in (FrameAveraging.PLANE, FrameAveraging.SPACE):
                self.ewald.check_frames(self.frame_source)
        self.first_dropout_layer()

    def _check_frames(self) -> None:
        framed = self.frame_averaging in (FrameAveraging.PLANE, FrameAveraging.SPACE)
        for name in ("fa_method", "eval_fa_method"):
            if getattr(self, name) is not None and not framed:
                raise ValueError(
                    f"{name}: {getattr(self, name).value!r} needs frame_averaging 2D or 3D, "
                    f"which is {self.frame_averaging and self.frame_averaging.value!r}"
                )
        self._check_learned()

    def _check_learned(self) -> None:
        train, evaluation = self.fa_method, self.eval_fa_method
        learned = [method for method in (train, evaluation) if method and method.is_learned]
        if learned and evaluation is not None and evaluation is not train:
            raise ValueError(
                f"eval_fa_method: {evaluation.value!r} with fa_method: "
                f"{train and train.value!r}; learned frames are trained and evaluated alike"
            )
        if self.canonical_subgroup is None:
            return
        if not learned:
            raise ValueError(
                f"canonical_subgroup: {self.canonical_subgroup.value!r} needs fa_method: learned"
            )
        if train is FAMethod.SE3_LEARNED and self.canonical_subgroup is Subgroup.REFLECTION:
            raise ValueError(
                "canonical_subgroup: 'reflection' with fa_method: 'se3-learned', which has no "
                "reflections; use fa_method: learned, or canonical_subgroup: signs"
            )

    def _check_heads(self) -> None:
        if self.out_dim != 1 and self.regress_forces is ForceMode.FROM_ENERGY:
            raise ValueError(f"out_dim: {self.out_dim}; forces from_energy need one energy")
        if self.phys_hidden_channels and not self.phys_embeds:
            raise ValueError(
                f"phys_hidden_channels: {self.phys_hidden_channels} without phys_embeds; "
                "set phys_embeds: true or phys_hidden_channels: 0"
            )
        if self.force_decoder_type not in self.force_decoder_model_config:
            raise ValueError(
                f"force_decoder_model_config: no entry for {self.force_decoder_type.value!r}, "
                "the force_decoder_type"
            )

    def _check_species(self) -> None:
        taken = self.tag_hidden_channels + 2 * self.pg_hidden_channels
        if self.phys_embeds:
            taken += self.phys_hidden_channels or NUM_PROPERTIES
        if taken >= self.hidden_channels:
            raise ValueError(
                f"hidden_channels: {self.hidden_channels} leaves nothing for the species "
                f"embedding; tag, period, group and property embeddings take {taken}. Raise "
                "hidden_channels or lower tag_hidden_channels, pg_hidden_channels or "
                "phys_hidden_channels"
            )

    def first_dropout_layer(self) -> int:
        """Index of the first interaction with ``dropout_lin``; ``num_interactions`` for none."""
        name = self.dropout_lowest_layer
        if name == "output":
            return self.num_interactions
        index = name.removeprefix("inter-")
        if not name.startswith("inter-") or not index.isdigit():
            raise ValueError(f"dropout_lowest_layer: {name!r}; 'output' or 'inter-<i>'")
        if int(index) >= self.num_interactions:
            raise ValueError(
                f"dropout_lowest_layer: {name!r}, but there are {self.num_interactions} "
                "interactions, counted from 0"
            )
        return int(index)

    @property
    def edge_filters(self) -> int:
        """Width of the edge embedding: ``simple`` needs it equal to ``hidden_channels``."""
        return self.hidden_channels if self.mp_type is MPType.SIMPLE else self.num_filters


_POSITIVE = (
    "cutoff",
    "max_num_neighbors",
    "hidden_channels",
    "num_filters",
    "num_interactions",
    "out_dim",
    "canonical_channels",
)


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name}: {value} is not positive")
