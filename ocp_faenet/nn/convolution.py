"""Continuous convolution over edges: the hot loop of FAENet.

For every atom ``i``, ``y_i = sum_j x_j * act(z_ij)`` with filters

.. math:: z_{ij} = W e_{ij} + \\sum_k w_{ij,k} T_{t_{ij,k}}

(report, equation 6): a dense product over edges, and a weighted sum of rows of a table ``T``. The
table holds whatever is cheaper to compute once and look up: the source and target terms of the
filter network (one row an atom), the bias, and radial terms on a grid of distances.

`convolve_plain` says it in four lines, with full tensors over edges, for any device and any order
of derivatives. `BlockedConvolution` gives the same numbers on the CPU a block of edges at a time,
so that what passes between the steps stays in cache instead of going through memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ocp_faenet.geometry.segments import segment_sum
from ocp_faenet.nn.activations import Activation

#: Edges in a block: 1,024 rows of 384 floats are 1.5 MB, about the second-level cache.
BLOCK = 1024

_ATEN: Any = torch.ops.aten  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Taps:
    """Which rows of the table each edge sums, and how heavily.

    Attributes:
        rows: ``(E, k)`` int64.
        weights: ``(E, k)``; constants, no gradient flows into them.
    """

    rows: Tensor
    weights: Tensor

    def gather(self, table: Tensor) -> Tensor:
        """``sum_k w_k T[t_k]``: ``(F, T, C)`` to ``(F, E, C)``, differentiable at any order."""
        out: Tensor | None = None
        for column in range(self.rows.shape[1]):
            term = table.index_select(-2, self.rows[:, column])
            term = term * self.weights[:, column, None]
            out = term if out is None else out + term
        if out is None:
            raise ValueError("taps: an edge must refer to at least one row of the table")
        return out


def convolve_plain(
    x: Tensor,
    dense: Tensor,
    weight: Tensor,
    table: Tensor,
    taps: Taps,
    source: Tensor,
    target: Tensor,
    act: Activation | None,
) -> Tensor:
    """The convolution as its equation reads.

    Args:
        x: ``(F or 1, N, C)`` atom features that are convolved.
        dense: ``(F, E, D)`` edge features.
        weight: ``(C, D)``.
        table: ``(F or 1, T, C)``.
        taps: rows of the table for each edge.
        source: ``(E,)`` neighbour of each edge.
        target: ``(E,)`` centre of each edge, ascending.
        act: activation of the filters; ``None`` for none.

    Returns:
        ``(F, N, C)``.
    """
    z = F.linear(dense, weight) + taps.gather(table)  # (F, E, C)
    filters = z if act is None else act(z)
    messages = x.index_select(-2, source) * filters
    return segment_sum(messages, target, x.shape[-2])


class BlockedConvolution(torch.autograd.Function):
    """`convolve_plain` for SiLU on the CPU, in blocks of edges.

    First derivatives are taken block by block too; where a derivative must itself be
    differentiable (``create_graph``), the plain form is used for it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dense: Tensor,
        weight: Tensor,
        table: Tensor,
        rows: Tensor,
        tap_weights: Tensor,
        source: Tensor,
        target: Tensor,
    ) -> Tensor:
        frames, edges, _ = dense.shape
        channels = x.shape[-1]
        x, table, dense = x.contiguous(), table.contiguous(), dense.contiguous()
        keep = any(ctx.needs_input_grad)
        out = x.new_zeros(frames, x.shape[-2], channels)
        saved = x.new_empty((frames, edges, channels) if keep else (0,))
        scratch = [x.new_empty(min(BLOCK, edges), channels) for _ in range(2)]
        wt = weight.t().contiguous()
        for f in range(frames):
            xf, tf = _frame(x, f), _frame(table, f)
            for begin in range(0, edges, BLOCK):
                b = slice(begin, min(begin + BLOCK, edges))
                n = b.stop - begin
                filters, neighbours = scratch[0][:n], scratch[1][:n]
                z = _combine(tf, rows[b], tap_weights[b])
                if keep:
                    z = torch.addmm(z, dense[f, b], wt, out=saved[f, b])
                else:
                    torch.addmm(z, dense[f, b], wt, out=z)
                _ATEN.silu.out(z, out=filters)
                torch.index_select(xf, 0, source[b], out=neighbours)
                out[f].index_add_(0, target[b], filters.mul_(neighbours))
        ctx.save_for_backward(x, dense, weight, table, rows, tap_weights, source, target, saved)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        if torch.is_grad_enabled():
            return _plain_backward(ctx, grad)
        x, dense, weight, table, rows, tap_weights, source, target, z = ctx.saved_tensors
        frames, edges, _ = dense.shape
        need_x, need_dense, need_weight, need_table = ctx.needs_input_grad[:4]
        dx, dtable = torch.zeros_like(x), torch.zeros_like(table)
        ddense = torch.empty_like(dense) if need_dense else None
        dweight = torch.zeros_like(weight)
        scratch = [x.new_empty(min(BLOCK, edges), x.shape[-1]) for _ in range(3)]
        for f in range(frames):
            xf, dxf, dtf = _frame(x, f), _frame(dx, f), _frame(dtable, f)
            gf = grad[f].contiguous()
            for begin in range(0, edges, BLOCK):
                b = slice(begin, min(begin + BLOCK, edges))
                n = b.stop - begin
                g, other, dz = (s[:n] for s in scratch)
                torch.index_select(gf, 0, target[b], out=g)
                if need_x:
                    _ATEN.silu.out(z[f, b], out=other)
                    dxf.index_add_(0, source[b], other.mul_(g))
                torch.index_select(xf, 0, source[b], out=other)
                _ATEN.silu_backward.grad_input(g.mul_(other), z[f, b], grad_input=dz)
                if need_table:
                    _scatter(dtf, dz, rows[b], tap_weights[b], other)
                if ddense is not None:
                    torch.mm(dz, weight, out=ddense[f, b])
                if need_weight:
                    torch.addmm(dweight, dz.t(), dense[f, b], out=dweight)
        return dx, ddense, dweight, dtable, None, None, None, None


def _frame(values: Tensor, f: int) -> Tensor:
    """``(F or 1, ...)`` at frame ``f``: what all frames share has one."""
    return values[f if values.shape[0] > 1 else 0]


def _combine(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """``sum_k w_k T[t_k]``: ``(T, C)`` to a fresh ``(n, C)``."""
    return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)


def _scatter(out: Tensor, dz: Tensor, rows: Tensor, weights: Tensor, scratch: Tensor) -> None:
    """Add ``w_k dz`` to rows ``t_k`` of ``out`` ``(T, C)``: the transpose of `_combine`."""
    for column in range(rows.shape[1]):
        torch.mul(dz, weights[:, column, None], out=scratch)
        out.index_add_(0, rows[:, column], scratch)


def _plain_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, dense, weight, table, rows, tap_weights, source, target, _ = ctx.saved_tensors
    # Aliases: x and table may come from one tensor, and partial derivatives are wanted here.
    x, dense, weight, table = (t.view_as(t) for t in (x, dense, weight, table))
    inputs = (x, dense, weight, table)
    wanted = [i for i in range(4) if ctx.needs_input_grad[i]]
    taps = Taps(rows, tap_weights)
    out = convolve_plain(x, dense, weight, table, taps, source, target, F.silu)
    found = torch.autograd.grad(out, [inputs[i] for i in wanted], grad, create_graph=True)
    result: list[Tensor | None] = [None] * 8
    for i, value in zip(wanted, found, strict=True):
        result[i] = value
    return tuple(result)


def convolve(
    x: Tensor,
    dense: Tensor,
    weight: Tensor,
    table: Tensor,
    taps: Taps,
    source: Tensor,
    target: Tensor,
    act: Activation | None,
) -> Tensor:
    """The convolution by whichever form is fastest here; arguments as `convolve_plain`."""
    blocked = (
        act is F.silu
        and x.device.type == "cpu"
        and x.dtype == dense.dtype == table.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and source.numel() > 0
    )
    if not blocked:
        return convolve_plain(x, dense, weight, table, taps, source, target, act)
    out: Tensor = BlockedConvolution.apply(  # type: ignore[no-untyped-call]
        x, dense, weight, table, taps.rows, taps.weights, source, target
    )
    return out
