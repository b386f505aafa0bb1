"""The convolution a block of messages at a time, in PyTorch's operations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ocp_faenet.nn.messages import Operands, Slopes


class BlockedPass:
    """`convolution.convolve_plain` for SiLU, block by block, and its derivatives."""

    def __init__(self, operands: Operands) -> None:
        self.operands = operands
        size = operands.messages.largest * operands.messages.together
        self.scratch = [operands.x.new_empty(size, operands.channels) for _ in range(3)]

    def forward(self, saved: Tensor | None) -> Tensor:
        """``(num_targets, C)``; filters before activation go to ``saved`` ``(M / G, G C)``."""
        x, features, matrices, atoms, atom_rows, radial, messages = self.operands
        channels, together = self.operands.channels, messages.together
        out = x.new_zeros(messages.num_targets, channels)
        for block in messages.blocks:
            rows = slice(block[0][0], block[-1][1])
            b = slice(rows.start * together, rows.stop * together)
            z, filters, other = (s[: b.stop - b.start] for s in self.scratch)
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

    def backward(self, begin: int, z: Tensor, grad: Tensor, dz: Tensor, slopes: Slopes) -> None:
        """All derivatives but those of the products, for the rows of ``z`` ``(n, G C)``.

        Args:
            begin: row of the features that ``z`` begins with.
            z: filters before activation.
            grad: ``(num_targets, C)``, by the result.
            dz: ``(n, G C)``, where the derivative by ``z`` is written.
            slopes: what is added to.
        """
        messages, atom_rows = self.operands.messages, self.operands.atom_rows
        together, channels = messages.together, self.operands.channels
        end = begin + len(z)
        b = slice(begin * together, end * together)
        g, other = (s[: b.stop - b.start] for s in self.scratch[:2])
        source = messages.source[b]
        z, dz = z.view(-1, channels), dz.view(-1, channels)
        torch.index_select(grad, 0, messages.target[b], out=g)
        torch.sigmoid(z, out=dz)
        torch.mul(z, dz, out=other).mul_(g)
        slopes.x.index_add_(0, source, other)
        # The derivative of z sigmoid(z) is s + z s (1 - s), with s = sigmoid(z) now in dz.
        torch.sub(1, dz, out=other).mul_(z).add_(1)
        dz.mul_(other).mul_(g)
        torch.index_select(self.operands.x, 0, source, out=other)
        dz.mul_(other)
        for column in range(atom_rows.shape[1]):
            slopes.atoms.index_add_(0, atom_rows[b, column], dz)
        if slopes.radial is not None and messages.radial is not None:
            taps, sums = messages.radial, dz.view(-1, together, channels).sum(1)
            for column in range(taps.rows.shape[1]):
                weighted = sums * taps.weights[begin:end, column, None]
                slopes.radial.index_add_(0, taps.rows[begin:end, column], weighted)
