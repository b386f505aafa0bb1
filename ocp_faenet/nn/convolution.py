"""Continuous convolution over edges: the hot loop of FAENet.

For every atom ``i``, ``y_i = sum_j x_j * act(z_ij)`` with filters

.. math:: z_{ij} = M_{cell(ij)}^T \\phi_{ij} + \\sum_{a} A_{a(ij)} + \\sum_k w_{ij,k} R_{t_{ij,k}}

(report, equation 6): a product over edges, with one matrix for all or one for each cell of space
(`cells`), rows of a table ``A`` of atom terms (source and target of the filter network, bias), and
a weighted sum of rows of a table ``R`` of radial terms.

The frames of frame averaging are laid end to end: a *message* is an edge in one frame.

`convolve_plain` says it in a few lines, with full tensors over messages, for any device and any
order of derivatives. `BlockedConvolution` gives the same numbers on the CPU a block of messages at
a time, so that what passes between the steps stays in cache instead of going through memory; and
where a C++ compiler is at hand, what follows the product is one compiled pass (`native`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ocp_faenet.geometry.segments import segment_sum
from ocp_faenet.nn import native
from ocp_faenet.nn.activations import Activation
from ocp_faenet.nn.blocked import BlockedBackward, blocked_forward

#: Messages in a block: 256 rows of 384 floats are 0.4 MB, less than a second-level cache.
BLOCK = 256


@dataclass(frozen=True)
class Taps:
    """Which rows of a table are summed, and how heavily.

    Attributes:
        rows: ``(M, k)`` int64.
        weights: ``(M, k)``; constants, no gradient flows into them.
    """

    rows: Tensor
    weights: Tensor

    def gather(self, table: Tensor) -> Tensor:
        """``sum_k w_k T[t_k]``: ``(T, C)`` to ``(M, C)``, differentiable at any order."""
        out: Tensor | None = None
        for column in range(self.rows.shape[1]):
            term = table.index_select(-2, self.rows[:, column])
            term = term * self.weights[:, column, None]
            out = term if out is None else out + term
        if out is None:
            raise ValueError("taps: an edge must refer to at least one row of the table")
        return out


@dataclass(frozen=True)
class Messages:
    """Where ``M`` messages come from and go to.

    Attributes:
        source: ``(M,)`` row of ``x`` that each message carries.
        centre: ``(M,)`` row of ``x`` of the atom that it goes to.
        target: ``(M,)`` row of the result that it is added to.
        num_sources: rows of ``x``.
        num_targets: rows of the result.
        counts: rows of features in each cell, in order; one number where all share one matrix.
        radial: rows of the radial table for each row of features, ``None`` without one.
        together: ``G``, messages that follow each other and share a row of features and the
            radial term: the same edge in frames that differ in signs. ``M / G`` rows.
    """

    source: Tensor
    centre: Tensor
    target: Tensor
    num_sources: int
    num_targets: int
    counts: tuple[int, ...]
    radial: Taps | None = None
    together: int = 1

    @cached_property
    def pair_rows(self) -> Tensor:
        """Rows ``(M, 2)`` in a table of source terms above target terms."""
        return torch.stack([self.source, self.centre + self.num_sources], dim=-1)

    @cached_property
    def first_row(self) -> Tensor:
        """``(M, 1)`` zeros: one row for all."""
        return torch.zeros_like(self.source).unsqueeze(-1)

    @cached_property
    def ends(self) -> Tensor:
        """``(cells,)``: one past the last row of features of each cell."""
        return torch.tensor(self.counts).cumsum(0)

    @cached_property
    def blocks(self) -> list[list[tuple[int, int, int]]]:
        """Rows of features of about `BLOCK` messages, in pieces ``(begin, end, cell)``."""
        blocks: list[list[tuple[int, int, int]]] = []
        begin, room, most = 0, 0, max(1, BLOCK // self.together)
        for cell, count in enumerate(self.counts):
            end = begin + count
            while begin < end:
                if room == 0:
                    blocks.append([])
                    room = most
                stop = min(end, begin + room)
                blocks[-1].append((begin, stop, cell))
                room -= stop - begin
                begin = stop
        return blocks

    @property
    def largest(self) -> int:
        """Rows in the largest block."""
        return max((block[-1][1] - block[0][0] for block in self.blocks), default=0)


def convolve_plain(
    x: Tensor,
    features: Tensor,
    matrices: Tensor,
    atoms: Tensor,
    atom_rows: Tensor,
    radial: Tensor | None,
    messages: Messages,
    act: Activation | None,
) -> Tensor:
    """The convolution as its equation reads.

    Args:
        x: ``(X, C)`` atom features that are convolved, frames laid end to end.
        features: ``(M / G, K)``.
        matrices: ``(cells, K, G C)``.
        atoms: ``(A, C)``, and ``atom_rows`` ``(M, k)`` the rows that each message sums.
        radial: ``(R, C)``, rows and weights in ``messages.radial``.
        messages: where from and where to.
        act: activation of the filters; ``None`` for none.

    Returns:
        ``(num_targets, C)``.
    """
    if matrices.shape[0] == 1:
        z = features @ matrices[0]  # (M, C)
    else:
        parts = zip(features.split(messages.counts), matrices.unbind(0), strict=True)
        z = torch.cat([part @ matrix for part, matrix in parts])
    z = z.view(-1, x.shape[1])
    for column in range(atom_rows.shape[1]):
        z = z + atoms.index_select(0, atom_rows[:, column])
    if radial is not None and messages.radial is not None:
        z = z + messages.radial.gather(radial).repeat_interleave(messages.together, 0)
    filters = z if act is None else act(z)
    carried = x.index_select(0, messages.source) * filters
    return segment_sum(carried, messages.target, messages.num_targets)


class BlockedConvolution(torch.autograd.Function):
    """`convolve_plain` for SiLU on the CPU, in blocks of messages.

    First derivatives are taken block by block too; where a derivative must itself be
    differentiable (``create_graph``), the plain form is used for it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        features: Tensor,
        matrices: Tensor,
        atoms: Tensor,
        atom_rows: Tensor,
        radial: Tensor | None,
        messages: Messages,
        keep: bool,
    ) -> Tensor:
        saved = x.new_empty(features.shape[0], matrices.shape[-1]) if keep else None
        compiled = native.pass_for(x, atom_rows, messages.radial)
        form = blocked_forward if compiled is None else compiled.forward
        out = form(x, features, matrices, atoms, atom_rows, radial, messages, saved)
        ctx.save_for_backward(x, features, matrices, atoms, atom_rows, radial, saved)
        ctx.messages = messages
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0].contiguous()
        if torch.is_grad_enabled():
            return _plain_backward(ctx, grad)
        x, features, matrices, atoms, atom_rows, radial, saved = ctx.saved_tensors
        messages: Messages = ctx.messages
        _, need_features, need_matrices = ctx.needs_input_grad[:3]
        dx, datoms = torch.zeros_like(x), torch.zeros_like(atoms)
        dradial = None if radial is None else torch.zeros_like(radial)
        dfeatures = torch.empty_like(features) if need_features else None
        dmatrices = torch.zeros_like(matrices)
        scratch = x.new_empty(messages.largest, matrices.shape[-1])
        compiled = native.pass_for(x, atom_rows, messages.radial)
        finish = compiled or BlockedBackward(x, messages)
        for block in messages.blocks:
            begin, end = block[0][0], block[-1][1]
            dz = scratch[: end - begin]
            finish.backward(
                begin, end, saved[begin:end], grad, x, atom_rows, messages, dz, dx, datoms, dradial
            )
            for start, stop, cell in block:
                rows = dz[start - begin : stop - begin]
                if need_matrices:
                    dmatrices[cell].addmm_(features[start:stop].t(), rows)
                if dfeatures is not None:
                    torch.mm(rows, matrices[cell].t(), out=dfeatures[start:stop])
        return dx, dfeatures, dmatrices, datoms, None, dradial, None, None


def _plain_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, features, matrices, atoms, atom_rows, radial, _ = ctx.saved_tensors
    # Aliases: x and the tables may come from one tensor, and partial derivatives are wanted here.
    tensors = (x, features, matrices, atoms, atom_rows, radial)
    inputs: list[Any] = [None if t is None else t.view_as(t) for t in tensors]
    wanted = [i for i in range(6) if ctx.needs_input_grad[i]]
    x, features, matrices, atoms, atom_rows, radial = inputs
    out = convolve_plain(x, features, matrices, atoms, atom_rows, radial, ctx.messages, F.silu)
    found = torch.autograd.grad(out, [inputs[i] for i in wanted], grad, create_graph=True)
    result: list[Tensor | None] = [None] * 8
    for i, value in zip(wanted, found, strict=True):
        result[i] = value
    return tuple(result)


def convolve(
    x: Tensor,
    features: Tensor,
    matrices: Tensor,
    atoms: Tensor,
    atom_rows: Tensor,
    radial: Tensor | None,
    messages: Messages,
    act: Activation | None,
) -> Tensor:
    """The convolution by whichever form is fastest here; arguments as `convolve_plain`."""
    tensors = [t for t in (x, features, matrices, atoms, radial) if t is not None]
    blocked = (
        act is F.silu
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and all(t.dtype is x.dtype for t in tensors)
        and features.shape[0] > 0
    )
    if not blocked:
        return convolve_plain(x, features, matrices, atoms, atom_rows, radial, messages, act)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    out: Tensor = BlockedConvolution.apply(  # type: ignore[no-untyped-call]
        x.contiguous(), features.contiguous(), matrices.contiguous(), atoms.contiguous(),
        atom_rows, None if radial is None else radial.contiguous(), messages, keep,
    )  # fmt: skip
    return out
