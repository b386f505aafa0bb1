"""Tables in README and docs are what their JSON renders to, and say where they come from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ocp_faenet.cli import compare
from ocp_faenet.cli.benchmark_report import table_of
from ocp_faenet.cli.expressivity_report import markdown_of
from ocp_faenet.cli.report import sections_of

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: How a table that no study made is rendered from ``docs/results/NAME.json``.
RENDERERS = {
    "expressivity": markdown_of,
    "report": lambda content: sections_of(content, "images/report/"),
}
#: Words without which nobody can make a number again, or judge it.
STAMP = ("ocp-faenet ", "seed", "CPU cores")


def sections(path: Path, kind: str) -> dict[str, str]:
    """What stands between the markers of one kind, by name."""
    pattern = rf"<!-- {kind}:(\w+) -->\n(.*?)\n<!-- /{kind}:\1 -->"
    return dict(re.findall(pattern, path.read_text(), re.DOTALL))


def load(name: str):
    return json.loads((RESULTS / f"{name}.json").read_text())


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_other_tables_are_their_json(path):
    for name, inside in sections(path, "table").items():
        assert inside == RENDERERS[name](load(name)), f"{path.name}: {name} is not its JSON"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_table_is_stamped(path):
    for kind in ("study", "table"):
        for name, inside in sections(path, kind).items():
            missing = [word for word in STAMP if word not in inside]
            assert not missing, f"{path.name}: {name} does not say {missing}"


def test_every_marker_is_closed():
    for path in DOCUMENTS:
        text = path.read_text()
        opened = re.findall(r"<!-- ((?:study|table):\w+) -->", text)
        closed = re.findall(r"<!-- /((?:study|table):\w+) -->", text)
        assert opened == closed, path.name


def test_the_comparison_of_the_front_page_is_its_json():
    assert compare._table(load("compare")) in (ROOT / "README.md").read_text()


def test_the_benchmark_is_its_json():
    assert table_of(load("benchmark")["rows"]) in (ROOT / "docs" / "performance.md").read_text()


def test_every_picture_is_there():
    for path in DOCUMENTS:
        for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", path.read_text()):
            assert (path.parent / link).is_file(), f"{path.name}: no picture {link}"
