"""The benchmark's picture: time against atoms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib import ticker

from ocp_faenet.cli.pictures import MARKERS, colour, save


def plot_times(rows: list[dict[str, Any]], path: Path) -> None:
    """Median time a structure against its atoms, one panel a mode, largest batch of each size."""
    rows = [row for row in rows if not row["error"]]
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    columns = 2 if len(modes) == 1 else 3
    height = 4.0 + 0.22 * -(-len(models) // columns)
    figure, axes = plt.subplots(
        1, len(modes), figsize=(3.2 + 3.2 * len(modes), height), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for panel, mode in zip(axes[0], modes, strict=True):
        for index, model in enumerate(models):
            best: dict[int, float] = {}
            for row in rows:
                if row["model"] == model and row["mode"] == mode:
                    best[row["atoms"]] = 1e3 * row["seconds"] / row["batch"]
            panel.plot(
                list(best), list(best.values()), color=colour(index + 1), label=model,
                marker=MARKERS[index % len(MARKERS)], ms=5,
                linestyle="-" if model.startswith("FAENet") else "--",
            )  # fmt: skip
        panel.set(title=mode, xlabel="atoms in a structure", xscale="log", yscale="log")
        sizes = sorted({row["atoms"] for row in rows})
        panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
        panel.xaxis.set_minor_locator(ticker.NullLocator())
        panel.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,g}"))
        panel.grid(color="0.9", lw=0.6)
    axes[0][0].set_ylabel("time a structure (ms)")
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=columns,
        frameon=False,
    )  # fmt: skip
    save(figure, path)
