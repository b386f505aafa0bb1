"""The published configurations of FAENet, for benchmarks and examples (arXiv 2305.05577)."""

from __future__ import annotations

from dataclasses import replace

from ocp_faenet.models.config import (
    EnergyHeadType,
    FAENetConfig,
    FAMethod,
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


def with_method(config: FAENetConfig, method: FAMethod | None) -> FAENetConfig:
    """``config`` with one frame method for training and evaluation; ``None`` for no frames."""
    if method is None:
        return replace(config, frame_averaging=None, fa_method=None, eval_fa_method=None)
    return replace(config, fa_method=method, eval_fa_method=method)
