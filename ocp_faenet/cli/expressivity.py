"""``ocp-faenet expressivity``: which pairs of structures a network can tell apart."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from ocp_faenet.cli.documents import insert_into, with_table
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.expressivity_cells import finished
from ocp_faenet.cli.expressivity_report import markdown_of
from ocp_faenet.cli.options import FILE, TABLES_INTO
from ocp_faenet.cli.output import command_line, machine_class, write_json
from ocp_faenet.geometry.counterexamples import (
    Pair,
    counterexamples,
    forked_chains,
    k_chains,
    twisted_ends,
)
from ocp_faenet.models.expressive_faenets import KINDS, faenet_subject
from ocp_faenet.models.expressivity import METHOD, Subject, build, exactness, trained

PEERS = ("SchNet", "DimeNet++", "PaiNN")
#: Standard deviation of the noise on the random weights of the exact verdict: enough to move what
#: starts at zero, and no more, for what a deep PaiNN says of far ends is soon lost in rounding.
SHAKE = 0.15
#: Options that say where numbers go.
OUTPUTS = ("json_path", "plot", "into")
#: Family -> its pairs for a range of k.
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
@click.option("--train", default="fold,chain,other,fork", show_default=True,
              help="Families to train on, the first two first; none for none.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(0), default=10, show_default=True,
              help="Trained networks of a cell; 0 trains none.")  # fmt: skip
@click.option("--budget", type=click.IntRange(1), default=100, show_default=True,
              help="Steps of a training at most.")  # fmt: skip
@click.option("--json", "json_path", type=FILE,
              help="Write all numbers to this file; the command resumes from it.")  # fmt: skip
@click.option("--plot", type=FILE, help="Heat maps (PNG).")
@TABLES_INTO
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
    order = [] if train == "none" or not seeds else _known(train, "--train")
    settings = {"layers": layers, "inits": inits, "seeds": seeds, "budget": budget}
    stamp = {"command": command_line(OUTPUTS), **settings, "shake": SHAKE, **METHOD}
    machine, found = finished(json_path, stamp)
    if into is not None:
        with_table(into, "expressivity", "")  # before anything is looked at
    subjects = _subjects(models)
    report: dict[str, Any] = {**stamp, "data": "none", "machine": machine, "cells": []}
    examiners = {name: Examiner(name, make, settings) for name, make in subjects.items()}
    work = [(name, family, pair) for family, pair in pairs for name in examiners]
    later = [
        (name, family, pair)
        for families in (order[:2], order[2:])
        for name in examiners
        for family in families
        for of, pair in pairs
        if of == family
    ]
    with tqdm(total=len(work) + len(later), desc="expressivity", file=sys.stderr) as bar:
        for name, family, pair in work:
            if (name, pair.name) not in found:
                found[name, pair.name] = examiners[name].look(family, pair)
                _here(report)
            _keep(report, found, json_path)
            bar.update()
        # Where the pose matters networks have most to learn, and the least to say.
        for name, _, pair in sorted(later, key=lambda item: found[item[0], item[2].name]["moves"]):
            cell = found[name, pair.name]
            if cell["trained"] is None and cell["at"] is not None:
                cell["trained"] = examiners[name].train(pair, cell["at"])
                _here(report)
                _keep(report, found, json_path)
            bar.update()
    click.echo(markdown_of(report))
    if plot:
        from ocp_faenet.cli.expressivity_plot import plot_layers

        plot_layers(report["cells"], plot)
    if into:
        insert_into(into, "expressivity", markdown_of(report))


class Examiner:
    """Both verdicts on the pairs, for one kind of network."""

    def __init__(self, name: str, make: Callable[[], Subject], settings: dict[str, int]) -> None:
        self.name, self.make, self.settings = name, make, settings
        self.networks: dict[int, list[Any]] = {}

    @cached_property
    def subject(self) -> Subject:
        """Made when it is needed: some load the host."""
        return self.make()

    def look(self, family: str, pair: Pair) -> dict[str, Any]:
        """The fewest layers that separate ``pair`` in exact arithmetic.

        ``at`` is ``None`` where no number of layers does; ``moves`` says that copies of one
        structure differ as well, so that the verdict says nothing, ``overflow`` that energies of
        deeper networks are not finite.
        """
        result: dict[str, Any] = {
            "model": self.name, "family": family, "pair": pair.name, "at": None, "moves": False,
            "overflow": False, "exact": [], "trained": None,
        }  # fmt: skip
        for layers in range(1, self.settings["layers"] + 1):
            found = exactness(self.subject, self._random(layers), pair)
            if not found.finite:
                result["overflow"] = True
                break
            result["exact"].append(
                {"layers": layers, "gap": found.gap, "largest_gap": found.largest_gap,
                 "noise": found.noise}
            )  # fmt: skip
            result["moves"] = found.moves
            if found.separates or result["moves"]:
                result["at"] = layers
                break
        return result

    def train(self, pair: Pair, layers: int) -> dict[str, Any]:
        """Accuracies of networks that learned to tell ``pair`` apart, and their steps."""
        seeds, budget = self.settings["seeds"], self.settings["budget"]
        outcome = trained(self.subject, layers, pair, seeds, budget)
        return {"accuracy": list(outcome.accuracy), "steps": list(outcome.steps)}

    def _random(self, layers: int) -> list[Any]:
        if layers not in self.networks:
            seeds = range(self.settings["inits"])
            self.networks[layers] = [
                build(self.subject, layers, seed, shake=SHAKE) for seed in seeds
            ]
        return self.networks[layers]


def _here(report: dict[str, Any]) -> None:
    """This machine among those that the numbers are of."""
    if machine_class() not in report["machine"].split("; "):
        report["machine"] = "; ".join(filter(None, [report["machine"], machine_class()]))


def _keep(report: dict[str, Any], cells: dict[tuple[str, str], Any], path: Path | None) -> None:
    report["cells"] = list(cells.values())
    if path:
        write_json(path, report)


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
