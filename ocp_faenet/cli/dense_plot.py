"""``ocp-faenet dense plot``: energy against configuration, the report's Figure 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from ocp_faenet.cli import dense_inputs as inputs
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.data import dense_tables as tables

_PATH = click.Path(path_type=Path)


@click.command("plot")
@click.option("--predictions", type=_PATH, required=True, multiple=True, help="Of `dense predict`.")
@click.option("--targets", type=_PATH, required=True, help="oc20dense_targets.pkl")
@click.option("--mapping", type=_PATH, required=True, help="oc20dense_mapping.pkl")
@click.option("--systems", help="By commas; the four with most configurations if absent.")
@click.argument("out", type=_PATH)
def plot(
    predictions: tuple[Path, ...], targets: Path, mapping: Path, systems: str | None, out: Path
) -> None:
    """Draw predicted and reference energies of every configuration of some systems to OUT (PNG).

    Configurations are in the order of their reference energies; the band is 0.1 eV above the
    minimum, and the ring is the configuration that the model would choose.
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
        names = sorted(known[system], key=lambda name, own=known[system]: (own[name], name))  # type: ignore[misc]
        reference = np.array([known[system][name] for name in names])
        model = np.array([predicted[system][name][0] for name in names])
        axes.axhspan(reference[0], reference[0] + 0.1, color="0.88")
        axes.plot(reference, "k.-", linewidth=1, label="reference")
        axes.plot(model, "x", color="#0072B2", label="predicted")
        best = int(model.argmin())
        ring: dict[str, Any] = {"color": "#D55E00", "markersize": 11, "fillstyle": "none"}
        axes.plot(best, model[best], "o", label="chosen", **ring)
        entry = next(each for each in places.values() if each.system_id == system)
        axes.set_title(f"{system}: {entry.adsorbate} on {entry.mpid}", fontsize=10)
        axes.set_xlabel("configuration")
        axes.set_ylabel("energy (eV)")
        if place == 1:
            axes.legend(fontsize=8)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.stem}.tmp.png")
    figure.savefig(temporary, dpi=130)
    temporary.replace(out)


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
