"""What the Ewald messages of a trained FAENet have learned: their filters by wave number."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ocp_faenet.adapters.depth import backbone_of, open_faenet
from ocp_faenet.models.ewald import EwaldMessagePassing
from ocp_faenet.nn.ewald import RadialFilter


@torch.no_grad()
def learned_filters(checkpoint: Path, norms: Tensor) -> Tensor:
    """Root mean square over channels of each layer's filter at ``norms`` ``(K,)``, Å⁻¹: ``(L, K)``.

    Raises:
        ValueError: no checkpoint of a FAENet, or one without ``ewald: {k_cutoff: ...}``.
    """
    long_range = backbone_of(open_faenet(checkpoint)).long_range
    if not isinstance(long_range, EwaldMessagePassing) or not isinstance(
        long_range.filter, RadialFilter
    ):
        raise ValueError(f"{checkpoint}: no filters of |k|; train with ewald: {{k_cutoff: ...}}")
    shared = long_range.filter(norms.unsqueeze(0))[0]  # (K, D)
    return torch.stack(
        [(shared @ block.up.mT).square().mean(-1).sqrt() for block in long_range.blocks]
    )
