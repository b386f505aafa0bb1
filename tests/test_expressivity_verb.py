"""The verb that says which pairs networks tell apart, and what it published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ocp_faenet.cli import expressivity as verb
from ocp_faenet.cli import main
from ocp_faenet.cli.expressivity_report import text_of
from ocp_faenet.geometry.counterexamples import (
    forked_chains,
    k_chains,
    twisted_ends,
)
from ocp_faenet.models.expressive_faenets import KINDS, all_faenets
from ocp_faenet.models.expressivity import (
    METHOD,
    build,
    exactness,
)

FAMILIES = (k_chains, forked_chains, twisted_ends)


FAENETS = all_faenets()


def run(*args):
    return CliRunner().invoke(main, ["expressivity", *map(str, args)])


def test_from_the_command_to_the_document(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("<!-- table:expressivity -->\nobsolete\n<!-- /table:expressivity -->\n")
    report = tmp_path / "e.json"
    args = ("--models", "FAENet, 3D all", "--models", "FAENet, 3D all, no graph norm")
    args += ("--families", "chain,fork", "--largest", 2, "--layers", 1, "--inits", 1)
    args += ("--seeds", 1, "--train", "chain", "--json", report)
    done = run(*args, "--plot", tmp_path / "e.png", "--into", page)
    assert done.exit_code == 0, done.output
    cells = json.loads(report.read_text())["cells"]
    texts = {(cell["model"], cell["pair"]): text_of(cell) for cell in cells}
    assert texts["FAENet, 3D all", "chain 2"] == "**1**"
    assert texts["FAENet, 3D all", "fork 2"] == "1"
    assert texts["FAENet, 3D all, no graph norm", "fork 2"] == "-"
    assert "| FAENet, 3D all                | **1** |" in page.read_text()
    assert "obsolete" not in page.read_text()
    assert (tmp_path / "e.png").stat().st_size > 10_000
    for what in ("look", "train"):
        monkeypatch.setattr(verb.Examiner, what, lambda *_: pytest.fail("done again"))
    assert run(*args).exit_code == 0
    assert json.loads(report.read_text())["cells"] == cells
    assert json.loads(report.read_text())["command"] == (
        "ocp-faenet expressivity --models 'FAENet, 3D all' --models 'FAENet, 3D all, no graph norm'"
        " --families chain,fork --largest 2 --layers 1 --inits 1 --train chain --seeds 1"
    )
    other = run(*args, "--budget", 50)
    assert other.exit_code == 2
    assert "holds cells with another command, budget" in other.output
    assert json.loads(report.read_text())["cells"] == cells


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--models", "FAENet, 4D"), "'FAENet, 4D' is not known"),
        (("--families", "chain,ring"), "'ring': the families are chain, fork"),
        (("--train", "ring"), "--train 'ring'"),
    ],
)
def test_bad_input_is_one_line(args, message):
    done = run(*args)
    assert done.exit_code == 2
    assert message in done.output


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """What a short command left: its arguments and its report."""
    path = tmp_path_factory.mktemp("small") / "e.json"
    args = ("--models", "FAENet, 3D det", "--families", "chain", "--largest", 2, "--inits", 1)
    args += ("--train", "none")
    assert run(*args, "--json", path).exit_code == 0
    return args, json.loads(path.read_text())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda report: [1],
        lambda report: {**report, "cells": [{"model": "FAENet, 3D det", "pair": "chain 2"}]},
        lambda report: {**report, "cells": [{**report["cells"][0], "at": "x"}]},
        lambda report: {key: value for key, value in report.items() if key != "cells"},
    ],
    ids=["something else", "half a cell", "a word for a number", "no cells"],
)
def test_a_file_of_something_else_is_not_overwritten(spoil, small, tmp_path):
    args, report = small
    other = tmp_path / "other.json"
    other.write_text(json.dumps(spoil(report)))
    before = other.read_bytes()
    done = run(*args, "--json", other)
    assert done.exit_code == 2
    assert "is no report of expressivity" in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert other.read_bytes() == before


def test_cells_of_another_way_of_judging_are_not_taken_over(small, tmp_path, monkeypatch):
    args, report = small
    path = tmp_path / "e.json"
    path.write_text(json.dumps(report))
    monkeypatch.setattr(verb, "METHOD", {**METHOD, "rounding": 1.0})
    done = run(*args, "--json", path)
    assert done.exit_code == 2
    assert "holds cells with another rounding" in done.output


def test_the_machine_is_that_of_the_numbers(small, tmp_path, monkeypatch):
    args, report = small
    path = tmp_path / "e.json"
    path.write_text(json.dumps(report))
    monkeypatch.setattr(verb, "machine_class", lambda: report["machine"][1:])  # part of its name
    assert run(*args, "--json", path).exit_code == 0
    assert json.loads(path.read_text())["machine"] == report["machine"]
    path.write_text(json.dumps({**report, "cells": []}))
    assert run(*args, "--json", path).exit_code == 0
    assert (
        json.loads(path.read_text())["machine"] == f"{report['machine']}; {report['machine'][1:]}"
    )


def test_a_document_without_its_place_is_refused_before_the_work(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("no place\n")
    monkeypatch.setattr(verb.Examiner, "look", lambda *_: pytest.fail("looked"))
    done = run("--into", page)
    assert done.exit_code == 2
    assert "no lines <!-- table:expressivity -->" in done.output


def test_energies_that_are_not_finite_say_nothing():
    subject = FAENETS["FAENet, 3D det"]
    networks = [build(subject, 1, 0)]
    with torch.no_grad():
        next(networks[0].parameters()).fill_(float("inf"))
    found = exactness(subject, networks, k_chains(2))
    assert not found.finite
    assert not found.separates


def test_marks_of_a_cell():
    cell = {"moves": False, "at": 2, "overflow": False, "trained": {"accuracy": [1.0, 0.5]}}
    assert text_of(cell) == "2*"
    assert text_of({**cell, "moves": True}) == "(0.50)"
    assert text_of({**cell, "moves": True, "trained": None}) == "pose"
    assert text_of({**cell, "at": None, "trained": None}) == "-"
    assert text_of({**cell, "at": None, "overflow": True, "trained": None}) == "overflow"


#: Rounds of messages that the host's models need for the counter-examples; ``None``: never enough.
OTHERS: dict[str, dict[str, int | None]] = {
    "SchNet": dict.fromkeys(
        ("distances", "distances, all pairs", "angles", "tetrahedra", "mirror images")
    ),
    # Angles between the bonds of an edge's ends, those of each bond apart.
    "DimeNet++": {
        "distances": 1, "distances, all pairs": 1, "angles": 1, "tetrahedra": 1,
        "mirror images": None,
    },
    # Vectors: their lengths in the first layer, products of two of them in the second.
    "PaiNN": {
        "distances": 1, "distances, all pairs": 1, "angles": 2, "tetrahedra": 2,
        "mirror images": None,
    },
}  # fmt: skip
#: Cells that are told apart in exact arithmetic and not learned by every seed in the budget.
NOT_LEARNED = {
    ("PaiNN", "chain 8"),
    ("PaiNN", "fork 10"),
    *(("FAENet, 3D all, no graph norm", f"fork {k}") for k in (8, 9, 10)),
    ("FAENet, 3D all, no graph norm", "fold 9"),
    ("FAENet, 2D all", "fold 9"),
    *((f"FAENet, 2D {method}", f"fold {k}") for method in ("det", "learned") for k in (7, 9)),
    *(("FAENet, 2D stochastic", f"fold {k}") for k in (3, 5, 7, 9, 10)),
    *((f"FAENet, {kind}", "tetrahedra")
      for kind in ("3D stochastic", "3D se3-stochastic", "2D stochastic", "2D se3-stochastic")),
    ("FAENet, 3D se3-stochastic", "mirror images"),
}  # fmt: skip


def theory(model: str, family: str, pair: str) -> int | None:
    """Fewest layers by hand: what one round of messages, and a frame of all atoms, can carry."""
    if family == "other" and model in OTHERS:
        return OTHERS[model][pair]
    if pair == "mirror images":  # congruent: only frames without reflections tell them apart
        return 1 if "se3-" in model else None
    local = 0 if family == "other" else int(pair.split()[-1]) // 2 + 1
    if model in ("SchNet", "DimeNet++"):
        return None  # distances and angles of bonds say nothing of the other end
    if model == "PaiNN":  # vectors go along the row; of an L-fold end nothing of order one does
        return None if family == "fold" else local
    if model == "FAENet, 3D all, no graph norm" and family == "fork":
        return local
    return 1


@pytest.fixture(scope="module")
def published():
    path = Path(__file__).parents[1] / "docs" / "results" / "expressivity.json"
    return json.loads(path.read_text())


def test_published_verdicts_are_those_of_theory(published):
    assert published["command"] == "ocp-faenet expressivity", "from one command, its defaults"
    stamp = {"shake": verb.SHAKE, **METHOD}
    assert {key: published[key] for key in stamp} == stamp
    names = [*KINDS, *verb.PEERS]
    assert {cell["model"] for cell in published["cells"]} == set(names)
    assert len(published["cells"]) == len(names) * (3 * 9 + 5)
    for cell in published["cells"]:
        if cell["model"] == "FAENet, no frames":
            assert cell["moves"], cell["pair"]
            continue
        expected = theory(cell["model"], cell["family"], cell["pair"])
        assert cell["at"] == expected, (cell["model"], cell["pair"])


def test_published_networks_learn_what_can_be_told_but_for_the_cells_that_the_page_names(published):
    cells = [cell for cell in published["cells"] if cell["at"] is not None and not cell["moves"]]
    accuracy = {(cell["model"], cell["pair"]): cell["trained"]["accuracy"] for cell in cells}
    assert {len(seeds) for seeds in accuracy.values()} == {10}
    assert {cell for cell, seeds in accuracy.items() if min(seeds) < 1} == NOT_LEARNED


@pytest.mark.parametrize("method", ["all", "stochastic", "det"])
def test_the_claim_of_the_report(method, published):
    """FAENet passes both tests with one layer, under full and under stochastic averaging."""
    found = {
        cell["pair"]: (cell["at"], min(cell["trained"]["accuracy"]))
        for cell in published["cells"]
        if cell["model"] == f"FAENet, 3D {method}" and cell["family"] in ("chain", "fold")
    }
    assert found == {
        f"{family} {k}": (1, 1.0) for family in ("chain", "fold") for k in range(2, 11)
    }
