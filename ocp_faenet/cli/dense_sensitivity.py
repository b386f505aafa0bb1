"""``ocp-faenet dense sensitivity``: the energy as the adsorbate slides, rises and turns."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
from tqdm import tqdm

from ocp_faenet.cli import dense_options as options
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.output import machine_class, markdown_table, save_figure, write_json
from ocp_faenet.data import dense_moves as moves
from ocp_faenet.data.adsorbml_anomalies import anomalies
from ocp_faenet.data.dense_oracle import adsorption_energy, atoms_of, relax_from
from ocp_faenet.data.lmdb_io import LmdbError
from ocp_faenet.data.reader import open_lmdb
from ocp_faenet.data.schema import Fields
from ocp_faenet.metrics.sensitivity import Response, response

MOTIONS = ("slide", "lift", "turn")
Map = dict[str, np.ndarray[Any, Any]]


@click.command()
@click.argument("checkpoint", type=options.PATH)
@click.option("--data", type=options.PATH, required=True, help="LMDB of a split of `dense split`.")
@click.option("--systems", help="By commas; the first three of the LMDB if absent.")
@click.option("--grid", type=click.IntRange(min=2), default=6, show_default=True)
@click.option(
    "--reference",
    type=click.Choice(["relaxed", "single-point"]),
    default="relaxed",
    show_default=True,
    help="relaxed: what direct models predict. single-point: what S2EF models predict.",
)
@click.option("--json", "json_path", type=options.FILE, help="Write scores and maps to this file.")
@click.option("--plot", type=options.PATH, help="Draw the maps (PNG).")
def sensitivity(
    checkpoint: Path,
    data: Path,
    systems: str | None,
    grid: int,
    reference: str,
    json_path: Path | None,
    plot: Path | None,
) -> None:
    """Move the adsorbate rigidly and compare the model's energies with EMT's.

    It slides over the cell on a grid (as close to the slab as it was), is lifted by -0.2 to 1.6 Å
    and turned about the vertical, from the first configuration of each system.

    \b
    explained: 1 for EMT's own response, 0 for a model that does not answer, below 0 for one that
    answers wrongly; what a motion shares does not count. amplitude: of the response, over EMT's.

    \b
    Example:
      ocp-faenet dense sensitivity checkpoints/my-first-run/checkpoint.pt \\
        --data data/emt/demo/dense/splits/id/data.lmdb --plot maps.png --json maps.json
    """
    records = _records(data, systems)
    found: dict[str, dict[str, tuple[Map, Map]]] = {}
    left_out = 0
    for system, record in tqdm(records.items(), desc="systems", file=sys.stderr):
        try:
            places = {
                "slide": moves.slid(record, grid),
                "lift": moves.lifted(record),
                "turn": moves.turned(record, 2 * grid),
            }
            truth = {n: _reference(record, each, reference) for n, each in places.items()}
            model = _predicted(checkpoint, record, places)
        except ValueError as error:
            raise BadInputError(str(error)) from error
        left_out += sum(int(np.isnan(each).sum()) for each in truth.values())
        found[system] = {n: (model[n], truth[n]) for n in MOTIONS}
    scores = _scores(found)
    rows = [
        [n, f"{s.explained:.2f}", f"{s.amplitude:.2f}", f"{s.spread:.3f}", str(s.points)]
        for n, s in scores.items()
    ]
    click.echo(
        markdown_table(["motion", "explained", "amplitude", "EMT's spread eV", "points"], rows)
    )
    click.echo(f"{len(found)} systems; {left_out} points left out: EMT's relaxation is an anomaly")
    if json_path is not None:
        content: dict[str, Any] = {"scores": {n: vars(s) for n, s in scores.items()}}
        content |= {"reference": reference, "left_out": left_out, "machine": machine_class()}
        content["maps"] = {
            system: {
                n: {"predicted": _plain(pair[0]), "reference": _plain(pair[1])}
                for n, pair in own.items()
            }
            for system, own in found.items()
        }
        write_json(json_path, content)
    if plot is not None:
        _draw(found, plot)


def _records(data: Path, systems: str | None) -> dict[str, Fields]:
    """The first record of each system that is asked for."""
    first: dict[str, Fields] = {}
    try:
        with open_lmdb(data) as records:
            for record in records:
                if "system_id" not in record:
                    raise BadInputError(f"{data}: no system_id; split with: ocp-faenet dense split")
                first.setdefault(str(record["system_id"]), record)
    except LmdbError as error:
        raise BadInputError(str(error)) from error
    names = list(first)[:3] if systems is None else systems.split(",")
    if unknown := [name for name in names if name not in first]:
        raise BadInputError(f"--systems {unknown[0]}: {data} holds {', '.join(first)}")
    return {name: first[name] for name in names}


def _reference(record: Fields, places: Any, kind: str) -> Any:
    """EMT's adsorption energies, of the shape of ``places`` without atoms; NaN for anomalies."""
    flat = places.reshape(-1, *places.shape[-2:])
    start = atoms_of(record, flat[0])
    energies = []
    for positions in flat:
        if kind == "single-point":
            energies.append(adsorption_energy(record, positions))
            continue
        done = relax_from(record, positions)
        start.positions = positions
        odd = anomalies(start, atoms_of(record, done.positions), start.get_tags())
        energies.append(done.energy if done.converged and not odd else np.nan)
    return np.array(energies).reshape(places.shape[:-2])


def _predicted(checkpoint: Path, record: Fields, places: dict[str, Any]) -> dict[str, Any]:
    """The model's energies, likewise."""
    from ocp_faenet.adapters.dense_predict import at_positions
    from ocp_faenet.adapters.predictions import predict_lmdb
    from ocp_faenet.data.generate import write_folder

    flat = {n: each.reshape(-1, *each.shape[-2:]) for n, each in places.items()}
    every = np.concatenate(list(flat.values())).astype(np.float32)
    with tempfile.TemporaryDirectory(prefix="ocp_faenet-moves-") as folder:
        made = (at_positions({**record, "sid": k}, each) for k, each in enumerate(every))
        write_folder(Path(folder), made)
        out = predict_lmdb(checkpoint, Path(folder) / "data.lmdb", forces=False)
    order = np.argsort(out["ids"].astype(int))
    parts = np.split(out["energy"][order], np.cumsum([len(each) for each in flat.values()])[:-1])
    return {
        n: part.astype(np.float64).reshape(each.shape[:-2])
        for (n, each), part in zip(places.items(), parts, strict=True)
    }


def _scores(found: dict[str, dict[str, Any]]) -> dict[str, Response]:
    """By motion, and over all of them; a motion in which EMT never changes has none."""
    every: dict[str, list[Any]] = {n: [own[n] for own in found.values()] for n in MOTIONS}
    every["all"] = [pair for pairs in every.values() for pair in pairs]
    scores = {}
    for name, pairs in every.items():
        try:
            scores[name] = response(pairs)
        except ValueError:
            continue  # a lone atom turns into itself
    if "all" not in scores:
        raise BadInputError("EMT's energy changes along none of the motions; other --systems")
    return scores


def _plain(values: Any) -> Any:
    return [
        _plain(each) if isinstance(each, np.ndarray) else None if np.isnan(each) else float(each)
        for each in values
    ]


def _draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2.6 * len(found)))
    for row, (system, own) in enumerate(found.items()):
        model, truth = (each - np.nanmean(each) for each in own["slide"])
        limit = float(np.nanmax(np.abs(truth))) or 1.0
        for column, (name, values) in enumerate((("model", model), ("EMT", truth))):
            axes = figure.add_subplot(len(found), 4, 4 * row + column + 1)
            shown = axes.imshow(values.T, origin="lower", vmin=-limit, vmax=limit, cmap="RdBu_r")
            axes.set_title(f"{system}, slide: {name}", fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
            figure.colorbar(shown, ax=axes, shrink=0.8)
        for column, (name, grid) in enumerate((("lift", moves.HEIGHTS), ("turn", None))):
            axes = figure.add_subplot(len(found), 4, 4 * row + column + 3)
            x = np.linspace(0, 360, len(own[name][0]), endpoint=False) if grid is None else grid
            for values, style, label in zip(
                own[name], ("C0x-", "k.-"), ("model", "EMT"), strict=True
            ):
                axes.plot(x, values - np.nanmean(values), style, label=label, linewidth=1)
            axes.set_title(f"{system}, {name} ({'°' if grid is None else 'Å'})", fontsize=9)
            axes.legend(fontsize=7)
    figure.tight_layout()
    save_figure(figure, path, dpi=110)
