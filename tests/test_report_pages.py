"""Sections of the report join those that are there; nothing good is lost (--out and --into)."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from ocp_faenet.cli import main
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.report_pages import merged, sections_of
from ocp_faenet.cli.report_sections import SECTIONS

CONFIGS = Path(__file__).parent.parent / "configs"
MARKED = "before\n<!-- table:report -->\n{}\n<!-- /table:report -->\nafter\n"


def report(*args: object):
    return CliRunner().invoke(main, ["report", "--configs", str(CONFIGS), *map(str, args)])


def refused(done, *words: str) -> None:
    assert done.exit_code == 2, done.output
    assert len(done.output.strip().splitlines()) == 1, done.output
    for word in words:
        assert word in done.output


@pytest.fixture
def page(tmp_path) -> Path:
    """A document without sections."""
    path = tmp_path / "docs" / "report.md"
    path.parent.mkdir()
    path.write_text(MARKED.format("old"))
    return path


@pytest.fixture
def broken(monkeypatch):
    """Makes sections fail from then on."""

    def fail(*names: str) -> None:
        def make(setting):
            raise BadInputError("no memory")

        for name in names:
            monkeypatch.setitem(SECTIONS, name, replace(SECTIONS[name], make=make))

    return fail


def kept(path: Path) -> dict:
    """The JSON beside a document, which the document shows."""
    content = json.loads((path.parent / "results" / "report.json").read_text())
    assert path.read_text() == MARKED.format(sections_of(content, "images/report/"))
    for link in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        assert (path.parent / link).is_file()
    return content


def everything(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_what_is_left_out_replaces_nothing_that_was_made():
    good, better, bad = {"a": 1}, {"a": 2}, {"left_out": "no memory"}
    assert merged({"figure3": good}, {"figure3": bad}) == {"figure3": good}
    assert merged({"figure3": good}, {"figure3": better}) == {"figure3": better}
    assert merged({"figure3": bad}, {"figure3": good}) == {"figure3": good}
    assert merged({}, {"figure3": bad}) == {"figure3": bad}
    assert list(merged({"figure3": good}, {"ewald_curves": good, "figure1": good})) == [
        "figure1", "figure3", "ewald_curves"
    ]  # fmt: skip


def test_a_narrower_run_keeps_the_other_sections(dense_tiny, page, tmp_path):
    out = tmp_path / "out"
    args = ("--data", dense_tiny, "--out", out, "--into", page)
    assert report(*args, "--only", "figure3").exit_code == 0
    third = kept(page)["sections"]["figure3"]
    done = report(*args, "--only", "figure1")
    assert done.exit_code == 0, done.output
    content = kept(page)
    assert list(content["sections"]) == ["figure1", "figure3"]
    assert content["sections"]["figure3"] == third
    assert json.loads((out / "report.json").read_text()) == content
    text = (out / "report.md").read_text()
    assert text.index("## Figure 1") < text.index("## Figure 3")
    assert f"On the {dense_tiny.name} set, `--budget small`" in text
    assert "--only" not in content["command"]
    made_by = content["sections"]["figure1"]["command"]
    assert (
        made_by
        == f"ocp-faenet report --data {dense_tiny} --out {out} --only figure1 --configs {CONFIGS}"
    )


def test_a_section_that_fails_replaces_no_good_one(dense_tiny, page, tmp_path, broken):
    args = ("--data", dense_tiny, "--out", tmp_path / "out", "--into", page)
    assert report(*args, "--only", "figure1,figure3").exit_code == 0
    before = everything(page.parent)
    broken("figure1", "ewald_curves")
    done = report(*args, "--only", "figure1,ewald_curves", "--runs", tmp_path / "runs")
    assert done.exit_code == 1
    assert "figure1: left out: no memory" in done.output
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "left_out" not in content["sections"]["figure1"]
    assert content["sections"]["ewald_curves"] == {"left_out": "no memory"}
    assert everything(page.parent) == before


def test_a_section_that_fails_is_not_put_into_a_document(dense_tiny, page, tmp_path, broken):
    broken("figure1")
    args = ("--data", dense_tiny, "--out", tmp_path / "out", "--into", page)
    assert report(*args, "--only", "figure1,figure3").exit_code == 1
    assert list(kept(page)["sections"]) == ["figure3"]


@pytest.mark.parametrize("other", ["data", "budget"])
def test_other_data_or_another_budget_replace_all_or_nothing(
    dense_tiny, page, tmp_path, broken, other
):
    args = ("--data", dense_tiny, "--into", page, "--out", tmp_path / "out")
    both = ("--only", "figure1,figure3")
    assert report(*args, *both).exit_code == 0
    (tmp_path / "another").symlink_to(dense_tiny)
    changed = {
        "data": ("--data", tmp_path / "another", "--into", page),
        "budget": ("--data", dense_tiny, "--into", page, "--budget", "full"),
    }[other]
    before = everything(tmp_path)
    done = report(*changed, "--out", tmp_path / "new", "--only", "figure3")
    refused(done, f"--into {page}", f"of the {dense_tiny.name} set, --budget small", "figure1")
    done = report(*changed[:2], *changed[4:], "--out", tmp_path / "out", "--only", "figure3")
    refused(done, f"--out {tmp_path / 'out'}", "figure1 would be lost")
    assert everything(tmp_path) == before
    broken("figure1")
    done = report(*changed, "--out", tmp_path / "new", *both)
    assert done.exit_code == 1
    assert f"{page}: left as it is, for figure1 was not made anew" in done.output
    assert kept(page)["data"] == dense_tiny.name
    assert kept(page)["budget"] == "small"


def test_all_sections_made_anew_replace_those_of_other_data(dense_tiny, page, tmp_path):
    (tmp_path / "another").symlink_to(dense_tiny)
    for data in (dense_tiny, tmp_path / "another"):
        args = ("--data", data, "--into", page, "--out", tmp_path / "out")
        assert report(*args, "--only", "figure1,figure3").exit_code == 0
    content = kept(page)
    assert content["data"] == "another"
    assert {made.get("data", "another") for made in content["sections"].values()} == {"another"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("no JSON", "holds no report"),
        ("[]", "holds no report"),
        ("{}", "holds no report"),
        ('{"sections": {"figure9": {}}}', "a section figure9, which there is not; make the report"),
    ],
)
def test_a_file_that_holds_no_report_is_one_line(dense_tiny, tmp_path, content, said):
    (tmp_path / "report.json").write_text(content)
    done = report("--data", dense_tiny, "--out", tmp_path, "--only", "figure3")
    refused(done, str(tmp_path / "report.json"), said)
    assert (tmp_path / "report.json").read_text() == content


def test_sections_of_another_version_are_refused_before_anything_is_made(
    dense_tiny, page, tmp_path
):
    args = ("--data", dense_tiny, "--out", tmp_path / "out", "--into", page)
    assert report(*args, "--only", "figure1,figure3").exit_code == 0
    for place in (tmp_path / "out" / "report.json", page.parent / "results" / "report.json"):
        content = json.loads(place.read_text())
        now = json.dumps(content)
        del content["sections"]["figure1"]["machine"]
        place.write_text(json.dumps(content))
        before = everything(tmp_path)
        done = report(*args, "--only", "figure3")
        refused(done, str(place), "figure1 is of another version", "take the section out")
        assert everything(tmp_path) == before
        place.write_text(now)


def test_sections_without_their_numbers_are_not_replaced(dense_tiny, page, tmp_path):
    page.write_text(MARKED.format(f"## {SECTIONS['table1'].title}"))
    args = ("--data", dense_tiny, "--out", tmp_path / "out", "--into", page)
    refused(report(*args, "--only", "figure3"), "results/report.json")
    assert not (tmp_path / "out").exists()


# Places that cannot be written to, inputs that are not there


@pytest.mark.parametrize("case", ["out a file", "out below a file", "out in /proc", "runs a file",
                                  "runs a file, unused", "images a file", "results a file",
                                  "no studies"])  # fmt: skip
def test_what_cannot_be_had_is_refused_before_anything_is_run(
    dense_tiny, page, tmp_path, case, monkeypatch
):
    monkeypatch.setattr("ocp_faenet.cli.study_run.run_study", None)
    file = tmp_path / "file"
    file.write_text("kept")
    given = {"--data": dense_tiny, "--out": tmp_path / "out", "--only": "figure3,ewald_curves",
             "--runs": tmp_path / "runs", "--into": page}  # fmt: skip
    named = {
        "out a file": ("--out", file),
        "out below a file": ("--out", file / "below"),
        "out in /proc": ("--out", Path("/proc/x")),
        "runs a file": ("--runs", file),
        "runs a file, unused": ("--runs", file),
        "images a file": ("--into", page.parent / "images" / "report"),
        "results a file": ("--into", page.parent / "results"),
        "no studies": ("--configs", tmp_path / "empty"),
    }[case]
    if named[0] == "--into":
        named[1].parent.mkdir(exist_ok=True)
        named[1].write_text("kept")
    else:
        given[named[0]] = named[1]
    if case == "runs a file, unused":
        given["--only"] = "figure3"
    done = report(*(word for pair in given.items() for word in pair))
    refused(done, " ".join(map(str, named)))
    assert page.read_text() == MARKED.format("old")
    assert not list(tmp_path.rglob("*.png"))
    assert not list(tmp_path.rglob("report.json"))


def test_a_size_that_is_not_there_is_refused(dense_tiny, tmp_path):
    oc20 = tmp_path / "data"
    (oc20 / "is2re" / "10k").mkdir(parents=True)
    (oc20 / "is2re" / "10k" / "train").symlink_to(dense_tiny / "is2re" / "train")
    rest = ("--out", tmp_path / "out", "--runs", tmp_path / "runs", "--only", "table1")
    done = report("--data", oc20, *rest, "--size", "all")
    refused(done, "--size all: ", str(oc20 / "is2re" / "all" / "train"))
    done = report("--data", dense_tiny, *rest, "--size", "100k")
    refused(done, "--size 100k: ", str(dense_tiny / "is2re" / "100k" / "train"))
    assert not (tmp_path / "out").exists()


# Stamps


def test_every_section_says_what_made_it(dense_tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(dense_tiny)
    args = ("--data", ".", "--out", tmp_path / "out of here", "--only", "figure1,figure3")
    assert report(*args).exit_code == 0
    out = f"'{tmp_path / 'out of here'}'"
    command = f"`ocp-faenet report --data . --out {out} --only figure1,figure3 --configs {CONFIGS}`"
    first, third = (tmp_path / "out of here" / "report.md").read_text().split("## ")[1:]
    assert f"{command}: the {dense_tiny.name} set, no seed; " in first
    assert f"{command}: no data, no seed; " in third
    assert " CPU cores (" in first
    assert " CPU cores (" in third
