"""What ``ocp-faenet benchmark`` times, a size and a mode after the other."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from ocp_faenet.cli.benchmark_report import row_of
from ocp_faenet.models.synthetic import oc20_like
from ocp_faenet.models.timing import Contender, measure

Maker = Callable[[torch.device | str], Contender]
MODES = {"inference": False, "training": True}


@dataclass(frozen=True)
class Measurement:
    """What is timed, and how; as the options say."""

    atoms: list[int]
    batch: list[int]
    modes: list[str]
    repeats: int
    clock: Callable[[], float]
    longest: float
    where: torch.device
    peak: float
    count: bool = True


def passes(makers: Mapping[str, Maker], how: Measurement) -> Iterator[list[dict[str, Any]]]:
    """Inference and training: the rows of each size and mode as soon as they are there."""
    # Seconds of the last pass of each model, and its atoms: time is taken to grow with them.
    seen: dict[tuple[str, str], tuple[float, int]] = {}
    total = len(how.atoms) * len(how.batch) * len(how.modes) * how.repeats * len(makers)
    with tqdm(total=total, desc="benchmark", file=sys.stderr) as bar:
        contenders = [make(how.where) for make in makers.values()]
        for size, graphs in itertools.product(how.atoms, how.batch):
            graph = oc20_like(size, graphs, device=how.where)
            edges = graph.edge_index.shape[1]
            for mode in how.modes:
                expected = {
                    name: seconds / before * size * graphs
                    for (name, of_mode), (seconds, before) in seen.items()
                    if of_mode == mode and size * graphs > before
                }
                timings = measure(
                    contenders, graph, training=MODES[mode], repeats=how.repeats,
                    longest=how.longest, expected=expected, count=how.count, clock=how.clock,
                    progress=bar.update,
                )  # fmt: skip
                rows = []
                for contender in contenders:
                    name, timing = contender.name, timings[contender.name]
                    if timing.first is not None:
                        last = timing.median if timing.seconds else timing.first
                        seen[name, mode] = (last, size * graphs)
                    parameters = _parameters(contender.module)
                    peak = how.peak if how.count else None
                    rows.append(row_of(name, mode, size, graphs, edges, parameters, timing, peak))
                yield rows


def relaxations(
    makers: Mapping[str, Callable[[], torch.nn.Module]], how: Measurement
) -> Iterator[list[dict[str, Any]]]:
    """Steps of a relaxation: the rows of each size."""
    from ocp_faenet.adapters.relax_speed import relaxation_steps

    made = {name: make().to(how.where) for name, make in makers.items()}
    total = len(how.atoms) * how.repeats * len(made)
    with tqdm(total=total, desc="benchmark", file=sys.stderr) as bar:
        for size in how.atoms:
            graph = oc20_like(size, 1, device=how.where)
            edges = graph.edge_index.shape[1]
            timings = relaxation_steps(
                made, graph, how.repeats, clock=how.clock, progress=bar.update
            )
            rows = []
            for name, timing in timings.items():
                parameters = _parameters(made[name])
                rows.append(row_of(name, "relaxation", size, 1, edges, parameters, timing))
            yield rows


def _parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
