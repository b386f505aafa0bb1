"""Options that several verbs take, worded once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., None])

#: A file or a folder.
PATH = click.Path(path_type=Path)
#: A file: a folder is refused before anything is run.
FILE = click.Path(dir_okay=False, path_type=Path)

JSON = click.option("--json", "json_path", type=FILE, help="Write all numbers to this file.")
TABLE_JSON = click.option("--json", "json_path", type=FILE, help="Write the table to this file.")
DATA = click.option("--data", type=PATH, default=Path("data/emt/demo"), show_default=True)
JOBS = click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Runs at a time, one thread each.",
)
INTO = click.option(
    "--into", type=FILE, help="Replace the table in this document, between its markers."
)
TABLES_INTO = click.option(
    "--into", type=FILE, help="Replace the tables in this document, between their markers."
)


def runs_in(default: str) -> Callable[[Command], Command]:
    """``--runs``, the folder that finished runs are kept in."""
    return click.option(
        "--runs",
        type=PATH,
        default=Path(default),
        show_default=True,
        help="Finished runs are taken from here, unfinished ones go on.",
    )
