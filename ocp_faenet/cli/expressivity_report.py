"""Tables of ``ocp-faenet expressivity`` from its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ocp_faenet.cli.output import markdown_table

#: Family -> heading of its table.
HEADINGS = {
    "chain": "k-chains, by k",
    "fork": "Forked chains, by k",
    "fold": "L-fold ends, eclipsed or staggered, by L",
    "other": "Counter-examples",
}
NEVER, OVERFLOW = "-", "overflow"


def text_of(cell: Mapping[str, Any]) -> str:
    """Fewest layers; bold where training got there as well, ``*`` where it failed."""
    trained = cell["trained"]
    reached = trained is not None and min(trained["accuracy"]) == 1
    if cell["moves"]:
        text = "pose" if trained is None else f"({min(trained['accuracy']):.2f})"
    elif cell["at"] is None:
        return OVERFLOW if cell["overflow"] else NEVER
    else:
        text = str(cell["at"]) + ("" if trained is None or reached else "*")
    return f"**{text}**" if reached else text


def table_of(report: Mapping[str, Any], family: str) -> str:
    """The Markdown table of one family: a row for each model."""
    cells = [cell for cell in report["cells"] if cell["family"] == family]
    pairs = list(dict.fromkeys(cell["pair"] for cell in cells))
    by_place = {(cell["model"], cell["pair"]): text_of(cell) for cell in cells}
    models = list(dict.fromkeys(cell["model"] for cell in cells))
    header = ["", *[pair.removeprefix(f"{family} ") for pair in pairs]]
    return markdown_table(
        header, [[model, *[by_place.get((model, pair), "") for pair in pairs]] for model in models]
    )


def markdown_of(report: Mapping[str, Any]) -> str:
    """All tables and where their numbers come from."""
    families = dict.fromkeys(cell["family"] for cell in report["cells"])
    parts = [f"**{HEADINGS[family]}**\n\n{table_of(report, family)}" for family in families]
    return "\n\n".join([*parts, sentence_of(report)])


def sentence_of(report: Mapping[str, Any]) -> str:
    """How the tables are read, and what made them."""
    open_cells = any(cell["trained"] is None and cell["at"] is not None for cell in report["cells"])
    plain = " Plain: not trained." if open_cells else ""
    large = any(cell["overflow"] for cell in report["cells"])
    overflow = (
        f" `{OVERFLOW}`: energies too large for float64 in networks so deep." if large else ""
    )
    return (
        f"`{report['command']}`: fewest of at most {report['layers']} layers whose energies differ "
        f"in float64, the worst of {report['inits']} random weights. `{NEVER}`: no difference "
        "beyond rounding; not trained. `pose`: copies of one structure in other poses differ as "
        f"much. Bold: networks of that depth learned to tell the pair apart, all of "
        f"{report['seeds']} seeds with accuracy 1 in at most {report['budget']} steps. `*`: a seed "
        "did not; in parentheses the worst accuracy, where the pose matters."
        f"{plain}{overflow} No data; {report['machine']}."
    )
