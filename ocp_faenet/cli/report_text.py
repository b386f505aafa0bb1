"""Where the numbers of a figure come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ocp_faenet.cli.output import seeds_of


def stamped(report: Mapping[str, Any], seeds: int | None = None) -> dict[str, Any]:
    """What a figure keeps of its study's report; ``seeds``, where it shows fewer."""
    keys = ("command", "data", "train_size", "machine")
    epochs = report["rows"][0]["epochs"]
    kept = {key: report[key] for key in keys}
    return {**kept, "epochs": epochs, "seeds": seeds or report["seeds"]}


def stamp_of(content: Mapping[str, Any]) -> str:
    """That as a sentence."""
    return (
        f"`{content['command']}`: {seeds_of(content['seeds'])}, {content['epochs']} epochs on "
        f"{content['train_size']} training structures of the {content['data']} set; "
        f"{content['machine']}."
    )


def untrained(content: Mapping[str, Any]) -> str:
    """The same of a figure for which nothing is trained; without ``data`` it is of none."""
    source = f"the {content['data']} set" if "data" in content else "no data"
    return f"`{content['command']}`: {source}, no seed; {content['machine']}."
