"""How different the atoms of a structure are to the network: MAD, the measure of oversmoothing."""

from __future__ import annotations

import torch
from torch import Tensor

from ocp_faenet.geometry.segments import segment_sum


def mean_average_distance(h: Tensor, batch: Tensor, num_graphs: int) -> Tensor:
    """Mean cosine distance between the embeddings of two atoms of a structure.

    .. math:: MAD = 1/n \\sum_i 1/(n-1) \\sum_{j \\ne i} (1 - h_i h_j / (|h_i| |h_j|))

    Definition: Chen et al., "Measuring and Relieving the Over-smoothing Problem" (arXiv
    1909.03211), equations 1 to 4, over all pairs of nodes of a graph, as Noisy Nodes plots it by
    layer (Godwin et al., arXiv 2106.07971; figure 2 of the report). Departure: Chen et al. leave
    pairs at distance zero out of the mean, here they count, for they are what is looked for.

    0: all embeddings point the same way. 1: they are orthogonal on average.

    Args:
        h: ``(F, N, C)``, embeddings in ``F`` frames.
        batch: ``(N,)`` the structure of each atom.
        num_graphs: ``B``.

    Returns:
        ``(F, B)``, NaN for structures with fewer than two atoms.
    """
    unit = torch.nn.functional.normalize(h.double(), dim=-1, eps=0.0).nan_to_num(0.0)
    total = segment_sum(unit, batch, num_graphs)  # (F, B, C)
    n = torch.bincount(batch, minlength=num_graphs).to(total)  # (B,)
    # The sum of all cosines is |sum_i h_i / |h_i||^2; n of them are of an atom with itself.
    own = segment_sum(unit.square().sum(-1, keepdim=True), batch, num_graphs).squeeze(-1)
    cosines = total.square().sum(-1) - own
    pairs = n * (n - 1)
    return torch.where(pairs > 0, 1.0 - cosines / pairs.clamp(min=1.0), torch.nan)
