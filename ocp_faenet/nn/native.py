"""The compiled kernels, on tensors; PyTorch's operations do the same work where they do not apply.

The first operation of a process that they would serve has them loaded or compiled
(`native_build`). Where that fails it is said once, and with ``OCP_FAENET_NATIVE=0`` in the
environment it is not tried.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ocp_faenet.nn.native_build import cache_folders, load_kernels

if TYPE_CHECKING:
    from ocp_faenet.nn.ewald import WaveGroup
    from ocp_faenet.nn.messages import Operands, Slopes
    from ocp_faenet.nn.norm import GraphNorm
    from ocp_faenet.nn.topology import Topology

log = logging.getLogger(__name__)

#: Largest degree of the basis, as in the source.
MAX_DEGREE = 8
#: Rows that a message may take of the tables of atoms and of radial terms.
ATOM_ROWS, RADIAL_ROWS = (1, 2), (0, 1, 4)


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or ``None``; sought once per process."""
    if os.environ.get("OCP_FAENET_NATIVE", "1") == "0":
        return None
    if platform.system() != "Linux":
        log.info("compiled kernels are not tried on %s", platform.system())
        return None
    try:
        return load_kernels(cache_folders())
    except (OSError, RuntimeError) as error:
        log.warning(
            "no compiled kernels, PyTorch's slower operations in their place: %s. "
            "Install g++ or set CXX; OCP_FAENET_NATIVE=0 silences this",
            error,
        )
        return None


def traced() -> bool:
    """Whether ``torch.compile``, ``torch.func`` or forward-mode derivatives are at work.

    What they trace with has no addresses, or loses what it carries when these are written to.
    """
    transforms = getattr(torch._C, "_are_functorch_transforms_active", None)
    return (
        torch.compiler.is_compiling()
        or forward_ad._current_level >= 0
        or (transforms is not None and transforms())
    )


def _kernels_for(*tensors: Tensor) -> ctypes.CDLL | None:
    """The kernels, where they take such tensors: nothing is compiled for any others."""
    if _switched_off or traced():
        return None
    if any(t.dtype is not torch.float32 or t.device.type != "cpu" for t in tensors):
        return None
    return library()


def pass_for(operands: Operands) -> NativePass | None:
    """The compiled pass over the operands, or ``None`` where it does not apply."""
    radial = operands.messages.radial
    taps = 0 if radial is None else radial.rows.shape[1]
    if operands.atom_rows.shape[1] not in ATOM_ROWS or taps not in RADIAL_ROWS:
        return None
    found = _kernels_for(*operands.values)
    if found is None or operands.channels % found.faenet_lanes():
        return None
    return NativePass(found, operands)


_switched_off = False


@contextmanager
def switched_off() -> Iterator[None]:
    """Within it PyTorch's operations do the work: where a profiler is to see it."""
    global _switched_off
    before, _switched_off = _switched_off, True
    try:
        yield
    finally:
        _switched_off = before


class NativePass:
    """`blocked.BlockedPass`, compiled; all tensors contiguous."""

    def __init__(self, found: ctypes.CDLL, operands: Operands) -> None:
        self.library, self.operands = found, operands
        channels, radial = operands.channels, operands.messages.radial
        # A thread for every four cache lines of channels; more would wait for each other.
        threads = max(1, min(torch.get_num_threads(), channels // 64))
        taps = 0 if radial is None else radial.rows.shape[1]
        self.sizes = (channels, threads, operands.atom_rows.shape[1], taps)

    def forward(self, saved: Tensor | None) -> Tensor:
        """``(num_targets, C)``; filters before activation go to ``saved`` ``(M / G, G C)``."""
        x, features, matrices, atoms, _, radial, messages = self.operands
        out = x.new_zeros(messages.num_targets, x.shape[1])
        self.library.faenet_forward(
            *self.sizes, messages.together, features.shape[1], len(messages.counts),
            messages.ends.data_ptr(), features.data_ptr(), matrices.data_ptr(), x.data_ptr(),
            atoms.data_ptr(), _pointer(radial), *self._rows(0), _pointer(saved), out.data_ptr(),
        )  # fmt: skip
        return out

    def backward(self, begin: int, z: Tensor, grad: Tensor, dz: Tensor, slopes: Slopes) -> None:
        """As there."""
        self.library.faenet_backward(
            len(z), *self.sizes, self.operands.messages.together, z.data_ptr(), grad.data_ptr(),
            self.operands.x.data_ptr(), *self._rows(begin), dz.data_ptr(), slopes.x.data_ptr(),
            slopes.atoms.data_ptr(), _pointer(slopes.radial),
        )  # fmt: skip

    def _rows(self, begin: int) -> tuple[int | None, ...]:
        """Addresses of the indices from row ``begin`` of the features on."""
        atom_rows, messages = self.operands.atom_rows, self.operands.messages
        radial, first = messages.radial, begin * messages.together
        of_radial: tuple[int | None, int | None] = (None, None)
        if radial is not None:
            before = radial.rows.shape[1] * begin
            of_radial = (
                radial.rows.data_ptr() + 8 * before,
                radial.weights.data_ptr() + 4 * before,
            )
        return (
            messages.source.data_ptr() + 8 * first,
            messages.target.data_ptr() + 8 * first,
            atom_rows.data_ptr() + 8 * atom_rows.shape[1] * first,
            *of_radial,
        )


def chebyshev_products(local: Tensor, degree: int) -> Tensor | None:
    """`cells.chebyshev_products` of ``(M, 3)``, or ``None`` where it is not compiled."""
    found = None if local.requires_grad or degree > MAX_DEGREE else _kernels_for(local)
    if found is None:
        return None
    local = local.contiguous()
    out = local.new_empty(local.shape[0], math.comb(degree + 3, 3))
    found.faenet_basis(
        local.shape[0], degree, torch.get_num_threads(), local.data_ptr(), out.data_ptr()
    )
    return out


def products(rows: Tensor, matrices: Tensor, counts: Sequence[int]) -> Tensor | None:
    """``counts`` rows of ``(M, K)`` by each of ``(cells, K, C)``, or ``None``; no gradients."""
    found = _kernels_for(rows, matrices)
    if found is None:
        return None
    rows, (cells, terms, channels) = rows.contiguous(), matrices.shape
    padded = torch.nn.functional.pad(matrices, (0, -channels % found.faenet_lanes()))
    ends = torch.tensor(counts).cumsum(0)
    out = rows.new_empty(len(rows), padded.shape[-1])
    found.faenet_products(
        torch.get_num_threads(), cells, terms, padded.shape[-1], ends.data_ptr(), rows.data_ptr(),
        padded.data_ptr(), out.data_ptr(),
    )  # fmt: skip
    return out[:, :channels].contiguous()


def norm_and_silu(x: Tensor, norm: GraphNorm, topology: Topology) -> bool:
    """Graph norm and SiLU of ``x`` ``(F, N, C)`` in place, where no gradients are taken.

    Returns:
        Whether that was done; ``x`` is as it was otherwise.
    """
    tensors = (x, norm.weight, norm.bias, norm.mean_scale)
    if torch.is_grad_enabled() or not norm.per_graph or not all(t.is_contiguous() for t in tensors):
        return False
    found = _kernels_for(*tensors)
    if found is None or x.shape[-1] % found.faenet_lanes():
        return False
    found.faenet_norm(
        x.shape[2], torch.get_num_threads(), x.shape[0], x.shape[1], topology.num_graphs,
        topology.ends.data_ptr(), *(t.data_ptr() for t in tensors[1:]), norm.eps, x.data_ptr(),
    )  # fmt: skip
    return True


def ewald_group(
    h: Tensor,
    short: Tensor,
    group: WaveGroup,
    filters: Tensor,
    layers: Sequence[Tensor],
    width: int,
    out: Tensor,
) -> bool:
    """One group of structures of `ewald.EwaldBlock`, for SiLU and without gradients.

    Args:
        h: ``(F or 1, N, C)``.
        short: ``(F, N, C)``, the short-range message.
        group: its structures; each one's atoms are written.
        filters: ``(G or 1, 2K, C)``.
        layers: weights and biases of the residual layers in turn, four for each.
        width: channels inside them.
        out: ``(F, N, C)``, where the sum of both messages goes.

    Returns:
        Whether that was done; nothing is written otherwise.
    """
    if group.counts is None or h.shape[0] not in (1, short.shape[0]):
        return False
    found = _kernels_for(h, short, group.waves, filters, *layers)
    channels = h.shape[-1]
    if found is None or channels % found.faenet_lanes() or width % found.faenet_lanes():
        return False
    h, short, filters, *layers = (t.contiguous() for t in (h, short, filters, *layers))
    pointers = (ctypes.c_void_p * max(1, len(layers)))(*(t.data_ptr() for t in layers))
    structures, slots, waves = group.waves.shape
    found.faenet_ewald(
        channels, torch.get_num_threads(), short.shape[0], h.shape[0], h.shape[1], structures,
        slots, waves, len(filters) == 1, len(layers) // 4, width, group.atoms.data_ptr(),
        group.counts.data_ptr(), group.waves.data_ptr(), group.turned.data_ptr(),
        filters.data_ptr(), pointers, h.data_ptr(), short.data_ptr(), out.data_ptr(),
    )  # fmt: skip
    return True


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
