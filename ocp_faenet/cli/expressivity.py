"""``ocp-faenet expressivity``: which pairs of structures a network can tell apart."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.expressivity_report import markdown_of
from ocp_faenet.cli.output import machine_class, write_json
from ocp_faenet.geometry.counterexamples import (
    Pair,
    counterexamples,
    forked_chains,
    k_chains,
    twisted_ends,
)
from ocp_faenet.models.expressive_faenets import KINDS, faenet_subject
from ocp_faenet.models.expressivity import Subject, build, exactness, trained

PEERS = ("SchNet", "DimeNet++", "PaiNN")
#: Family -> its pairs for a range of k, and whether its pairs are trained on by default.
FAMILIES: dict[str, Callable[[range], list[Pair]]] = {
    "chain": lambda ks: [k_chains(k) for k in ks],
    "fork": lambda ks: [forked_chains(k) for k in ks],
    "fold": lambda ks: [twisted_ends(k) for k in ks],
    "other": lambda ks: counterexamples(),
}


@click.command(
    epilog="\b\nocp-faenet expressivity --json e.json --plot e.png\n"
    "ocp-faenet expressivity --families chain --largest 4 --seeds 3\n"
    'ocp-faenet expressivity --models "FAENet, 3D all" --models PaiNN --seeds 0'
)
@click.option("--models", multiple=True, help="Only these (repeat); all if absent.")
@click.option("--families", default="chain,fork,fold,other", show_default=True)
@click.option("--largest", type=click.IntRange(2), default=10, show_default=True,
              help="k of chains and forks, L of folds: from 2 up to this.")  # fmt: skip
@click.option("--layers", type=click.IntRange(1), default=6, show_default=True,
              help="Most layers that are tried.")  # fmt: skip
@click.option("--inits", type=click.IntRange(1), default=3, show_default=True,
              help="Random weights of the exact verdict.")  # fmt: skip
@click.option("--train", default="chain", show_default=True,
              help="Families on which networks are trained, none for none.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(0), default=10, show_default=True,
              help="Trained networks of a cell; 0 trains none.")  # fmt: skip
@click.option("--budget", type=click.IntRange(1), default=100, show_default=True,
              help="Steps of a training at most.")  # fmt: skip
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path),
              help="Write all numbers to this file; what it has already is kept.")  # fmt: skip
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Heat maps (PNG).")
@click.option("--into", type=click.Path(dir_okay=False, path_type=Path),
              help="Replace the tables in this document, between their markers.")  # fmt: skip
def expressivity(
    models: tuple[str, ...],
    families: str,
    largest: int,
    layers: int,
    inits: int,
    train: str,
    seeds: int,
    budget: int,
    json_path: Path | None,
    plot: Path | None,
    into: Path | None,
) -> None:
    """Fewest layers with which each network tells each pair of structures apart.

    Two verdicts: in exact arithmetic (float64, random weights: the energies of the pair differ by
    more than those of moved copies), and after training, when all seeds reach accuracy 1 within
    the budget. Pairs whose energies are equal for random weights are equal for all weights but a
    null set, and are not trained on. Needs no data set; without fairchem only FAENet is examined.
    """
    pairs = _pairs(families, largest)
    trained_families = set() if train == "none" or not seeds else set(_known(train, "--train"))
    settings = {"layers": layers, "inits": inits, "seeds": seeds, "budget": budget}
    found = _finished(json_path, settings)
    subjects = _subjects(models)
    report: dict[str, Any] = {
        "command": "ocp-faenet expressivity", "data": "none", "machine": machine_class(),
        **settings, "cells": [],
    }  # fmt: skip
    with tqdm(total=len(subjects) * len(pairs), desc="expressivity", file=sys.stderr) as bar:
        for name, make in subjects.items():
            examiner = Examiner(make, settings)
            for family, pair in pairs:
                want = family in trained_families
                cell = found.get((name, pair.name))
                if cell is None or (want and cell["trained"] is None and cell["at"] is not None):
                    cell = {"model": name, "family": family, **examiner.cell(pair, want)}
                found[name, pair.name] = cell
                report["cells"] = list(found.values())
                if json_path:
                    write_json(json_path, report)
                bar.update()
    click.echo(markdown_of(report))
    if plot:
        from ocp_faenet.cli.expressivity_plot import plot_layers

        plot_layers(report["cells"], plot)
    if into:
        from ocp_faenet.cli.study_report import insert

        try:
            page = insert(into.read_text(), "expressivity", markdown_of(report), kind="table")
        except (ValueError, OSError) as error:
            raise BadInputError(f"--into {into}: {error}") from error
        into.write_text(page)


class Examiner:
    """Both verdicts on the pairs, for one kind of network."""

    def __init__(self, make: Callable[[], Subject], settings: dict[str, int]) -> None:
        self.make, self.settings = make, settings
        self.subject: Subject | None = None
        self.networks: dict[int, list[Any]] = {}

    def cell(self, pair: Pair, want_training: bool) -> dict[str, Any]:
        """The fewest layers that separate ``pair``, and accuracies of training with them.

        ``at`` is ``None`` where no number of layers does; ``moves`` says that copies of one
        structure differ as well, so that the exact verdict says nothing.
        """
        subject = self.subject = self.subject or self.make()
        most = self.settings["layers"]
        result: dict[str, Any] = {"pair": pair.name, "at": None, "moves": False, "exact": []}
        for layers in range(1, most + 1):
            found = exactness(subject, self._random(subject, layers), pair)
            result["exact"].append(
                {"layers": layers, "gap": found.gap, "largest_gap": found.largest_gap,
                 "noise": found.noise}
            )  # fmt: skip
            result["moves"] = found.moves
            if found.separates or result["moves"]:
                result["at"] = layers
                break
        result["trained"] = None
        if want_training and result["at"] is not None:
            seeds, budget = self.settings["seeds"], self.settings["budget"]
            outcome = trained(subject, result["at"], pair, seeds, budget)
            result["trained"] = {"accuracy": outcome.accuracy, "steps": outcome.steps}
        return result

    def _random(self, subject: Subject, layers: int) -> list[Any]:
        if layers not in self.networks:
            seeds = range(self.settings["inits"])
            self.networks[layers] = [build(subject, layers, seed, shake=0.1) for seed in seeds]
        return self.networks[layers]


def _pairs(families: str, largest: int) -> list[tuple[str, Pair]]:
    chosen = _known(families, "--families")
    return [(family, pair) for family in chosen for pair in FAMILIES[family](range(2, largest + 1))]


def _known(families: str, option: str) -> list[str]:
    names = families.split(",")
    if unknown := [name for name in names if name not in FAMILIES]:
        raise BadInputError(f"{option} {unknown[0]!r}: the families are {', '.join(FAMILIES)}")
    return names


def _subjects(names: tuple[str, ...]) -> dict[str, Callable[[], Subject]]:
    known: dict[str, Callable[[], Subject]] = {name: partial(_faenet, name) for name in KINDS}
    if importlib.util.find_spec("fairchem") is not None:
        known |= {name: partial(_peer, name) for name in PEERS}
    if unknown := [name for name in names if name not in known]:
        raise BadInputError(f"--models {unknown[0]!r} is not known; one of: {'; '.join(known)}")
    return {name: make for name, make in known.items() if not names or name in names}


def _faenet(name: str) -> Subject:
    return faenet_subject(name, *KINDS[name])


def _peer(name: str) -> Subject:
    from ocp_faenet.adapters.expressive_peers import peer_subject

    return peer_subject(name)


def _finished(path: Path | None, settings: dict[str, int]) -> dict[tuple[str, str], Any]:
    """Cells of an earlier run with the same settings, by model and pair."""
    if path is None or not path.is_file():
        return {}
    try:
        report = json.loads(path.read_text())
        same = all(report[key] == value for key, value in settings.items())
        return {(c["model"], c["pair"]): c for c in report["cells"]} if same else {}
    except (ValueError, KeyError, TypeError) as error:
        raise BadInputError(
            f"--json {path}: exists and is no report of expressivity; name another file"
        ) from error
