"""Smooth functions of an edge's vector as polynomials in cells of space.

A directional embedding ``g(v) = act(W v + b)`` depends on three numbers alone, and is smooth:
within a cube of a few Å it is a polynomial of degree 4 to 8 to single precision, whatever the
number of channels. With ``K`` products of Chebyshev polynomials as a basis (35 to 165 of them),

.. math:: g(v) = \\sum_k \\phi_k(v)\\, c_{cell(v), k}

and every linear map of ``g`` can be taken once on the coefficients of each cell instead of on each
edge: a product over edges then has ``K`` terms instead of as many as ``g`` has channels.

Frames that differ in the signs of axes see an edge in cubes that are mirror images of each other.
One of them stands for all: its basis is evaluated once for an edge, and its coefficients are those
of ``g`` at the vector under each of the signs.

Few of the ``K`` products are needed once the weights are known: the coefficients of a cell have a
numerical rank of 25 to 45, and where they are kept the basis is turned to the leading directions
(`leading`).

The degree and the size of the cells follow from how fast the embedding varies, that is from
``max_c |W_c|_1``, so that the error of a channel stays below `TOLERANCE`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor

from ocp_faenet.nn import native

#: Largest error of a channel of ``silu(w . v + b)`` in a cell.
TOLERANCE = 2e-6
#: Degree -> largest ``|w|_1 h`` (``h`` half a cell's side) for which `TOLERANCE` holds for SiLU.
REACH = {4: 0.28, 5: 0.45, 6: 0.68, 7: 0.90, 8: 1.13}
#: Largest error of a channel by directions of the basis that are left out.
LEFT_OUT = 1e-6
#: Degree -> directions that are left, for weights as they are drawn; to choose a grid by.
LEADING = {4: 26, 5: 29, 6: 35, 7: 42, 8: 48}
#: Rows of coefficients (cells times ``K``) that may be kept: 50 MB a layer at 384 channels.
MAX_ROWS = 32_000
#: Cubes along an axis beyond which no grid is tried.
MAX_SIDE = 16
#: Cost of a row of coefficients that is read from memory, in multiply-adds.
ROW_COST = 32
#: Sign patterns of the axes, and the one that changes nothing.
Signs: TypeAlias = tuple[tuple[int, int, int], ...]
ONE: Signs = ((1, 1, 1),)


@dataclass(frozen=True)
class CellGrid:
    """Cubes that tile the ball of the cutoff, and the degree within each.

    Attributes:
        cutoff: radius of the ball, Å.
        side: cubes along each axis of ``[-cutoff, cutoff]^3``.
        degree: total degree of the polynomials.
        signs: ``G`` sign patterns of the axes, a group with the identity first. Of cubes that
            they take into each other only one is a cell.
    """

    cutoff: float
    side: int
    degree: int
    signs: Signs = ONE

    @property
    def half(self) -> float:
        """Half the side of a cube, Å."""
        return self.cutoff * (1 + 1e-5) / self.side

    @property
    def terms(self) -> int:
        """``K``, size of the basis."""
        return math.comb(self.degree + 3, 3)

    @property
    def num_cells(self) -> int:
        """Cubes that meet the ball, one of each set of mirror images."""
        return _cells(self.side, self.signs)[0].shape[0]

    @property
    def matrices(self) -> int:
        """``cells G``."""
        return self.num_cells * len(self.signs)

    def centres(self) -> Tensor:
        """``(cells, 3)``, Å, float64."""
        return (2 * _cells(self.side, self.signs)[0] + 1 - self.side) * self.half

    def nodes(self) -> Tensor:
        """``(cells, n, G, 3)``, Å, float64: where a function is evaluated for `coefficients`."""
        nodes = self.centres()[:, None] + self.half * _unit_nodes(self.degree)
        return nodes.unsqueeze(-2) * torch.tensor(self.signs)

    def coefficients(self, values: Tensor) -> Tensor:
        """``(cells, n, G, C)`` values at `nodes` to ``(cells, K, G, C)``, differentiable."""
        found: Tensor = torch.matmul(_projection(self.degree).to(values), values.flatten(2))
        return found.view(*found.shape[:2], *values.shape[2:])

    def place(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where each vector ``(E, 3)`` is.

        Returns:
            The cell ``(E,)``, the place in it in half sides ``(E, 3)``, and the sign pattern
            ``(E, G)`` under which each entry of `signs` finds the vector: frame ``f`` of the
            result sees it where ``signs[g]`` takes that place.
        """
        scaled = vectors / self.half
        axis = ((scaled + self.side) * 0.5).floor().clamp(0, self.side - 1)  # (M, 3)
        local = scaled - (2 * axis + (1 - self.side))
        x, y, z = axis.long().unbind(-1)
        _, lookup, turns = _cells(self.side, self.signs)
        cube = (x * self.side + y) * self.side + z
        turn = turns[cube]
        if len(self.signs) > 1:
            local = local * torch.tensor(self.signs, dtype=local.dtype)[turn]
        return lookup[cube], local, _products(self.signs)[turn]

    def basis(self, local: Tensor) -> Tensor:
        """``(M, 3)`` places within cells to ``(M, K)``."""
        return chebyshev_products(local, self.degree)


def chebyshev_products(local: Tensor, degree: int) -> Tensor:
    """``T_a(x) T_b(y) T_c(z)`` for all ``a + b + c <= degree``: ``(M, 3)`` to ``(M, K)``."""
    compiled = native.chebyshev_products(local, degree)
    if compiled is not None:
        return compiled
    x = local.t()  # (3, M)
    powers = [torch.ones_like(x), x]
    for _ in range(2, degree + 1):
        powers.append(2 * x * powers[-1] - powers[-2])
    out = local.new_empty(math.comb(degree + 3, 3), local.shape[0])
    for k, (a, b, c) in enumerate(_exponents(degree)):
        torch.mul(powers[a][0], powers[b][1], out=out[k])
        if c:
            out[k].mul_(powers[c][2])
    return out.t().contiguous()


def leading(coefficients: Tensor, degree: int) -> tuple[Tensor, Tensor]:
    """The directions of the basis that the coefficients of each cell need to `LEFT_OUT`.

    Args:
        coefficients: ``(cells, K, G, C)``.
        degree: of the basis.

    Returns:
        Orthonormal directions ``(cells, K, r)``, eigenvectors of the products of coefficients
        with each other, and the coefficients in them ``(cells, r, G, C)``; ``r`` is the smallest
        number that will do for all cells.
    """
    wide = coefficients.flatten(2).double()
    directions = torch.linalg.eigh(wide @ wide.mT)[1].flip(-1)  # largest first
    turned = directions.mT @ wide
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=wide.dtype)] * 3)
    inside = torch.rand(40, 3, generator=torch.Generator().manual_seed(0), dtype=wide.dtype)
    at = chebyshev_products(torch.cat([corners, 2 * inside - 1]), degree) @ directions
    fewest, most = 1, coefficients.shape[1]
    while fewest < most:
        tried = (fewest + most) // 2
        error = float((at[..., tried:] @ turned[:, tried:]).abs().max())
        fewest, most = (fewest, tried) if error <= LEFT_OUT else (tried + 1, most)
    like, kept = coefficients, turned[:, :most]
    return directions[..., :most].to(like).contiguous(), kept.to(like).view(
        len(kept), most, *coefficients.shape[2:]
    )


def turn(basis: Tensor, directions: Tensor, counts: Sequence[int]) -> Tensor:
    """``(M, K)`` rows in order of their cells to directions ``(cells, K, r)``: ``(M, r)``."""
    compiled = native.products(basis, directions, counts)
    if compiled is not None:
        return compiled
    parts = zip(basis.split(tuple(counts)), directions.unbind(0), strict=True)
    return torch.cat([rows @ matrix for rows, matrix in parts])


def choose_grid(
    cutoff: float,
    steepness: float,
    messages: int,
    channels: int,
    *,
    kept: bool,
    signs: Signs = ONE,
) -> CellGrid | None:
    """The grid that makes the products over edges cheapest, ``None`` if none saves a fifth.

    Args:
        cutoff: Å.
        steepness: ``max_c |W_c|_1``, Å⁻¹; no grid where it is not finite.
        messages: ``M``, edges times frames.
        channels: of the directional embedding.
        kept: coefficients are kept between calls, and their cost need not be counted.
        signs: how frames differ, see `CellGrid`.
    """
    if not math.isfinite(steepness):
        return None
    best, least, work = None, math.inf, math.inf
    for grid in _candidates(cutoff, steepness, signs):
        terms = LEADING[grid.degree] if kept else grid.terms
        if grid.matrices * terms > (MAX_ROWS if kept else messages):
            continue
        # What is kept must not be made anew for every batch: one size stands for those near it.
        near = 4 ** round(math.log(messages, 4)) if kept else messages
        cost = _work(grid, near, terms)
        if not kept:
            # A training step has three products, one less with polynomials, and their table's.
            cost = 2 / 3 * cost + 1.5 * grid.matrices * terms * channels
        if cost < least:
            best, least, work = grid, cost, _work(grid, messages, terms)
    if best is None or (work if kept else least) > 0.8 * channels * messages:
        return None
    return best


def _candidates(cutoff: float, steepness: float, signs: Signs) -> Iterator[CellGrid]:
    """Grids within the reach of their degrees."""
    for degree, reach in REACH.items():
        side = max(1, math.ceil(cutoff * steepness / reach))
        # A cube in the middle is its own mirror image and kept for each: one more may be less.
        more = side % 2 if len(signs) > 1 else 0
        for cubes in range(side, min(side + more, MAX_SIDE) + 1):
            yield cell_grid(cutoff, cubes, degree, signs)


def _work(grid: CellGrid, messages: int, terms: int) -> float:
    return float(terms * (messages + ROW_COST * min(grid.matrices, messages)))


@lru_cache(maxsize=64)
def cell_grid(cutoff: float, side: int, degree: int, signs: Signs = ONE) -> CellGrid:
    """One object for equal grids."""
    return CellGrid(cutoff, side, degree, signs)


@lru_cache(maxsize=32)
def _cells(side: int, signs: Signs) -> tuple[Tensor, Tensor, Tensor]:
    """Integer positions ``(cells, 3)`` of the cubes that are cells; for each cube its cell, and
    the number of the signs that take it there."""
    axis = torch.arange(side)
    position = torch.cartesian_prod(axis, axis, axis).view(-1, 3)
    pattern = torch.tensor(signs).unsqueeze(1)  # (G, 1, 3)
    images = torch.where(pattern > 0, position, side - 1 - position)  # (G, cubes, 3)
    number = (images * torch.tensor([side * side, side, 1])).sum(-1)
    standing, turn = number.max(0)
    nearest = ((2 * position + 1 - side).abs() - 1).clamp(min=0).double().norm(dim=-1)
    inside = (nearest <= side * (1 + 1e-4)) & (standing == number[0])  # in half sides
    lookup = (torch.cumsum(inside, 0) - 1)[standing]
    return position[inside].double(), lookup.clamp(min=0), turn


@lru_cache(maxsize=16)
def _products(signs: Signs) -> Tensor:
    """``(G, G)``: the number of the product of two patterns."""
    of = {pattern: number for number, pattern in enumerate(signs)}
    rows = [[of[(a * x, b * y, c * z)] for x, y, z in signs] for a, b, c in signs]
    return torch.tensor(rows)


@lru_cache(maxsize=16)
def _exponents(degree: int) -> tuple[tuple[int, int, int], ...]:
    every = itertools.product(range(degree + 1), repeat=3)
    return tuple((a, b, c) for a, b, c in every if a + b + c <= degree)


@lru_cache(maxsize=16)
def _unit_nodes(degree: int) -> Tensor:
    """Products of Chebyshev nodes in ``[-1, 1]^3``: ``((degree + 1)^3, 3)``, float64."""
    n = degree + 1
    line = torch.cos(torch.pi * (torch.arange(n, dtype=torch.float64) + 0.5) / n)
    return torch.cartesian_prod(line, line, line)


@lru_cache(maxsize=16)
def _projection(degree: int) -> Tensor:
    """``(K, n)``: values at the nodes to coefficients, least squares, float64."""
    projection: Tensor = torch.linalg.pinv(chebyshev_products(_unit_nodes(degree), degree))
    return projection
