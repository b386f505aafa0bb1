"""The benchmark's picture: time against atoms."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

#: Okabe and Ito's colours, safe for colour-blind readers.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
MARKERS = "osDv^<>PX*"


def plot_times(rows: list[dict[str, Any]], path: Path) -> None:
    """Median time a structure against its atoms, one panel a mode, largest batch of each size."""
    rows = [row for row in rows if not row["error"]]
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = plt.subplots(
        1, len(modes), figsize=(5.2 * len(modes), 4.4), sharey=True, squeeze=False
    )
    for panel, mode in zip(axes[0], modes, strict=True):
        for k, model in enumerate(models):
            best: dict[int, float] = {}
            for row in rows:
                if row["model"] == model and row["mode"] == mode:
                    best[row["atoms"]] = 1e3 * row["seconds"] / row["batch"]
            panel.plot(
                list(best), list(best.values()), color=COLOURS[k % len(COLOURS)],
                marker=MARKERS[k % len(MARKERS)], label=model,
                linestyle="-" if model.startswith("FAENet") else "--",
            )  # fmt: skip
        panel.set(title=mode, xlabel="atoms in a structure", xscale="log", yscale="log")
        panel.grid(alpha=0.3)
    axes[0][0].set_ylabel("time a structure (ms)")
    columns = 2 if len(modes) == 1 else 3
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="lower center", ncols=columns, frameon=False
    )
    figure.tight_layout(rect=(0, 0.05 + 0.05 * (-(-len(models) // columns) - 1), 1, 1))
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(temporary, dpi=160)
    plt.close(figure)
    os.replace(temporary, path)
