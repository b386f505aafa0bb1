"""The convolution a block of messages at a time, in PyTorch's operations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from ocp_faenet.nn.convolution import Messages


def blocked_forward(
    x: Tensor,
    features: Tensor,
    matrices: Tensor,
    atoms: Tensor,
    atom_rows: Tensor,
    radial: Tensor | None,
    messages: Messages,
    saved: Tensor | None,
) -> Tensor:
    """`convolve_plain` for SiLU, block by block; ``z`` goes to ``saved`` ``(M / G, G C)``."""
    channels, together = x.shape[1], messages.together
    out = x.new_zeros(messages.num_targets, channels)
    scratch = [x.new_empty(messages.largest * together, channels) for _ in range(3)]
    for block in messages.blocks:
        rows = slice(block[0][0], block[-1][1])
        b = slice(rows.start * together, rows.stop * together)
        z, filters, other = (s[: b.stop - b.start] for s in scratch)
        z = z if saved is None else saved[rows].view(-1, channels)
        wide = z.view(-1, matrices.shape[-1])
        for start, stop, cell in block:
            into = wide[start - rows.start : stop - rows.start]
            torch.mm(features[start:stop], matrices[cell], out=into)
        for column in range(atom_rows.shape[1]):
            z.add_(torch.index_select(atoms, 0, atom_rows[b, column], out=other))
        if radial is not None and messages.radial is not None:
            taps, weights = messages.radial.rows[rows], messages.radial.weights[rows]
            sums = F.embedding_bag(taps, radial, mode="sum", per_sample_weights=weights)
            z.view(-1, together, channels).add_(sums.unsqueeze(1))
        torch.sigmoid(z, out=filters).mul_(z)
        torch.index_select(x, 0, messages.source[b], out=other)
        out.index_add_(0, messages.target[b], filters.mul_(other))
    return out


class BlockedBackward:
    """Derivatives of the convolution but for its products, in PyTorch's operations."""

    def __init__(self, x: Tensor, messages: Messages) -> None:
        size = messages.largest * messages.together
        self.scratch = [x.new_empty(size, x.shape[1]) for _ in range(2)]

    def backward(
        self,
        begin: int,
        end: int,
        z: Tensor,
        grad: Tensor,
        x: Tensor,
        atom_rows: Tensor,
        messages: Messages,
        dz: Tensor,
        dx: Tensor,
        datoms: Tensor,
        dradial: Tensor | None,
    ) -> None:
        """Write ``dz`` ``(n, G C)`` of rows ``[begin, end)``, and add to what was gathered."""
        together, channels = messages.together, x.shape[1]
        b = slice(begin * together, end * together)
        g, other = (s[: b.stop - b.start] for s in self.scratch)
        source = messages.source[b]
        z, dz = z.view(-1, channels), dz.view(-1, channels)
        torch.index_select(grad, 0, messages.target[b], out=g)
        torch.sigmoid(z, out=dz)
        torch.mul(z, dz, out=other).mul_(g)
        dx.index_add_(0, source, other)
        # The derivative of z sigmoid(z) is s + z s (1 - s), with s = sigmoid(z) now in dz.
        torch.sub(1, dz, out=other).mul_(z).add_(1)
        dz.mul_(other).mul_(g)
        torch.index_select(x, 0, source, out=other)
        dz.mul_(other)
        for column in range(atom_rows.shape[1]):
            datoms.index_add_(0, atom_rows[b, column], dz)
        if dradial is not None and messages.radial is not None:
            taps, sums = messages.radial, dz.view(-1, together, channels).sum(1)
            for column in range(taps.rows.shape[1]):
                weighted = sums * taps.weights[begin:end, column, None]
                dradial.index_add_(0, taps.rows[begin:end, column], weighted)
