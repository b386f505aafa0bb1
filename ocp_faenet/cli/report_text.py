"""Where the numbers of a figure come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def stamped(report: Mapping[str, Any], seeds: int | None = None) -> dict[str, Any]:
    """What a figure keeps of its study's report; ``seeds``, where it shows fewer."""
    keys = ("command", "data", "train_size", "machine")
    epochs = report["rows"][0]["epochs"]
    kept = {key: report[key] for key in keys}
    return {**kept, "epochs": epochs, "seeds": seeds or report["seeds"]}


def stamp_of(content: Mapping[str, Any]) -> str:
    """That as a sentence."""
    seeds = f"seeds 0 to {content['seeds'] - 1}" if content["seeds"] > 1 else "seed 0 alone"
    return (
        f"`{content['command']}`: {seeds}, {content['epochs']} epochs on "
        f"{content['train_size']} training structures of the {content['data']} set; "
        f"{content['machine']}."
    )
