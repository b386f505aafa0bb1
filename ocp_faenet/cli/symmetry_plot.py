"""The picture of `symmetry`: mean and worst errors by change."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

#: Okabe and Ito's colours by promise, safe for colour-blind readers.
COLOURS = {"exact": "#009E73", "approximate": "#E69F00", "none": "#D55E00", None: "#0072B2"}
#: meV: errors below are drawn here.
FLOOR = 1e-12


def plot_errors(report: dict[str, Any], path: Path) -> None:
    """Energy errors and, where there are any, force errors; bar the mean, tick the worst."""
    quantities = [("energy", "meV"), ("forces", "meV/Å")]
    rows = report["symmetries"]
    quantities = [q for q in quantities if any(row[q[0]] for row in rows)]
    figure, axes = plt.subplots(
        1, len(quantities), figsize=(2.6 + 4.2 * len(quantities), 4), sharey=True, squeeze=False
    )
    for panel, (quantity, unit) in zip(axes[0], quantities, strict=True):
        for place, row in enumerate(rows):
            mean, worst = (max(row[quantity][key], FLOOR) for key in ("mean", "worst"))
            panel.barh(place, mean, color=COLOURS[row["declared"]])
            panel.plot([worst, worst], [place - 0.4, place + 0.4], color="black")
        panel.set(xscale="log", xlabel=f"change of {quantity} ({unit})")
        panel.grid(axis="x", alpha=0.3)
    axes[0][0].invert_yaxis()
    axes[0][0].set_yticks(range(len(rows)), [row["symmetry"] for row in rows])
    shown = {row["declared"] for row in rows}
    handles: list[Artist] = [
        Patch(color=colour, label=f"declared {claim}" if claim else "mean")
        for claim, colour in COLOURS.items()
        if claim in shown
    ]
    handles.append(Line2D([], [], color="black", label="worst structure"))
    figure.legend(handles=handles, loc="lower center", ncols=4, frameon=False)
    figure.suptitle(f"{report['structures']} structures, {report['dtype']}")
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    figure.savefig(temporary, dpi=160)
    plt.close(figure)
    os.replace(temporary, path)
