"""The published configurations of FAENet, for benchmarks and examples (arXiv 2305.05577)."""

from __future__ import annotations

from dataclasses import replace

from ocp_faenet.models.config import (
    DecoderType,
    EnergyHeadType,
    FAENetConfig,
    FAMethod,
    ForceMode,
    FrameAveraging,
    FrameSource,
    MPType,
    SkipConnection,
)

#: OC20 IS2RE-all, the report's Table 1.
IS2RE = FAENetConfig(
    hidden_channels=384,
    num_filters=480,
    num_interactions=5,
    num_gaussians=104,
    tag_hidden_channels=64,
    pg_hidden_channels=64,
    phys_embeds=True,
    energy_head=EnergyHeadType.FINAL,
    skip_co=SkipConnection.CONCAT,
    second_layer_MLP=False,
    complex_mp=True,
    mp_type=MPType.BASE,
    graph_norm=True,
    frame_averaging=FrameAveraging.PLANE,
    fa_method=FAMethod.STOCHASTIC,
    frame_source=FrameSource.POSITIONS,
)

#: OC20 S2EF-2M with direct forces, as for relaxations: all atoms are seen.
S2EF = FAENetConfig(
    hidden_channels=256,
    num_filters=480,
    num_interactions=7,
    num_gaussians=136,
    max_num_neighbors=30,
    tag_hidden_channels=32,
    pg_hidden_channels=64,
    phys_embeds=False,
    energy_head=EnergyHeadType.FINAL,
    skip_co=None,
    second_layer_MLP=False,
    complex_mp=True,
    mp_type=MPType.UPDOWNSCALE_BASE,
    graph_norm=True,
    regress_forces=ForceMode.DIRECT,
    force_decoder_type=DecoderType.MLP,
    frame_averaging=FrameAveraging.PLANE,
    fa_method=FAMethod.STOCHASTIC,
)


def with_method(config: FAENetConfig, method: FAMethod | None) -> FAENetConfig:
    """``config`` with one frame method for training and evaluation; ``None`` for no frames."""
    if method is None:
        return replace(config, frame_averaging=None, fa_method=None, eval_fa_method=None)
    return replace(config, fa_method=method, eval_fa_method=method)
