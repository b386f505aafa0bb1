"""The compiled pass of the convolution: built at first use, and done without where it cannot be.

`kernels.cpp` is C++ without dependencies. The first convolution of a process looks for its compiled
form in the cache folder of the user, or compiles it there in a second or two; the file name holds a
hash of the source, the compiler and the processor. Without a compiler, with one that fails, or with
``OCP_FAENET_NATIVE=0`` in the environment, PyTorch's operations do the same work.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import math
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ocp_faenet.nn.eager import eager

if TYPE_CHECKING:
    from ocp_faenet.nn.ewald import WaveGroup
    from ocp_faenet.nn.messages import Operands, Slopes
    from ocp_faenet.nn.norm import GraphNorm
    from ocp_faenet.nn.topology import Topology

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.cpp")
COMPILERS = ("g++", "clang++", "c++")
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-std=c++17", "-fPIC")
#: Largest degree of the basis, as in the source.
MAX_DEGREE = 8
#: Rows that a message may take of the tables of atoms and of radial terms.
ATOM_ROWS, RADIAL_ROWS = (1, 2), (0, 1, 4)
P, I64, INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
FORWARD: list[Any] = [I64, INT, INT, INT, INT, I64, I64, *[P] * 13]
BASIS: list[Any] = [I64, INT, INT, P, P]
PRODUCTS: list[Any] = [INT, I64, I64, I64, *[P] * 4]
BACKWARD: list[Any] = [I64, I64, INT, INT, INT, INT, *[P] * 12]
NORM: list[Any] = [I64, INT, *[I64] * 3, *[P] * 4, ctypes.c_float, P]
EWALD: list[Any] = [I64, INT, *[I64] * 6, INT, INT, I64, *[P] * 9]


def pass_for(operands: Operands) -> NativePass | None:
    """The compiled pass over the operands, or ``None`` where it does not apply."""
    radial = operands.messages.radial
    taps = 0 if radial is None else radial.rows.shape[1]
    fits = operands.atom_rows.shape[1] in ATOM_ROWS and taps in RADIAL_ROWS
    if operands.x.dtype is not torch.float32 or not fits:
        return None
    found = None if _switched_off else library()
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


@eager
def chebyshev_products(local: Tensor, degree: int) -> Tensor | None:
    """`cells.chebyshev_products` of ``(M, 3)``, or ``None`` where it is not compiled."""
    found = None if _switched_off or local.dtype is not torch.float32 else library()
    if found is None or local.requires_grad or local.device.type != "cpu" or degree > MAX_DEGREE:
        return None
    local = local.contiguous()
    out = local.new_empty(local.shape[0], math.comb(degree + 3, 3))
    found.faenet_basis(
        local.shape[0], degree, torch.get_num_threads(), local.data_ptr(), out.data_ptr()
    )
    return out


@eager
def products(rows: Tensor, matrices: Tensor, counts: Sequence[int]) -> Tensor | None:
    """``counts`` rows of ``(M, K)`` by each of ``(cells, K, C)``, or ``None``; no gradients."""
    found = None if _switched_off or rows.dtype is not torch.float32 else library()
    if found is None or rows.device.type != "cpu" or matrices.dtype is not rows.dtype:
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


@eager
def norm_and_silu(x: Tensor, norm: GraphNorm, topology: Topology) -> bool:
    """Graph norm and SiLU of ``x`` ``(F, N, C)`` in place, where no gradients are taken.

    Returns:
        Whether that was done; ``x`` is as it was otherwise.
    """
    found = None if _switched_off or torch.is_grad_enabled() else library()
    tensors = (x, norm.weight, norm.bias, norm.mean_scale)
    if found is None or not norm.per_graph or x.shape[-1] % found.faenet_lanes():
        return False
    if any(
        t.dtype is not torch.float32 or t.device.type != "cpu" or not t.is_contiguous()
        for t in tensors
    ):
        return False
    found.faenet_norm(
        x.shape[2], torch.get_num_threads(), x.shape[0], x.shape[1], topology.num_graphs,
        topology.ends.data_ptr(), *(t.data_ptr() for t in tensors[1:]), norm.eps, x.data_ptr(),
    )  # fmt: skip
    return True


@eager
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
    found = None if _switched_off or h.dtype is not torch.float32 else library()
    tensors = [h, short, group.waves, filters, *layers]
    if found is None or group.counts is None or h.shape[0] not in (1, short.shape[0]):
        return False
    if any(t.dtype is not torch.float32 or t.device.type != "cpu" for t in tensors):
        return False
    channels, lanes = h.shape[-1], found.faenet_lanes()
    if channels % lanes or width % lanes:
        return False
    h, short, filters, *layers = (t.contiguous() for t in (h, short, filters, *layers))
    pointers = (P * max(1, len(layers)))(*(t.data_ptr() for t in layers))
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


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or ``None``."""
    if os.environ.get("OCP_FAENET_NATIVE", "1") == "0":
        return None
    try:
        return _load(_build())
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        log.info("convolution by PyTorch's operations, nothing compiled: %s", error)
        return None


def _load(path: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_LOCAL)
    found.faenet_forward.argtypes, found.faenet_forward.restype = FORWARD, None
    found.faenet_products.argtypes, found.faenet_products.restype = PRODUCTS, None
    found.faenet_ewald.argtypes, found.faenet_ewald.restype = EWALD, None
    found.faenet_norm.argtypes, found.faenet_norm.restype = NORM, None
    found.faenet_basis.argtypes, found.faenet_basis.restype = BASIS, None
    found.faenet_backward.argtypes, found.faenet_backward.restype = BACKWARD, None
    return found


def _build() -> Path:
    """Path of the compiled library, made now if it is not there."""
    if platform.system() != "Linux":
        raise RuntimeError(f"not tried on {platform.system()}")
    compiler = os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), None)
    if compiler is None:
        raise RuntimeError(f"no C++ compiler found ({', '.join(COMPILERS)}); set CXX")
    version = subprocess.run(
        [*compiler.split(), "--version"], capture_output=True, check=True, timeout=20
    ).stdout
    key = hashlib.sha256(SOURCE.read_bytes() + version + " ".join(FLAGS).encode() + _processor())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ocp_faenet"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise RuntimeError(f"{folder} belongs to somebody else")
    path = folder / f"kernels-{key.hexdigest()[:16]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            _compile(compiler, Path(work), path)
    return path


def _compile(compiler: str, work: Path, path: Path) -> None:
    # Linked without -fopenmp: its symbols are then those of the OpenMP runtime that PyTorch has
    # loaded already, and not of a second one with threads of its own.
    steps = (
        [*FLAGS, "-fopenmp", "-c", str(SOURCE), "-o", str(work / "k.o")],
        ["-shared", str(work / "k.o"), "-o", str(work / "k.so")],
    )
    for arguments in steps:
        subprocess.run(
            [*compiler.split(), *arguments], capture_output=True, check=True, timeout=120
        )
    os.replace(work / "k.so", path)


def _processor() -> bytes:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(x for x in lines if x.startswith(wanted))).encode()
