"""How well a structure's frame is determined."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ocp_faenet.geometry.frames import Shape
from ocp_faenet.models.config import FAENetConfig, FAMethod, FrameAveraging
from ocp_faenet.models.graph import AtomGraph
from ocp_faenet.models.principal_frames import DeterministicFrame


@dataclass(frozen=True)
class FrameQuality:
    """One number a structure; small gaps and margins make frames jump under small moves.

    Attributes:
        gap: ``(B,)`` smallest difference of neighbouring eigenvalues over the largest.
        margin: ``(B,)`` smallest third moment that decides a sign, 1 at most.
        equal_eigenvalues: ``(B,)`` bool: the axes are not determined by second moments.
        ambiguous_sign: ``(B,)`` bool: axes are, but third moments leave a sign open.
        frames: ``(B,)`` int64: frames that `det` averages over, 1 where higher moments decide.
    """

    gap: Tensor
    margin: Tensor
    equal_eigenvalues: Tensor
    ambiguous_sign: Tensor
    frames: Tensor


@torch.no_grad()
def frame_quality(graph: AtomGraph, config: FAENetConfig) -> FrameQuality:
    """Judge the deterministic frames of a batch.

    Args:
        graph: the structures.
        config: ``frame_averaging`` (3D where it is neither 2D nor 3D), ``frame_source`` and
            whether ``fa_method`` keeps proper rotations only.
    """
    if config.frame_averaging not in (FrameAveraging.PLANE, FrameAveraging.SPACE):
        config = replace(config, frame_averaging=FrameAveraging.SPACE)
    method = config.fa_method or FAMethod.STOCHASTIC
    provider = DeterministicFrame(config, proper=method.is_proper, exact=True)
    clouds, principal = provider.look(graph)
    margin = provider.margins(clouds.signs.third_moments(principal.axes))
    _, ambiguous = provider.usual(clouds, principal, None)
    equal = principal.shape != Shape.DISTINCT
    sets = provider.ambiguous_sets(clouds, principal, ambiguous | equal)
    frames = torch.ones(graph.num_graphs, dtype=torch.int64)
    for index, found in sets.items():
        frames[index] = len(found)
    return FrameQuality(
        principal.gap.cpu(), margin.cpu(), equal.cpu(), (ambiguous & ~equal).cpu(), frames
    )
