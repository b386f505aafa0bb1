"""Pictures of a study, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib import ticker

Points = Sequence[tuple[float, float]]


def save(figure: Any, path: Path) -> None:
    """Write a figure, to a temporary name first, and forget it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    figure.savefig(temporary, dpi=150)
    temporary.replace(path)
    plt.close(figure)


def loss_curve(train: Points, val: Points, steps_per_epoch: float, path: Path) -> None:
    """Training loss (normalised energies, running mean) and val_id MAE (eV) against epochs."""
    figure, axis = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    steps, losses = np.array(train).T
    width = max(int(steps_per_epoch), 1)
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    axis.plot(steps[width - 1 :] / steps_per_epoch, smooth, color="C0", label="training loss")
    axis.set(xlabel="epoch", ylabel="training loss (MAE, normalised energy)", yscale="log")
    twin = axis.twinx()
    val_steps, val_mae = np.array(val).T
    twin.plot(val_steps / steps_per_epoch, val_mae, "o-", ms=3, color="C1", label="val_id MAE")
    twin.set(ylabel="val_id MAE (eV)", yscale="log")
    for side in (axis, twin):
        _plain_log(side)
    twin.grid(False, which="both")
    handles = [*axis.get_lines(), *twin.get_lines()]
    axis.legend(handles=handles, frameon=False)
    axis.set_title("Learning curve")
    save(figure, path)


def parity(splits: Mapping[str, tuple[Any, Any]], title: str, path: Path) -> None:
    """Predicted against true energy, one panel per split, same axes.

    Args:
        splits: predicted and true energies (n,) in eV, by split.
        title: above all panels.
        path: of the PNG.
    """
    columns = 2 if len(splits) > 1 else 1
    rows = -(-len(splits) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.6 * columns, 3.6 * rows), layout="constrained", squeeze=False
    )
    everything = np.concatenate([np.concatenate([p, t]) for p, t in splits.values()])
    low, high = everything.min(), everything.max()
    margin = 0.04 * (high - low) + 1e-9
    for axis, (name, (predicted, true)) in zip(axes.flat, splits.items(), strict=False):
        axis.plot([low, high], [low, high], color="0.6", lw=1)
        axis.scatter(true, predicted, s=9, alpha=0.6, edgecolors="none")
        mae = np.abs(np.asarray(predicted) - np.asarray(true)).mean()
        axis.set_title(f"{name}: MAE {mae:.3f} eV, n = {len(true)}", fontsize=10)
        axis.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin))
        axis.set_aspect("equal")
        axis.set(xlabel="EMT energy (eV)", ylabel="predicted energy (eV)")
    for axis in axes.flat[len(splits) :]:
        axis.set_visible(False)
    figure.suptitle(title)
    save(figure, path)


def comparison(
    errors: Mapping[str, Mapping[str, tuple[float, float]]],
    curves: Mapping[str, Sequence[Points]],
    path: Path,
    label: str = "MAE (eV)",
) -> None:
    """Errors by split (with one standard deviation) and on the first split against epochs.

    Args:
        errors: model, then split: mean and standard deviation of the error.
        curves: model: for each seed, the error on the first split against epochs.
        path: of the PNG.
        label: what the error is, with its unit.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
    splits = list(next(iter(errors.values())))
    for index, (model, by_split) in enumerate(errors.items()):
        means, stds = np.array([by_split[split] for split in splits]).T
        place = np.arange(len(splits)) + (index - (len(errors) - 1) / 2) * min(
            0.12, 0.8 / len(errors)
        )
        style = {"fmt": "os^DvpX*h<"[index % 10], "ms": 6, "capsize": 3, "color": _colour(index)}
        left.errorbar(place, means, stds, label=model, **style)
    left.set_xticks(range(len(splits)), splits)
    left.set(ylabel=label, yscale="log", title="Splits")
    for index, model in enumerate(errors):
        for points in curves.get(model, ()):
            right.plot(*np.array(points).T, color=_colour(index), alpha=0.7, lw=1.2)
    right.set(
        xlabel="epoch", ylabel=f"{splits[0]} {label}", yscale="log", title="Learning, each seed"
    )
    right.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    for axis in (left, right):
        _plain_log(axis)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(len(labels), 7), frameon=False
    )
    save(figure, path)


def error_curve(curve: Mapping[str, Any], title: str, label: str, path: Path) -> None:
    """Errors against a number, one line a series, bars of one standard deviation.

    Args:
        curve: ``x``, the axis's label; ``log``; ``series``, points ``[x, mean, standard
            deviation]`` by name.
        title: above the picture.
        label: what the error is, with its unit.
        path: of the PNG.
    """
    figure, axis = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for index, (name, points) in enumerate(curve["series"].items()):
        x, means, stds = np.array(points, dtype=float).T
        style: dict[str, Any] = {"fmt": f"{'os^DvpX*h<'[index % 10]}-", "ms": 5, "capsize": 3}
        axis.errorbar(x, means, stds, label=name, color=_colour(index), **style)
    places = sorted({point[0] for points in curve["series"].values() for point in points})
    if curve["log"]:
        axis.set_xscale("log")
    axis.set_xticks(places, [f"{place:,g}" for place in places])
    axis.xaxis.set_minor_locator(ticker.NullLocator())
    axis.set(xlabel=curve["x"], ylabel=label, yscale="log", title=title)
    _plain_log(axis)
    axis.legend(frameon=False)
    save(figure, path)


def _plain_log(axis: Any) -> None:
    """Numbers such as 0.2 on a logarithmic y axis, not 2 x 10^-1."""
    axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axis.yaxis.set_minor_locator(ticker.LogLocator(subs=(2, 5)))
    axis.yaxis.set_minor_formatter(ticker.FormatStrFormatter("%g"))
    axis.grid(axis="y", which="both", color="0.9", lw=0.6)
    axis.set_axisbelow(True)


def _colour(index: int) -> str:
    """Okabe and Ito's palette, which the colour-blind tell apart, after a grey."""
    return (
        *("0.5", "#0072B2", "#D55E00", "#009E73", "#CC79A7"),
        *("#E69F00", "#56B4E9", "#000000", "#8C510A", "#999933"),
    )[index % 10]
