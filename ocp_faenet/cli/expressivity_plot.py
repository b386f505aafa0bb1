"""Heat maps of ``ocp-faenet expressivity``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

from ocp_faenet.cli.expressivity_report import text_of
from ocp_faenet.cli.pictures import save

TITLES = {
    "chain": ("k-chains", "k (atoms in the row)"),
    "fork": ("forked chains", "k (atoms in the row)"),
    "fold": ("L-fold ends", "L"),
}


def plot_layers(cells: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Fewest layers that separate in exact arithmetic, model by k, one panel a family."""
    families = [name for name in TITLES if any(cell["family"] == name for cell in cells)]
    models = list(dict.fromkeys(cell["model"] for cell in cells))
    deepest = max([cell["at"] or 1 for cell in cells], default=1)
    figure, axes = plt.subplots(
        1, len(families), figsize=(2.0 + 3.3 * len(families), 0.9 + 0.34 * len(models)),
        sharey=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    colours = plt.get_cmap("cividis_r", deepest)
    for axis, family in zip(axes[0], families, strict=True):
        mine = [cell for cell in cells if cell["family"] == family]
        pairs = list(dict.fromkeys(cell["pair"] for cell in mine))
        values = np.full((len(models), len(pairs)), np.nan)
        for cell in mine:
            row, column = models.index(cell["model"]), pairs.index(cell["pair"])
            shown = not cell["moves"] and cell["at"] is not None
            values[row, column] = cell["at"] if shown else np.nan
            dark = shown and cell["at"] > (deepest + 1) / 2
            text = text_of(cell)
            axis.text(
                column, row, text.strip("*") + "*" * (text.endswith("*") and text[0] != "*"),
                ha="center", va="center", color="white" if dark else "black",
                fontsize=5.5 if cell["moves"] else 8, weight="bold" if text[:2] == "**" else None,
            )  # fmt: skip
        axis.set_facecolor("0.85")
        image = axis.imshow(values, cmap=colours, vmin=0.5, vmax=deepest + 0.5, aspect="auto")
        axis.set_xticks(range(len(pairs)), [pair.split()[-1] for pair in pairs])
        axis.set_yticks(range(len(models)), models, fontsize=8)
        title, label = TITLES[family]
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(label)
        axis.set_xticks(np.arange(len(pairs) + 1) - 0.5, minor=True)
        axis.set_yticks(np.arange(len(models) + 1) - 0.5, minor=True)
        axis.grid(which="minor", color="white", lw=1)
        axis.tick_params(which="both", length=0)
    bar = figure.colorbar(image, ax=axes[0].tolist(), shrink=0.8, ticks=range(1, deepest + 1))
    bar.set_label("fewest layers (grey: none)")
    save(figure, path)
