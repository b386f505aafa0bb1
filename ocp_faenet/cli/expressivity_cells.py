"""Numbers that ``ocp-faenet expressivity`` left when it was interrupted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from ocp_faenet.cli.errors import BadInputError


class Trained(TypedDict):
    """Of each seed."""

    accuracy: list[float]
    steps: list[int]


class Cell(TypedDict):
    """Both verdicts on one pair, for one kind of network."""

    model: str
    family: str
    pair: str
    at: int | None
    moves: bool
    overflow: bool
    exact: list[dict[str, float]]
    trained: Trained | None


_CELLS = TypeAdapter(list[Cell])


def finished(
    path: Path | None, stamp: Mapping[str, Any]
) -> tuple[str, dict[tuple[str, str], dict[str, Any]]]:
    """Machines of the cells that the same command left, and the cells by model and pair.

    Args:
        path: of the report, which need not exist.
        stamp: what makes it the same command: its options and all that verdicts rest on.

    Raises:
        BadInputError: another file, or cells of another command or another way of judging.
    """
    if path is None or not path.is_file():
        return "", {}
    try:
        report = json.loads(path.read_text())
        if other := [key for key, value in stamp.items() if report.get(key) != value]:
            raise BadInputError(
                f"--json {path}: holds cells with another {', '.join(other)}; name another file, "
                "or remove this one"
            )
        _CELLS.validate_python(report["cells"], strict=True)
        cells = {(cell["model"], cell["pair"]): cell for cell in report["cells"]}
        return str(report["machine"]), cells
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(
            f"--json {path}: exists and is no report of expressivity; name another file"
        ) from error
