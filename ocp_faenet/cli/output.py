"""How commands write: tables, files, the machine's class. Imports no host."""

from __future__ import annotations

import json
import os
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ocp_faenet.adapters.machine import machine_class as machine_class
from ocp_faenet.cli.errors import BadInputError


def command_line(leave_out: Sequence[str] = ()) -> str:
    """The running command with the options that were given.

    Args:
        leave_out: names of parameters that say where numbers go, and not what they are.
    """
    context = click.get_current_context()
    words = [f"ocp-faenet {context.info_name}"]
    for option in context.command.params:
        name = str(option.name)
        if name in leave_out or context.get_parameter_source(name) is ParameterSource.DEFAULT:
            continue
        value = context.params[name]
        if isinstance(value, bool):
            words.append(option.opts[0] if value else option.secondary_opts[0])
            continue
        values = value if isinstance(value, tuple) else (value,)
        words += [f"{option.opts[0]} {_word(each)}" for each in values]
    return " ".join(words)


def _word(value: Any) -> str:
    """As a shell takes it; lists of numbers with commas."""
    return shlex.quote(",".join(map(str, value)) if isinstance(value, list) else str(value))


def seeds_of(count: int) -> str:
    """Which seeds that many are."""
    return f"seeds 0 to {count - 1}" if count > 1 else "seed 0 alone"


def spread_of(count: int) -> str:
    """What a number over so many seeds is, and which they are."""
    return f"mean ± standard deviation, {seeds_of(count)}" if count > 1 else seeds_of(count)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns padded so that it also reads well as text."""
    lines = [list(header), *[list(row) for row in rows]]
    # A rule of fewer than three characters is none to some readers.
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(header))]
    rule = [":" + "-" * (widths[0] - 1), *["-" * (width - 1) + ":" for width in widths[1:]]]

    def join(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return f"| {' | '.join(padded)} |"

    return "\n".join([join(lines[0]), f"| {' | '.join(rule)} |", *map(join, lines[1:])])


def make_folder(option: str, folder: Path) -> None:
    """Make ``folder``, and see that files can be written there: before anything is run.

    Raises:
        BadInputError: they cannot; the line names ``option``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise BadInputError(f"{option} {folder}: no folder to write to ({reason})") from error


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to a temporary name beside ``path``, then move it there.

    Raises:
        BadInputError: it cannot be written there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise BadInputError(f"{path}: not written ({error})") from error


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as `write_text` does."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def save_figure(figure: Any, path: Path, dpi: int) -> None:
    """Write a figure as PNG to a temporary name beside ``path``, then move it there.

    Raises:
        BadInputError: it cannot be written there.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary, dpi=dpi)
        os.replace(temporary, path)
    except OSError as error:
        raise BadInputError(f"{path}: not written ({error})") from error
