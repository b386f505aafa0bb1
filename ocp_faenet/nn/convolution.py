"""Continuous convolution over edges: the hot loop of FAENet.

For every atom ``i``, ``y_i = sum_j x_j * act(z_ij)`` with filters

.. math:: z_{ij} = M_{cell(ij)}^T \\phi_{ij} + \\sum_{a} A_{a(ij)} + \\sum_k w_{ij,k} R_{t_{ij,k}}

(report, equation 6): a product over edges, with one matrix for all or one for each cell of space
(`cells`), rows of a table ``A`` of atom terms (source and target of the filter network, bias), and
a weighted sum of rows of a table ``R`` of radial terms. `messages.Operands` holds them all.

`convolve_plain` says it in a few lines, with full tensors over messages, for any device and any
order of derivatives. `BlockedConvolution` gives the same numbers on the CPU a block of messages at
a time, so that what passes between the steps stays in cache instead of going through memory; and
where a C++ compiler is at hand, what follows the product is one compiled pass (`native`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ocp_faenet.geometry.segments import segment_sum
from ocp_faenet.nn import native
from ocp_faenet.nn.activations import Activation
from ocp_faenet.nn.blocked import BlockedPass
from ocp_faenet.nn.messages import Operands, Slopes
from ocp_faenet.nn.workspace import SHARED


def convolve(operands: Operands, act: Activation | None) -> Tensor:
    """The convolution by whichever form is fastest here.

    Args:
        operands: what it takes.
        act: activation of the filters; ``None`` for none.

    Returns:
        ``(num_targets, C)``.
    """
    x = operands.x
    blocked = (
        act is F.silu
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and all(value.dtype is x.dtype for value in operands.values)
        and operands.features.shape[0] > 0
        and not native.traced()
    )
    if not blocked:
        return convolve_plain(operands, act)
    keep = torch.is_grad_enabled() and any(value.requires_grad for value in operands.values)
    out: Tensor = BlockedConvolution.apply(*operands.contiguous(), keep)  # type: ignore[no-untyped-call]
    return out


def convolve_plain(operands: Operands, act: Activation | None) -> Tensor:
    """The convolution as its equation reads; arguments as `convolve`."""
    x, features, matrices, atoms, atom_rows, radial, messages = operands
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

    Arguments are the fields of `Operands` in their order, and whether to keep what a backward
    pass takes. First derivatives are taken block by block too; where a derivative must itself be
    differentiable (``create_graph``), the plain form is used for it.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *fields, keep = arguments
        operands = Operands(*fields)
        rows, width = operands.features.shape[0], operands.matrices.shape[-1]
        saved = SHARED.empty(rows, width, operands.x) if keep else None
        out = _fastest(operands).forward(saved)
        *tensors, ctx.messages = operands
        ctx.save_for_backward(*tensors, saved)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, wanted = grads[0].contiguous(), ctx.needs_input_grad
        *tensors, saved = ctx.saved_tensors
        operands = Operands._make([*tensors, ctx.messages])
        if torch.is_grad_enabled():
            found = _plain_backward(operands, grad, wanted)
        else:
            found = _blocked_backward(operands, saved, grad, wanted)
        return (*found, None, None)  # none by the messages, none by `keep`


def _fastest(operands: Operands) -> BlockedPass | native.NativePass:
    return native.pass_for(operands) or BlockedPass(operands)


def _blocked_backward(
    operands: Operands, saved: Tensor, grad: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Derivatives by the tensors of ``operands`` in their order, those that are ``wanted``."""
    features, matrices = operands.features, operands.matrices
    _, need_features, need_matrices = wanted[:3]
    slopes = Slopes.zeros_for(operands)
    dfeatures = torch.empty_like(features) if need_features else None
    dmatrices = torch.zeros_like(matrices)
    scratch = features.new_empty(operands.messages.largest, matrices.shape[-1])
    form = _fastest(operands)
    for block in operands.messages.blocks:
        begin, end = block[0][0], block[-1][1]
        dz = scratch[: end - begin]
        form.backward(begin, saved[begin:end], grad, dz, slopes)
        for start, stop, cell in block:
            rows = dz[start - begin : stop - begin]
            if need_matrices:
                dmatrices[cell].addmm_(features[start:stop].t(), rows)
            if dfeatures is not None:
                torch.mm(rows, matrices[cell].t(), out=dfeatures[start:stop])
    return slopes.x, dfeatures, dmatrices, slopes.atoms, None, slopes.radial


def _plain_backward(
    operands: Operands, grad: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The same, differentiable."""
    # Aliases: x and the tables may come from one tensor, and partial derivatives are wanted here.
    *tensors, messages = operands
    inputs: list[Any] = [None if t is None else t.view_as(t) for t in tensors]
    out = convolve_plain(Operands._make([*inputs, messages]), F.silu)
    places = [place for place in range(len(inputs)) if wanted[place]]
    found = torch.autograd.grad(out, [inputs[p] for p in places], grad, create_graph=True)
    by_place = dict(zip(places, found, strict=True))
    return tuple(by_place.get(place) for place in range(len(inputs)))
