"""Timing of models side by side: same batches, one process, interleaved, synchronised."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim.adamw import AdamW
from torch.utils.flop_counter import FlopCounterMode

from ocp_faenet.models.graph import AtomGraph
from ocp_faenet.nn.native import switched_off


@dataclass(frozen=True)
class Contender:
    """A model that is timed.

    Attributes:
        name: as the table shows it.
        module: its parameters are trained in a training step.
        prepare: turns the structures into what the model takes; not timed.
        energy: from that to energies ``(B,)`` or ``(B, 1)``; timed.
    """

    name: str
    module: nn.Module
    prepare: Callable[[AtomGraph], object]
    energy: Callable[[object], Tensor]


@dataclass
class Timing:
    """What was seen of one contender.

    Attributes:
        seconds: of each repetition.
        gflop: multiply-adds of matrix products in one pass, two operations each, in 1e9.
        peak_bytes: most memory in use beyond what was before; ``None`` where not measured.
        error: why there is nothing, in one line.
    """

    seconds: list[float] = field(default_factory=list)
    gflop: float = 0.0
    peak_bytes: int | None = None
    error: str | None = None

    @property
    def median(self) -> float:
        """Median time of a repetition, s."""
        return statistics.median(self.seconds)


def measure(
    contenders: Sequence[Contender],
    graph: AtomGraph,
    *,
    training: bool,
    repeats: int,
    warmup: int = 2,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:
    """Time one pass over ``graph`` for each contender, in turn, ``repeats`` times.

    A training step is forward, squared error, backward and an AdamW step; inference is a forward
    pass without gradients. A contender that fails is reported, the others go on.
    """
    steps: dict[str, Callable[[], None]] = {}
    timings = {c.name: Timing() for c in contenders}
    device = graph.positions.device
    for contender in contenders:
        step = _training_step if training else _inference_step
        steps[contender.name] = step(contender, contender.prepare(graph))
    for name, run in list(steps.items()):
        try:
            for _ in range(warmup):
                run()
            timings[name].gflop = count_gflop(run)
            timings[name].peak_bytes = peak_memory(run, device)
        except (RuntimeError, ValueError, AttributeError, TypeError) as error:
            timings[name].error = str(error).strip().splitlines()[0][:120]
            del steps[name]
    for _ in range(repeats):
        for name, run in steps.items():
            synchronise(device)
            start = time.perf_counter()
            run()
            synchronise(device)
            timings[name].seconds.append(time.perf_counter() - start)
            progress()
    return timings


def _inference_step(contender: Contender, batch: object) -> Callable[[], None]:
    def run() -> None:
        contender.module.eval()
        with torch.no_grad():
            contender.energy(batch)

    return run


def _training_step(contender: Contender, batch: object) -> Callable[[], None]:
    # A rate of nearly nothing: the weights stay sane however often the step is repeated.
    optimizer = AdamW(contender.module.parameters(), lr=1e-12)

    def run() -> None:
        contender.module.train()
        optimizer.zero_grad()
        contender.energy(batch).square().mean().backward()
        optimizer.step()

    return run


def synchronise(device: torch.device) -> None:
    """Wait for the accelerator, if there is one."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def count_gflop(run: Callable[[], None]) -> float:
    """Matrix-product operations of ``run``, in 1e9 (PyTorch's own counter).

    The counter does not see into compiled kernels: they are switched off for it, and PyTorch's
    operations then take the same products.
    """
    with switched_off(), FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops()) / 1e9


def peak_memory(run: Callable[[], None], device: torch.device) -> int:
    """Most bytes of tensors that ``run`` holds at once beyond what was there before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    now = peak = 0
    results = profile.profiler.kineto_results
    memory = [event for event in results.events() if event.name() == "[memory]"]
    for event in sorted(memory, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def peak_gflops(device: torch.device, seconds: float = 1.0) -> float:
    """Best rate of single-precision matrix products seen on this machine, 1e9 operations/s."""
    n = 1536 if device.type == "cpu" else 8192
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        synchronise(device)
        start = time.perf_counter()
        torch.mm(a, b)
        synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best / 1e9
