"""Pictures of a study, as PNG."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib import ticker

from ocp_faenet.cli.output import save_figure

Points = Sequence[tuple[float, float]]
#: Inches: at the 800 pixels of a README, letters of 10 points are 14 pixels high.
WIDTH = 8.0
#: So many models leave room for the range of their seeds.
FEW = 4
MARKERS = "os^DvpX*h<"


def plain(label: str) -> str:
    """``label`` of a table without its Markdown, which a picture would show."""
    return label.replace("`", "")


def save(figure: Any, path: Path) -> None:
    """Write a figure (`save_figure`) and forget it."""
    try:
        save_figure(figure, path, dpi=150)
    finally:
        plt.close(figure)


def loss_curve(train: Points, val: Points, steps_per_epoch: float, path: Path) -> None:
    """Training loss (normalised energies, running mean) and val_id MAE (eV) against epochs."""
    figure, axis = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    steps, losses = np.array(train).T
    width = max(int(steps_per_epoch), 1)
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    axis.plot(steps[width - 1 :] / steps_per_epoch, smooth, color=colour(1), label="training loss")
    axis.set(xlabel="epoch", ylabel="training loss (MAE, normalised energy)", yscale="log")
    twin = axis.twinx()
    val_steps, val_mae = np.array(val).T
    twin.plot(val_steps / steps_per_epoch, val_mae, "o-", ms=3, color=colour(2), label="val_id MAE")
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


def learning_curves(
    results: Iterable[Mapping[str, Any]], metric: str, labels: Mapping[str, str]
) -> dict[str, list[Points]]:
    """By label, for each seed: the error of every validation in training against epochs.

    Args:
        results: of runs; those whose training had no validation are in no curve.
        metric: of the host's evaluator.
        labels: by the name of a run, which stands for itself where it has none.
    """
    curves: dict[str, list[Points]] = {}
    for result in results:
        per_epoch = np.ceil(result["train_size"] / result["batch_size"])
        logged = result["curves"].get(f"val/{metric}", ())
        if points := [(step / per_epoch, error) for step, error in logged]:
            curves.setdefault(labels.get(result["name"], result["name"]), []).append(points)
    return curves


def comparison(
    errors: Mapping[str, Mapping[str, tuple[float, float]]],
    curves: Mapping[str, Sequence[Points]],
    path: Path,
    label: str = "MAE (eV)",
) -> None:
    """Errors by split (with one standard deviation) and on the first split against epochs.

    Args:
        errors: model, then split: mean and standard deviation of the error.
        curves: of `learning_curves`; without any there is no such panel.
        path: of the PNG.
        label: what the error is, with its unit.
    """
    rows = -(-len(errors) // _legend_columns(errors))
    figure, axes = plt.subplots(
        1, 2 if curves else 1, figsize=(WIDTH, 3.5 + 0.22 * rows), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    left = axes[0, 0]
    splits = list(next(iter(errors.values())))
    _by_split(left, errors, splits, label)
    if curves:
        right = axes[0, 1]
        for index, model in enumerate(errors):
            _learning(right, curves.get(model, ()), index, alone=len(errors) <= FEW)
        right.set(xlabel="epoch", ylabel=f"{splits[0]} {label}", yscale="log", title="Learning")
        right.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    for axis in axes.flat:
        _plain_log(axis)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=_legend_columns(errors), frameon=False
    )
    save(figure, path)


def _by_split(
    axis: Any,
    errors: Mapping[str, Mapping[str, tuple[float, float]]],
    splits: Sequence[str],
    label: str,
) -> None:
    """The models of ``errors`` beside each other, with one standard deviation."""
    step = min(0.16, 0.85 / len(errors))
    for index, (model, by_split) in enumerate(errors.items()):
        means, stds = np.array([by_split[split] for split in splits]).T
        place = np.arange(len(splits)) + (index - (len(errors) - 1) / 2) * step
        style = {"fmt": MARKERS[index % 10], "ms": 5, "capsize": 2, "color": colour(index)}
        axis.errorbar(place, means, stds, label=plain(model), **style)
    axis.set_xticks(range(len(splits)), [split.replace("val_", "") for split in splits])
    axis.set(ylabel=label, yscale="log", title="Validation splits")
    lowest = min(mean for by_split in errors.values() for mean, _ in by_split.values())
    axis.set_ylim(bottom=max(axis.get_ylim()[0], 0.6 * lowest))  # a bar may reach below zero


def _learning(axis: Any, curves: Sequence[Points], index: int, *, alone: bool) -> None:
    """The mean over seeds, with the range between them where there are ``FEW`` models."""
    if not curves:
        return
    shortest = min(len(points) for points in curves)
    every = np.array([list(points)[:shortest] for points in curves])  # (seeds, epochs, 2)
    epochs, values = every[0, :, 0], every[:, :, 1]
    often = max(1, shortest // 6)
    axis.plot(
        epochs, values.mean(0), f"{MARKERS[index % 10]}-", ms=4, markevery=(index % often, often),
        lw=1.4, color=colour(index),
    )  # fmt: skip
    if alone and len(curves) > 1:
        axis.fill_between(
            epochs, values.min(0), values.max(0), color=colour(index), alpha=0.15, lw=0
        )


def _legend_columns(labels: Iterable[str]) -> int:
    """As many as fit beside each other: a letter is about 0.075 inches wide."""
    widths = [0.5 + 0.075 * len(label) for label in labels]
    return max(1, min(len(widths), int(WIDTH / max(widths))))


def error_curve(curve: Mapping[str, Any], title: str, label: str, path: Path) -> None:
    """Errors against a number, one line a series, bars of one standard deviation.

    Args:
        curve: ``x``, the axis's label; ``log``; ``series``, points ``[x, mean, standard
            deviation]`` by name.
        title: above the picture.
        label: what the error is, with its unit.
        path: of the PNG.
    """
    figure, axis = plt.subplots(figsize=(6.4, 4.3), layout="constrained")
    for index, (name, points) in enumerate(curve["series"].items()):
        x, means, stds = np.array(points, dtype=float).T
        style: dict[str, Any] = {"fmt": f"{MARKERS[index % 10]}-", "ms": 5, "capsize": 3}
        axis.errorbar(x, means, stds, label=plain(name), color=colour(index), **style)
    places = sorted({point[0] for points in curve["series"].values() for point in points})
    if curve["log"]:
        axis.set_xscale("log")
    axis.set_xticks(places, [f"{place:,g}" for place in places])
    axis.xaxis.set_minor_locator(ticker.NullLocator())
    axis.set(xlabel=curve["x"], ylabel=label, yscale="log", title=title)
    _plain_log(axis)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)  # never on a line
    save(figure, path)


def _plain_log(axis: Any) -> None:
    """Numbers such as 0.2 on a logarithmic y axis, not 2 x 10^-1."""
    axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axis.yaxis.set_minor_locator(ticker.LogLocator(subs=(1.5, 2, 3, 5, 7)))
    axis.yaxis.set_minor_formatter(ticker.FormatStrFormatter("%g"))
    axis.grid(axis="y", which="both", color="0.9", lw=0.6)
    axis.set_axisbelow(True)


def colour(index: int) -> str:
    """Okabe and Ito's palette, which the colour-blind tell apart, after a grey."""
    return (
        *("0.5", "#0072B2", "#D55E00", "#009E73", "#CC79A7"),
        *("#E69F00", "#56B4E9", "#000000", "#8C510A", "#999933"),
    )[index % 10]
