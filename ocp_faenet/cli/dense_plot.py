"""``ocp-faenet dense plot``: energy against configuration, the report's Figure 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from ocp_faenet.cli import dense_inputs as inputs
from ocp_faenet.cli import dense_options as options
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.output import save_figure
from ocp_faenet.data import dense_tables as tables


@click.command("plot")
@options.PREDICTIONS
@options.TARGETS
@options.MAPPING
@click.option("--systems", help="By commas; the four with most configurations if absent.")
@click.argument("out", type=options.PATH)
def plot(
    predictions: tuple[Path, ...], targets: Path, mapping: Path, systems: str | None, out: Path
) -> None:
    """Draw predicted and reference energies of every configuration of some systems to OUT (PNG).

    Configurations are in the order of their reference energies; the band is 0.1 eV above the
    minimum, and the ring is the configuration that the model would choose.

    \b
    Example:
      ocp-faenet dense plot --predictions results/dense/id.npz \\
        --targets data/emt/demo/dense/oc20dense_targets.pkl \\
        --mapping data/emt/demo/dense/oc20dense_mapping.pkl figure5.png
    """
    try:
        known, places = tables.read_targets(targets), tables.read_mapping(mapping)
    except tables.DenseTableError as error:
        raise BadInputError(str(error)) from error
    predicted = inputs.read_energies(predictions, places)
    chosen = chosen_systems(systems, predicted, known)
    draw_energies(predicted, known, places, chosen, out)
    click.echo(f"{', '.join(chosen)}: {out}")


def draw_energies(
    predicted: inputs.Predicted,
    known: inputs.Targets,
    places: Mapping[str, tables.Placement],
    chosen: Sequence[str],
    out: Path,
) -> None:
    """A panel for each of the systems ``chosen``.

    Args:
        predicted: energies in eV by system and configuration.
        known: those of the reference.
        places: what each system is.
        chosen: systems, all of whose configurations have a prediction.
        out: of the PNG.

    Raises:
        BadInputError: a configuration has none.
    """
    inputs.refuse_missing(predicted, known, chosen, as_failures=False)
    from matplotlib.figure import Figure

    columns, rows = min(len(chosen), 2), -(-len(chosen) // 2)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows))
    for place, system in enumerate(chosen, 1):
        axes = figure.add_subplot(rows, columns, place)
        model = {name: energy for name, (energy, _) in predicted[system].items()}
        _draw(axes, known[system], model)
        entry = next(each for each in places.values() if each.system_id == system)
        axes.set_title(f"{system}: {entry.adsorbate} on {entry.mpid}", fontsize=10)
        if place == 1:
            axes.legend(fontsize=8)
    figure.tight_layout()
    save_figure(figure, out, dpi=130)


def _draw(axes: Any, targets: Mapping[str, float], predicted: Mapping[str, float]) -> None:
    """One system, its configurations in the order of their targets."""
    names = sorted(targets, key=lambda name: (targets[name], name))
    reference = np.array([targets[name] for name in names])
    model = np.array([predicted[name] for name in names])
    axes.axhspan(reference[0], reference[0] + 0.1, color="0.88")
    axes.plot(reference, "k.-", linewidth=1, label="reference")
    axes.plot(model, "x", color="#0072B2", label="predicted")
    best = int(model.argmin())
    ring: dict[str, Any] = {"color": "#D55E00", "markersize": 11, "fillstyle": "none"}
    axes.plot(best, model[best], "o", label="chosen", **ring)
    axes.set_xlabel("configuration")
    axes.set_ylabel("energy (eV)")


def chosen_systems(
    systems: str | None, predicted: inputs.Predicted, targets: inputs.Targets
) -> list[str]:
    """Those named, by commas, or the four with most configurations.

    Raises:
        BadInputError: one that has no predictions, or none that has.
    """
    there = sorted(set(predicted) & set(targets), key=lambda name: (-len(targets[name]), name))
    if not there:
        raise BadInputError("no system has both predictions and targets")
    if systems is None:
        return there[:4]
    asked = systems.split(",")
    if unknown := sorted(set(asked) - set(there)):
        raise BadInputError(f"--systems {unknown[0]}: predicted are {', '.join(there[:5])}, ...")
    return asked
