"""The runs of a study with a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
