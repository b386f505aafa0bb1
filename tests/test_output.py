"""Where the commands write: whole files or none, and one line where that is not possible."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure

from ocp_faenet.cli import diagnose_plot, main, pictures
from ocp_faenet.cli.documents import insert_into
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.output import make_folder, markdown_table, write_json, write_text


def verbs(command: click.Command, name: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command below ``command`` that does something, by its words."""
    if not isinstance(command, click.Group):
        yield name, command
        return
    for word in command.list_commands(click.Context(command)):
        below = command.get_command(click.Context(command), word)
        assert below is not None
        yield from verbs(below, f"{name} {word}".strip())


def test_every_json_option_refuses_a_folder_before_anything_is_run(tmp_path):
    found = {
        name: option.type
        for name, command in verbs(main)
        for option in command.params
        if "--json" in option.opts
    }
    assert len(found) > 20
    for name, kind in found.items():
        assert isinstance(kind, click.Path), name
        with pytest.raises(click.BadParameter, match="is a directory"):
            kind.convert(str(tmp_path), None, None)
    told = CliRunner().invoke(main, ["data", "check", "nowhere", "--json", str(tmp_path)])
    assert told.exit_code == 2
    assert "is a directory" in told.output


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(BadInputError, match=r"file/below\.json: not written \(") as caught:
        write_json(tmp_path / "file" / "below.json", {})
    assert caught.value.exit_code == 2
    assert (tmp_path / "file").read_text() == "kept"
    write_json(tmp_path / "new" / "folder" / "x.json", {"a": [1]})
    assert json.loads((tmp_path / "new" / "folder" / "x.json").read_text()) == {"a": [1]}
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["x.json"]


def test_a_table_goes_between_its_own_markers(tmp_path):
    page = tmp_path / "page.md"
    both = "".join(f"<!-- {kind}:x -->\nold\n<!-- /{kind}:x -->\n" for kind in ("table", "study"))
    write_text(page, both)
    insert_into(page, "x", "new")
    assert page.read_text() == both.replace("old", "new", 1)
    insert_into(page, "x", "newer", "study")
    assert page.read_text() == both.replace("old", "new", 1).replace("old", "newer")
    with pytest.raises(BadInputError, match=r"--into .*page\.md: no lines <!-- table:y -->"):
        insert_into(page, "y", "new")


def test_a_table_of_narrow_columns_is_one():
    """GFM: a cell of the rule is hyphens with a colon at either end."""
    rule = markdown_table(["", "x"], [["a", "1"], ["b", "2"]]).splitlines()[1]
    for cell in rule.strip("|").split("|"):
        assert re.fullmatch(r" :?-+:? ", cell)
    assert rule == "| :-- | --: |"


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("kept")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(BadInputError, match=rf"--out {place}: no folder to write to \("):
            make_folder("--out", place)
    make_folder("--out", tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_labels_of_pictures_have_no_markdown(tmp_path, monkeypatch):
    figures: list[Figure] = []
    for module in (pictures, diagnose_plot):
        monkeypatch.setattr(module, "save", lambda figure, path: figures.append(figure))
    name = "`k_cutoff: 1.6`"
    pictures.comparison({name: {"val_id": (1.0, 0.1)}}, {name: [[(1, 2.0), (2, 1.0)]]}, tmp_path)
    curve = {"x": "channels", "log": False, "series": {name: [[1.0, 2.0, 0.1]]}}
    pictures.error_curve(curve, "t", "MAE", tmp_path)
    diagnose_plot.plot_depth([{"mad": [0.1], "spread": [0.1], "checkpoint": name}], tmp_path)
    for figure in figures:
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == ["k_cutoff: 1.6"]
    assert len(figures) == 3
