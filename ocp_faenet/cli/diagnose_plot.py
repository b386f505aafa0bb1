"""The picture of `diagnose depth`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from ocp_faenet.cli.pictures import MARKERS, colour, plain, save


def plot_depth(models: Sequence[Mapping[str, Any]], path: Path) -> None:
    """MAD against layer; the band is one standard deviation over structures."""
    figure, axis = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for k, each in enumerate(models):
        mad, spread = np.array(each["mad"]), np.array(each["spread"])
        layers, shade = np.arange(len(mad)), colour(k + 1)
        axis.plot(
            layers,
            mad,
            MARKERS[k % len(MARKERS)] + "-",
            ms=5,
            color=shade,
            label=plain(each["checkpoint"]),
        )
        axis.fill_between(layers, mad - spread, mad + spread, color=shade, alpha=0.12, lw=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(
        xlabel="layer (0: embedding block)", ylabel="MAD (mean cosine distance)", ylim=(0, None)
    )
    axis.grid(color="0.9", lw=0.6)
    axis.set_axisbelow(True)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", frameon=False)
    save(figure, path)
