"""What every study prints and draws: progress, tables, the machine's class."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ocp_faenet.adapters.pool import RunFailedError, run_all
from ocp_faenet.adapters.runs import RunSpec
from ocp_faenet.cli.errors import BadInputError


def run_study(specs: Sequence[RunSpec], root: Path, jobs: int, title: str) -> list[dict[str, Any]]:
    """Results of ``specs`` in their order, with a progress bar on standard error.

    Raises:
        BadInputError: a file is missing or a run failed; one line that names it.
    """
    root.mkdir(parents=True, exist_ok=True)
    form = "{desc} {percentage:3.0f}%|{bar}| {postfix}[{elapsed}<{remaining}]"
    pause = 0.5 if sys.stderr.isatty() else 60.0  # a log file needs no film
    with tqdm(total=len(specs), desc=title, bar_format=form, mininterval=pause) as bar:

        def show(finished: int, done: float) -> None:
            bar.set_postfix_str(f"{finished} of {len(specs)} runs ", refresh=False)
            bar.update(min(done, len(specs)) - bar.n)

        try:
            results = run_all(specs, root, jobs, show)
        except (RunFailedError, ValueError, OSError) as error:
            raise BadInputError(str(error)) from error
        show(len(specs), float(len(specs)))
    return results


def machine_class() -> str:
    """Cores, architecture and PyTorch of this machine, without its name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} CPU cores ({platform.machine()}), torch {torch.__version__}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns padded so that it also reads well as text."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    rule = [":" + "-" * (widths[0] - 1), *["-" * (width - 1) + ":" for width in widths[1:]]]

    def join(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return f"| {' | '.join(padded)} |"

    return "\n".join([join(lines[0]), f"| {' | '.join(rule)} |", *map(join, lines[1:])])
