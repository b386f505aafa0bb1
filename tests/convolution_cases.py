"""Edges for the tests of tables and of frames together."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def random_edges(n, dtype=torch.float32, frames=1):
    g = torch.Generator().manual_seed(0)
    d = 0.7 + 5.3 * torch.rand(n, generator=g, dtype=torch.float64)
    vectors = F.normalize(torch.randn(frames, n, 3, generator=g, dtype=torch.float64), dim=-1)
    return (vectors * d.unsqueeze(-1)).to(dtype), d.to(dtype)
