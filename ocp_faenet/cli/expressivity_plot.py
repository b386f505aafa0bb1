"""Heat maps of ``ocp-faenet expressivity``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Patch, Rectangle

from ocp_faenet.cli.expressivity_report import text_of
from ocp_faenet.cli.pictures import WIDTH, save

TITLES = {
    "chain": ("k-chains", "k"),
    "fork": ("forked chains", "k"),
    "fold": ("L-fold ends", "L"),
    "other": ("others", ""),
}
#: Short names of pairs that belong to no family.
SHORT = {"distances, all pairs": "all pairs", "mirror images": "mirror"}
#: Grey behind what is not told apart.
EMPTY = "0.87"


def plot_layers(cells: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Fewest layers that separate in exact arithmetic, model by k, one panel a family."""
    families = [name for name in TITLES if any(cell["family"] == name for cell in cells)]
    models = list(dict.fromkeys(cell["model"] for cell in cells))
    deepest = max([cell["at"] or 1 for cell in cells], default=1)
    pairs = {
        family: list(dict.fromkeys(cell["pair"] for cell in cells if cell["family"] == family))
        for family in families
    }
    figure, axes = plt.subplots(
        1, len(families), figsize=(WIDTH, 1.7 + 0.26 * len(models)), sharey=True, squeeze=False,
        layout="constrained", width_ratios=[len(pairs[family]) for family in families],
    )  # fmt: skip
    colours = plt.get_cmap("cividis_r", deepest)
    for axis, family in zip(axes[0], families, strict=True):
        values = np.full((len(models), len(pairs[family])), np.nan)
        for cell in cells:
            if cell["family"] != family:
                continue
            row, column = models.index(cell["model"]), pairs[family].index(cell["pair"])
            if cell["moves"]:
                box = (column - 0.5, row - 0.5)
                axis.add_patch(Rectangle(box, 1, 1, hatch="////", fc=EMPTY, ec="0.6", lw=0))
            elif cell["at"] is not None:
                values[row, column] = cell["at"]
                _write(axis, column, row, text_of(cell), dark=cell["at"] > (deepest + 1) / 2)
            elif cell["overflow"]:
                _write(axis, column, row, "∞", dark=False)
        axis.set_facecolor(EMPTY)
        axis.imshow(values, cmap=colours, vmin=0.5, vmax=deepest + 0.5, aspect="auto")
        _label(axis, family, pairs[family], models)
    handles = [
        Patch(color=colours(layers - 1), label=f"{layers} layer{'s' * (layers > 1)}")
        for layers in range(1, deepest + 1)
    ]
    handles.append(Patch(color=EMPTY, label="not told apart"))
    handles.append(Patch(fc=EMPTY, ec="0.6", hatch="////", lw=0, label="pose matters as much"))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=-(-len(handles) // 2), frameon=False,
        fontsize=9,
    )  # fmt: skip
    save(figure, path)


def _write(axis: Any, column: int, row: int, text: str, *, dark: bool) -> None:
    """A cell's number: bold if learned by every seed, with ``*`` if not by every."""
    bold = text.startswith("**")
    axis.text(
        column, row, text.strip("*") if bold else text, ha="center", va="center_baseline",
        color="white" if dark else "black", fontsize=8, weight="bold" if bold else None,
    )  # fmt: skip


def _label(axis: Any, family: str, pairs: Sequence[str], models: Sequence[str]) -> None:
    title, label = TITLES[family]
    names = [SHORT.get(pair, pair.removeprefix(f"{family} ")) for pair in pairs]
    axis.set_xticks(range(len(pairs)), names, fontsize=8, rotation=0 if label else 90)
    axis.set_yticks(range(len(models)), models, fontsize=8)
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(label)
    axis.set_xticks(np.arange(len(pairs) + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(len(models) + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="white", lw=1)
    axis.tick_params(which="both", length=0)
