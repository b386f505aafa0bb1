"""Timing of models side by side: same batches, one process, interleaved, synchronised."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim.adamw import AdamW
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from ocp_faenet.models.graph import AtomGraph
from ocp_faenet.nn.native import switched_off
from ocp_faenet.nn.workspace import SHARED


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
        first: the longest pass of the warm-up, s; ``None`` where none ended.
        error: why there is nothing, in one line.
    """

    seconds: list[float] = field(default_factory=list)
    gflop: float = 0.0
    peak_bytes: int | None = None
    first: float | None = None
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
    warmup: int = 1,
    longest: float = math.inf,
    expected: Mapping[str, float] | None = None,
    count: bool = True,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[int], object] = lambda n: None,
) -> dict[str, Timing]:
    """Time one pass over ``graph`` for each contender, in turn, ``repeats`` times.

    A training step is forward, squared error, backward and an AdamW step; inference is a forward
    pass without gradients. Before the repetitions each contender runs ``warmup`` times, and with
    ``count`` once with its work and memory counted. One that fails, or whose pass takes longer
    than ``longest`` seconds or is ``expected`` to, is reported, and the others go on.
    """
    timings = {c.name: Timing() for c in contenders}
    device = graph.positions.device
    steps: dict[str, Callable[[], None]] = {}
    for contender in contenders:
        timing = timings[contender.name]
        ahead = (expected or {}).get(contender.name, 0.0)
        if ahead > longest:
            timing.error = f"a pass would take about {ahead:.0f} s, more than {longest:g}"
            progress(repeats)
            continue
        try:
            step = _training_step if training else _inference_step
            run = step(contender, contender.prepare(graph))
            timing.first = taken = max(_timed(run, device, clock) for _ in range(warmup))
            if taken > longest:
                timing.error = f"a pass takes {taken:.0f} s, more than {longest:g}"
            else:
                if count:
                    timing.gflop, timing.peak_bytes = count_work(run, device)
                steps[contender.name] = run
        except Exception as error:  # whatever a peer raises is said in the table
            timing.error = one_line(error)
        if timing.error is not None:
            progress(repeats)
    for _ in range(repeats):
        for name, run in steps.items():
            timings[name].seconds.append(_timed(run, device, clock))
            progress(1)
    return timings


def one_line(error: Exception) -> str:
    """What went wrong, in a cell of a table."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}"[:120] if lines else type(error).__name__


def _timed(run: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    synchronise(device)
    start = clock()
    run()
    synchronise(device)
    return clock() - start


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


def count_work(run: Callable[[], None], device: torch.device) -> tuple[float, int]:
    """What one pass takes.

    The counters do not see into compiled kernels, nor memory that is taken again: both are
    switched off for them, and PyTorch's operations then take the same products.

    Returns:
        Operations of its matrix products, two to a multiply-add, in 1e9; and the most bytes of
        tensors that it holds at once beyond what was there before.
    """
    counter = FlopCounterMode(display=False)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        with counter:
            run()
        torch.cuda.synchronize(device)
        peak = int(torch.cuda.max_memory_allocated(device) - before)
    else:
        with switched_off(), SHARED.set_aside(), profile(profile_memory=True) as trace, counter:
            run()
        now = peak = 0
        events = trace.profiler.kineto_results.events()
        memory = [event for event in events if event.name() == "[memory]"]
        for event in sorted(memory, key=lambda event: event.start_ns()):
            now += event.nbytes()
            peak = max(peak, now)
    return float(counter.get_total_flops()) / 1e9, peak


def peak_gflops(
    device: torch.device, seconds: float = 1.0, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Best rate of single-precision matrix products seen on this machine, 1e9 operations/s."""
    n = 1536 if device.type == "cpu" else 8192
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        best = min(best, _timed(lambda: torch.mm(a, b), device, clock))
    return 2 * n**3 / best / 1e9
