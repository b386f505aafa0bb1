"""Reduced bases: short lattice vectors of a cell, whichever vectors it is given by."""

from __future__ import annotations

import torch
from torch import Tensor

_MOST_SWEEPS = 100
#: A step must shorten a vector by this share to be taken, so that ties cannot go in circles.
_SHORTER = 1e-9


@torch.no_grad()
def reduced_cells(cell: Tensor) -> Tensor:
    """``(B, 3, 3)`` Minkowski-reduced bases of the same lattices, shortest vector first.

    Greedy reduction (Semaev 2001; Nguyen and Stehle 2009): while it shortens the longest vector,
    take from it the closest vector of the lattice of the other two. The basis is one of several
    where lattice vectors tie in length; the *set* of shortest vectors does not depend on it.

    Args:
        cell: ``(B, 3, 3)`` float64, rows are lattice vectors, Å. Zero rows stay zero.
    """
    basis = _sorted(cell.clone())
    steps = torch.cartesian_prod(*[torch.arange(-1.0, 2.0, dtype=cell.dtype)] * 2).to(cell.device)
    for _ in range(_MOST_SWEEPS):
        a, b, c = basis.unbind(-2)
        b_new = b - _ratio(a, b).round().unsqueeze(-1) * a
        c_new = _nearest(a, b_new, c, steps)
        new = torch.stack([a, b_new, c_new], dim=-2)
        shorter = new.norm(dim=-1) < (1 - _SHORTER) * basis.norm(dim=-1)
        if not bool(shorter.any()):
            break
        basis = _sorted(torch.where(shorter.unsqueeze(-1), new, basis))
    return basis


def _sorted(basis: Tensor) -> Tensor:
    lengths = basis.norm(dim=-1)
    order = torch.where(lengths > 0, lengths, torch.inf).argsort(dim=-1, stable=True)
    return basis.gather(-2, order.unsqueeze(-1).expand_as(basis))


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """``b . a / a . a``, zero for zero ``a``."""
    square = a.square().sum(-1)
    return (a * b).sum(-1) / torch.where(square > 0, square, 1.0)


def _nearest(a: Tensor, b: Tensor, c: Tensor, steps: Tensor) -> Tensor:
    """``c`` minus the closest vector of the lattice of (nearly reduced) ``a`` and ``b``."""
    b_flat = b - _ratio(a, b).unsqueeze(-1) * a
    y = _ratio(b_flat, c).round()
    c = c - y.unsqueeze(-1) * b
    c = c - _ratio(a, c).round().unsqueeze(-1) * a
    around = torch.einsum("s,bi->bsi", steps[:, 0], a) + torch.einsum("s,bi->bsi", steps[:, 1], b)
    candidates = c.unsqueeze(-2) + around  # (B, 9, 3)
    best = candidates.square().sum(-1).argmin(-1)
    return candidates[torch.arange(len(c), device=c.device), best]
