"""Tables in README and docs are what their JSON renders to, and say where they come from."""

from __future__ import annotations

import importlib.util
import json
import re
import struct
import sys
from pathlib import Path

import pytest

from ocp_faenet.cli import (
    benchmark_page,
    compare,
    expressivity_report,
    report,
    report_pages,
    scaling_report,
)

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
IMAGES = ROOT / "docs" / "images"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: How a table that no study made is rendered from ``docs/results/NAME.json``.
RENDERERS = {
    "benchmark": benchmark_page.markdown_of,
    "benchmark_batches": benchmark_page.markdown_of,
    "benchmark_relaxation": benchmark_page.markdown_of,
    "benchmark_sizes": benchmark_page.markdown_of,
    "compare": compare.markdown_of,
    "expressivity": expressivity_report.markdown_of,
    "report": lambda content: report_pages.sections_of(content, "images/report/"),
    "scaling": scaling_report.markdown_of,
}
#: Tables of numbers that stand between no markers: page, first heads -> why.
BY_HAND = {
    ("data.md", "preset", "train"): "sizes of data sets; `data emt` keeps no times",
    ("data.md", "stage", "CPU ms a sample"): "one run of `data time`, no comparison",
    ("dense.md", "", "slide"): "one seed of `dense sensitivity`, a first look",
    ("forces.md", "structures", "ADwT %"): "one seed of a relaxation, shown as an example",
    ("frames.md", "frames", "rotation about z, worst"): "random weights, that is not trained ones",
    ("performance.md", "aim on the CPU", "seen"): "ratios of the table above it",
    ("performance.md", "products", "one frame"): "counted by hand, in the text",
    ("performance.md", "idea", "gain"): "what was tried and is not in the code any more",
}
#: Words without which nobody can make a number again, or judge it.
STAMP = ("ocp-faenet ", "seed", "CPU cores")
#: Pixels: a page shows 800 or so, and letters shrink with the picture.
WIDEST = 1250
HEADING = re.compile(r"^## ", re.MULTILINE)
MARKED = re.compile(r"<!-- (\w+):(\w+) -->\n(.*?)\n<!-- /\1:\2 -->", re.DOTALL)
TABLE = re.compile(r"^\|(.*)\|\n\|[-:| ]+\|\n((?:\|.*\|\n)+)", re.MULTILINE)


def sections(path: Path, kind: str) -> dict[str, str]:
    """What stands between the markers of one kind, by name."""
    return {name: text for k, name, text in MARKED.findall(path.read_text()) if k == kind}


def load(name: str):
    return json.loads((RESULTS / f"{name}.json").read_text())


def improvements() -> str:
    path = ROOT / "scripts" / "make_improvements.py"
    spec = importlib.util.spec_from_file_location("make_improvements", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for it there
    spec.loader.exec_module(module)
    return module.markdown_of(RESULTS)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_other_tables_are_their_json(path):
    for name, inside in sections(path, "table").items():
        if name == "improvements":
            assert inside == improvements(), "run `python scripts/make_improvements.py`"
        else:
            assert inside == RENDERERS[name](load(name)), f"{path.name}: {name} is not its JSON"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_table_is_stamped(path):
    for kind in ("study", "table"):
        for name, inside in sections(path, kind).items():
            for part in filter(str.strip, HEADING.split(inside)):
                missing = [word for word in STAMP if word not in part]
                what = f"{path.name}: {name}, {part.splitlines()[0]}"
                assert not missing, f"{what}: does not say {missing}"


def test_commands_of_the_report_can_be_run_and_name_their_data():
    content = load("report")
    inside = sections(ROOT / "docs" / "report.md", "table")["report"]
    required = {option.opts[0] for option in report.report.params if option.required}
    for part in HEADING.split(inside)[1:]:
        head = part.splitlines()[0]
        (command,) = re.findall(r"`(ocp-faenet report [^`]*)`", part)
        assert required <= set(command.split()), f"{head}: {command}"
        assert f"the {content['data']} set" in part or ": no data" in part, head


def test_every_result_is_shown_and_says_what_made_it():
    shown = {name for path in DOCUMENTS for _, name, _ in MARKED.findall(path.read_text())}
    for path in RESULTS.glob("*.json"):
        assert path.stem in shown, f"{path.name}: no page has its table between markers"
        missing = {"command", "data", "machine"} - set(load(path.stem))
        assert not missing, f"{path.name} does not say its {sorted(missing)}"


def measured_by_hand(text: str) -> list[tuple[str, str, int]]:
    """First heads of every table of numbers between no markers, and where it begins."""
    found = []
    hidden = [match.span() for match in MARKED.finditer(text)]
    for table in TABLE.finditer(text):
        if any(begin <= table.start() < end for begin, end in hidden):
            continue
        head = [cell.strip() for cell in table[1].split("|")]
        rows = [line.strip("|").split("|")[1:] for line in table[2].splitlines()]
        cells = [cell for row in rows for cell in row]
        numbers = any(re.match(r"[\s*~+−-]*\d[\d.,e+-]*([ %]|$)", cell) for cell in cells)
        if numbers and "default" not in head:  # options have defaults, measurements have none
            found.append((head[0], head[1], table.start()))
    return found


def test_what_counts_as_a_table_of_numbers():
    text = "| a | b |\n|---|---|\n| x | 0.5 |\n\n| key | default |\n|---|---|\n| x | 0.5 |\n\n"
    marked = "<!-- study:s -->\n| a | c |\n|---|---|\n| x | 0.5 |\n\n<!-- /study:s -->\n"
    words = "| a | d |\n|---|---|\n| 5 | five |\n"
    assert measured_by_hand(text + marked + words) == [("a", "b", 0)]


def test_numbers_stand_between_markers_or_are_excused_and_stamped():
    found = set()
    for path in DOCUMENTS:
        text = path.read_text()
        for *heads, begin in measured_by_hand(text):
            key = (path.name, *heads)
            found.add(key)
            assert key in BY_HAND, f"{path.name}: {heads} is made by no command; see BY_HAND"
            above = text[:begin]
            stamps = above.split("\n## ")[0] + above.split("\n## ")[-1]
            stamps += text[begin:].split("\n## ")[0]
            missing = [word for word in STAMP if word not in stamps]
            assert not missing, f"{path.name}: around {heads} nothing says {missing}"
    assert set(BY_HAND) == found, "excuses for tables that are gone"


def test_every_marker_is_closed():
    for path in DOCUMENTS:
        text = path.read_text()
        opened = re.findall(r"^<!-- (\w+:\w+) -->$", text, re.MULTILINE)
        closed = re.findall(r"^<!-- /(\w+:\w+) -->$", text, re.MULTILINE)
        assert opened == closed, path.name
        assert [f"{kind}:{name}" for kind, name, _ in MARKED.findall(text)] == opened, path.name


def test_every_picture_is_there_and_every_one_is_shown():
    shown = set()
    for path in DOCUMENTS:
        for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", path.read_text()):
            assert (path.parent / link).is_file(), f"{path.name}: no picture {link}"
            shown.add((path.parent / link).resolve())
    assert {path.resolve() for path in IMAGES.rglob("*.png")} <= shown


@pytest.mark.parametrize("path", sorted(IMAGES.rglob("*.png")), ids=lambda path: path.stem)
def test_pictures_are_not_shrunk_beyond_reading(path):
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    assert 600 <= width <= WIDEST, f"{width} pixels wide"
    assert height <= 1.2 * width


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(path):
    """Files and headings; GitHub's anchors are lower case without punctuation."""
    for link in re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", path.read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        page = path if not name else path.parent / name
        assert page.exists(), f"{path.name}: {link}"
        if anchor and page.suffix == ".md":
            heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-")
                       for head in heads}  # fmt: skip
            assert anchor in anchors, f"{path.name}: {link}: {page.name} has no such heading"
