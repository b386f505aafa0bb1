"""Ewald message passing: sums over all atoms of a structure and their images in Fourier space.

.. math:: M_i = \\sum_k e^{i k x_i} \\hat\\Phi(k) \\sum_j h_j e^{-i k x_j}

(report, equation 19; arXiv 2303.04791). The filter is real and equal at ``k`` and ``-k``, so with
``c_k`` = cos, ``s_k`` = sin and the multiplicity ``m_k`` of half of all ``k``

.. math:: M_i = \\sum_k m_k \\hat\\Phi(k) [c_k(x_i) \\sum_j h_j c_k(x_j)
                + s_k(x_i) \\sum_j h_j s_k(x_j)]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ocp_faenet.nn import native
from ocp_faenet.nn.activations import Activation
from ocp_faenet.nn.basis import GaussianSmearing
from ocp_faenet.nn.residual import ResidualLayer


@dataclass(frozen=True)
class WaveGroup:
    """``G`` structures padded to ``n`` atoms and ``K`` wave vectors.

    Attributes:
        atoms: ``(G, n)`` the atom of each slot.
        waves: ``(G, n, 2K)`` cosines and sines at the atoms; zero in empty slots.
        filters: ``(G or 1, 2K, D)`` down-projected filters with multiplicity and scale.
        counts: ``(G,)`` int64, atoms of each structure, in the first slots; ``None`` where that
            is not said, and nothing compiled is used.
    """

    atoms: Tensor
    waves: Tensor
    filters: Tensor
    counts: Tensor | None = None

    @cached_property
    def turned(self) -> Tensor:
        """``waves`` as ``(G, 2K, n)``, for the structure factors of all blocks."""
        return self.waves.mT.contiguous()


@dataclass(frozen=True)
class KSpace:
    """What depends on wave vectors and not on embeddings, made once for all blocks.

    Attributes:
        groups: every structure in one of them.
        place: ``(N,)`` slot of each atom when the groups are laid end to end.
    """

    groups: tuple[WaveGroup, ...]
    place: Tensor


class IndexFilter(nn.Module):
    """A free value for each wave vector of an index box: ``(1, K)`` to ``(1, K, D)``."""

    def __init__(self, num_vectors: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_vectors, channels))

    def forward(self, norms: Tensor) -> Tensor:
        """The same for all structures, whatever the ``norms`` ``(B, K)``: ``(1, K, D)``."""
        return self.weight.unsqueeze(0)


class RadialFilter(nn.Module):
    """A function of ``|k|`` alone that vanishes smoothly at the cutoff.

    Gaussians of ``|k|`` under the envelope ``1 - 28 u^6 + 48 u^7 - 21 u^8`` of ``u = |k| / cutoff``
    (arXiv 2003.03123, equation 8, p = 6), projected linearly. What is at the cutoff counts for
    nothing: rounding cannot decide on a wave vector.
    """

    def __init__(self, cutoff: float, num_gaussians: int, channels: int) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.basis = GaussianSmearing(cutoff, num_gaussians)
        self.weight = nn.Parameter(torch.randn(channels, num_gaussians) * math.sqrt(0.5))

    def forward(self, norms: Tensor) -> Tensor:
        """``(B, K)``, Å⁻¹, to ``(B, K, D)``."""
        u = (norms / self.cutoff).clamp(max=1.0)
        envelope = 1 - 28 * u**6 + 48 * u**7 - 21 * u**8
        filters: Tensor = F.linear(self.basis(norms) * envelope.unsqueeze(-1), self.weight)
        return filters


def ewald_message(h: Tensor, space: KSpace, up: Tensor) -> Tensor:
    """The sum of the module's head for filters ``up @ D`` of each channel.

    Args:
        h: ``(F, N, C)``.
        space: waves and down-projected filters, shared by all frames.
        up: ``(C, D)``.

    Returns:
        ``(F, N, C)``.
    """
    frames, _, channels = h.shape
    atoms_first = h.transpose(0, 1)  # (N, F, C)
    parts = []
    for group in space.groups:
        local = atoms_first[group.atoms].flatten(2)  # (G, n, F C)
        factors = group.turned @ local  # (G, 2K, F C), the structure factors
        filters = F.linear(group.filters, up).unsqueeze(-2)  # (G or 1, 2K, 1, C)
        filtered = (factors.unflatten(-1, (frames, channels)) * filters).flatten(2)
        parts.append((group.waves @ filtered).flatten(0, 1))  # (G n, F C)
    message = torch.cat(parts).index_select(0, space.place)
    return message.view(-1, frames, channels).transpose(0, 1)


class EwaldBlock(nn.Module):
    """Long-range message, residual layers, and the sum with the short-range message.

    .. math:: m_i = (m^{short}_i + R(M_i)) / \\sqrt 2

    Args:
        channels: ``C`` of the embeddings.
        down_channels: ``D`` of the filters that all blocks share; each has its own projection up.
        num_residual: residual layers of the update ``R``.
        width: channels inside them.
    """

    def __init__(
        self, channels: int, down_channels: int, num_residual: int, width: int, act: Activation
    ) -> None:
        super().__init__()
        self.act, self.width = act, width
        self.up = nn.Parameter(torch.randn(channels, down_channels) / math.sqrt(down_channels))
        self.update = nn.Sequential(
            *(ResidualLayer(channels, width, act) for _ in range(num_residual))
        )

    def forward(self, h: Tensor, short: Tensor, spaces: Sequence[KSpace]) -> Tensor:
        """The sum of both messages.

        Args:
            h: ``(F or 1, N, C)``.
            short: the short-range message, ``(F or 1, N, C)``.
            spaces: one for all frames, or one for each.
        """
        compiled = self._compiled(h, short, spaces)
        if compiled is not None:
            return compiled
        if len(spaces) == 1:
            message = ewald_message(h, spaces[0], self.up)
        else:
            in_frames = h.expand(len(spaces), -1, -1).split(1)
            pairs = zip(in_frames, spaces, strict=True)
            message = torch.cat([ewald_message(one, space, self.up) for one, space in pairs])
        long: Tensor = self.update(message)
        return (short + long).mul_(math.sqrt(0.5))

    def _compiled(self, h: Tensor, short: Tensor, spaces: Sequence[KSpace]) -> Tensor | None:
        """All of it in one compiled pass in inference; ``None`` where that does not apply."""
        plain = len(spaces) == 1 and h.device.type == "cpu" and self.act is F.silu
        if not plain or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return None
        weights = [
            tensor
            for layer in self.update
            for linear in (layer.first, layer.second)
            for tensor in (linear.weight, linear.bias)
        ]
        out = torch.empty_like(short)
        for group in spaces[0].groups:
            filters = F.linear(group.filters, self.up)
            if not native.ewald_group(h, short, group, filters, weights, self.width, out):
                return None
        return out
