"""What the report's figures look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from ase.data import chemical_symbols, covalent_radii

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.patches import Circle

from ocp_faenet.cli.pictures import WIDTH, plain, save
from ocp_faenet.cli.report_ewald import ALPHA, K_CUTOFF, R_CUTOFF
from ocp_faenet.geometry import ewald_split

#: Okabe and Ito's palette, which the colour-blind tell apart.
BLUE, RED, GREEN, PURPLE, ORANGE, SKY = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
)  # fmt: skip
FILLS = (SKY, ORANGE, GREEN, PURPLE, "#F0E442", RED, BLUE, "0.4")
#: Drawn radius of an atom over its covalent one.
SHRINK = 0.75
#: Å: hydrogen is drawn larger, so that its symbol fits.
LEAST = 0.42
#: At most so many on a curve.
MARKS = 20
#: By how much of their distance from the adsorbate's middle symbols are moved outwards.
APART = 0.35


def frames_picture(structure: Mapping[str, Any], path: Path) -> None:
    """The structure from above with its axes, and in each of its frames.

    Args:
        structure: of `report_frames.framed`.
        path: of the PNG.
    """
    count = len(structure["frames"])
    columns = max(2, -(-count // 2))
    figure = plt.figure(figsize=(WIDTH, 4.0), layout="constrained")
    grid = figure.add_gridspec(2, columns + 2)
    centre = structure["positions"].mean(0)
    main = figure.add_subplot(grid[:, :2])
    _atoms(main, structure["positions"] - centre, structure)
    _cell(main, structure)
    _symbols(main, structure["positions"] - centre, structure)
    _axes(main, structure)
    main.set(xlabel="x (Å)", ylabel="y (Å)", title="The structure and its axes")
    for number, posed in enumerate(structure["posed"]):
        axis = figure.add_subplot(grid[number // columns, 2 + number % columns])
        _atoms(axis, posed, structure)
        first, second = _signs(structure["frames"][number], structure["frames"][0])
        axis.set_xlabel(f"along {first}u₁ (Å)")
        axis.set_ylabel(f"along {second}u₂ (Å)")
        axis.set_title(f"Frame {number + 1}", fontsize=10)
    figure.legend(handles=_species(structure), loc="outside lower center", ncols=8, frameon=False)
    save(figure, path)


def _signs(frame: Any, first: Any) -> tuple[str, str]:
    """How the two axes in the plane are to those of the first frame."""
    same = (frame * first).sum(0)[:2] > 0
    return tuple("+" if each else "−" for each in same)  # type: ignore[return-value]


def _atoms(axis: Any, positions: Any, structure: Mapping[str, Any]) -> None:
    """Circles from the lowest atom to the highest; subsurface atoms are pale."""
    numbers, tags = structure["numbers"], structure["tags"]
    colours = _colours(numbers)
    for place in np.argsort(positions[:, 2], kind="stable"):
        number, tag = int(numbers[place]), int(tags[place])
        radius = max(SHRINK * covalent_radii[number], LEAST)
        edge = {0: "0.75", 1: "0.25", 2: "black"}[tag]
        shape = Circle(
            tuple(positions[place, :2]), radius, facecolor=colours[number], edgecolor=edge,
            alpha=0.35 if tag == 0 else 1.0, lw=2.0 if tag == 2 else 0.8,
        )  # fmt: skip
        axis.add_patch(shape)
    low, high = positions[:, :2].min(0) - 1.6, positions[:, :2].max(0) + 1.6
    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    axis.set_aspect("equal")


def _symbols(axis: Any, positions: Any, structure: Mapping[str, Any]) -> None:
    """Of the adsorbate's atoms: above all circles, and away from those that lie beside them."""
    mine = np.flatnonzero(np.asarray(structure["tags"]) == 2)
    middle = positions[mine, :2].mean(0)
    for place in mine:
        axis.annotate(
            chemical_symbols[int(structure["numbers"][place])],
            positions[place, :2] + APART * (positions[place, :2] - middle),
            ha="center", va="center", fontsize=8, weight="bold", zorder=9,
        )  # fmt: skip


def _cell(axis: Any, structure: Mapping[str, Any]) -> None:
    a, b = structure["cell"][:2, :2]
    centre = structure["positions"].mean(0)[:2]
    corners = np.array([0 * a, a, a + b, b, 0 * a]) - centre
    axis.plot(*corners.T, color="0.5", lw=1, ls="--", zorder=0.9)  # below all atoms
    points = np.concatenate(
        [corners, structure["positions"][:, :2] - structure["positions"].mean(0)[:2]]
    )
    low, high = points.min(0) - 1.4, points.max(0) + 1.4
    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))


def _axes(axis: Any, structure: Mapping[str, Any]) -> None:
    """Arrows along the principal axes of the plane, as long as twice the spread."""
    for name, colour, column in (("u₁", BLUE, 0), ("u₂", RED, 1)):
        tip = 2 * structure["spread"][column] * structure["frames"][0][:2, column]
        style = {"arrowstyle": "<|-|>", "color": colour, "lw": 2.2, "mutation_scale": 16}
        axis.annotate("", xy=tip, xytext=-tip, arrowprops=style, zorder=10)
        axis.annotate(
            name, 1.18 * tip, color=colour, fontsize=13, weight="bold", ha="center", va="center",
            zorder=11, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8},
        )  # fmt: skip


def _colours(numbers: Any) -> dict[int, str]:
    """A colour for each species, the heaviest first."""
    species = sorted(set(map(int, numbers)), reverse=True)
    return {number: FILLS[place % len(FILLS)] for place, number in enumerate(species)}


def _species(structure: Mapping[str, Any]) -> list[Any]:
    """Keys of the legend: every element, pale atoms, the cell."""
    dot: dict[str, Any] = {"marker": "o", "ls": "", "ms": 9}
    handles = [
        Line2D([], [], mfc=colour, mec="0.25", label=chemical_symbols[number], **dot)
        for number, colour in _colours(structure["numbers"]).items()
    ]
    if (np.asarray(structure["tags"]) == 0).any():
        handles.append(Line2D([], [], mfc="0.9", mec="0.75", label="pale: subsurface", **dot))
    return [*handles, Line2D([], [], color="0.5", ls="--", lw=1, label="cell")]


def split_picture(
    cutoffs: Sequence[float], plain: Sequence[float], divided: Sequence[float], path: Path
) -> None:
    """1/r and its parts in both spaces, and errors of rock salt's energy against the cutoff.

    Args:
        cutoffs: Å.
        plain: relative errors with 1/r cut off there.
        divided: with the short-range part cut off there, the long-range one in Fourier space.
        path: of the PNG.
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(WIDTH, 4.2), layout="constrained")
    r = torch.linspace(0.02, 9.0, 450, dtype=torch.float64)
    left.plot(r, 1 / r, color="black", lw=1.6, label="1/r")
    left.plot(
        r, ewald_split.short_range(r, ALPHA), color=BLUE, lw=2, ls="--", label="erfc(αr)/r, short"
    )
    left.plot(
        r, ewald_split.long_range(r, ALPHA), color=RED, lw=2, ls="-.", label="erf(αr)/r, long"
    )
    left.axvline(R_CUTOFF, color="0.5", lw=1)
    left.annotate("cutoff", (R_CUTOFF + 0.1, 0.62), color="0.35", rotation=90)
    left.set(xlabel="r (Å)", ylabel="interaction (Å⁻¹)", ylim=(0, 1.4), title="Real space")
    k = torch.linspace(0.05, 4.5, 400, dtype=torch.float64)
    whole, long = ewald_split.coulomb_transform(k), ewald_split.long_range_transform(k, ALPHA)
    middle.plot(k, whole, color="black", lw=1.6, label="4π/k²")
    middle.plot(k, whole - long, color=BLUE, lw=2, ls="--", label="short")
    middle.plot(k, long, color=RED, lw=2, ls="-.", label="long, × exp(−k²/4α²)")
    middle.axvline(K_CUTOFF, color="0.5", lw=1)
    middle.annotate("cutoff", (K_CUTOFF + 0.05, 30.0), color="0.35", rotation=90)
    middle.set(
        xlabel="k (Å⁻¹)", ylabel="transform (Å²)", yscale="log", ylim=(1e-6, 1e4),
        title="Fourier space",
    )  # fmt: skip
    right.plot(cutoffs, plain, "o-", ms=3, color="black", lw=1, label="1/r cut off")
    resolved = np.maximum(divided, np.finfo(float).eps)  # nought has no place on this axis
    right.plot(cutoffs, resolved, "s-", ms=3, color=GREEN, lw=1, label="both parts cut off")
    right.set(
        xlabel="cutoff in real space (Å)", ylabel="relative error", yscale="log",
        title="Energy of rock salt",
    )  # fmt: skip
    right.set_xticks(range(4, 15, 2))
    for axis in (left, middle, right):
        axis.grid(color="0.92", lw=0.6)
        axis.set_axisbelow(True)
        # Below the panel: inside, a curve or the cutoff would run through it.
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize=9)
    save(figure, path)


def filters_picture(k: Sequence[float], filters: Sequence[Sequence[float]], path: Path) -> None:
    """Filters ``(L, K)`` of each layer against ``k`` (Å⁻¹), each over its largest value."""
    figure, axis = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    colours = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY)
    for layer, values in enumerate(filters):
        style = ("-", "--", "-.", ":")[layer % 4]
        scaled = np.array(values) / max(max(values), 1e-12)
        axis.plot(k, scaled, style, lw=2, color=colours[layer % 6], label=f"layer {layer + 1}")
    gauss = np.exp(-(np.array(k) ** 2) / (4 * ALPHA**2))
    axis.plot(k, gauss, ":", color="0.4", lw=1.6, label="exp(−k²/4α²)")
    axis.set(xlabel="k (Å⁻¹)", ylabel="filter, relative", ylim=(0, 1.05))
    axis.grid(color="0.92", lw=0.6)
    axis.set_axisbelow(True)
    axis.legend(frameon=False)
    save(figure, path)


def curves_picture(panels: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Errors against epochs, a panel for each improvement.

    Args:
        panels: ``title``, ``label`` of the error, and ``lines``: ``label``, ``train`` and ``val``
            points ``(epoch, error)``, means over seeds.
        path: of the PNG.
    """
    width = min(max(4.3 * len(panels), 6.4), WIDTH)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(width, 4.2), layout="constrained", squeeze=False
    )
    for axis, panel in zip(axes.flat, panels, strict=True):
        for colour, marker, line in zip((BLUE, RED), "os", panel["lines"], strict=True):
            if line["train"]:
                axis.plot(*np.array(line["train"]).T, "--", color=colour, lw=1.2, alpha=0.8)
            if line["val"]:
                form = f"{marker}-" if len(line["val"]) > 1 else marker
                axis.plot(
                    *np.array(line["val"]).T, form, color=colour, lw=1.8, ms=4,
                    markevery=-(-len(line["val"]) // MARKS), label=plain(line["label"]),
                )  # fmt: skip
        if any(line["train"] for line in panel["lines"]):
            axis.plot([], [], "--", color="0.4", lw=1.2, label="training set")
        axis.set(xlabel="epoch", ylabel=panel["label"], yscale="log", title=panel["title"])
        axis.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        axis.yaxis.set_minor_locator(mpl.ticker.LogLocator(subs=(1.5, 2, 3, 5, 7)))
        axis.yaxis.set_minor_formatter(mpl.ticker.FormatStrFormatter("%g"))
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        axis.grid(color="0.92", lw=0.6, which="both", axis="y")
        axis.set_axisbelow(True)
        axis.legend(frameon=False)
    save(figure, path)
