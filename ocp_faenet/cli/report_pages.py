"""Where the report's sections are kept: merged into what is there, as JSON and as Markdown."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ocp_faenet.cli.documents import insert_into, with_table
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.output import make_folder, write_json, write_text
from ocp_faenet.cli.report_sections import SECTIONS

Sections = Mapping[str, Any]
#: Sections that differ in one of these do not stand on one page.
SETTING = ("data", "budget", "size")


def page_of(content: Mapping[str, Any]) -> str:
    """The whole report as Markdown, from what is in its JSON."""
    size = "" if content["size"] is None else f", `--size {content['size']}`"
    setting = f"On the {content['data']} set, `--budget {content['budget']}`{size}"
    return f"# The report, reproduced\n\n{setting}.\n\n{sections_of(content)}\n"


def sections_of(content: Mapping[str, Any], pictures: str = "") -> str:
    """Its sections, with what stands before the names of pictures in links."""
    lines = []
    for name, made in content["sections"].items():
        section = SECTIONS[name]
        lines.append(f"## {section.title}")
        if "left_out" in made:
            lines.append(f"Left out: {made['left_out']}.")
            continue
        links = [f"{pictures}{picture}" for picture in made.get("pictures", ())]
        lines += [f"![{section.title}]({link})" for link in links]
        lines.append(section.render(made))
    return "\n\n".join(lines)


def good(sections: Sections) -> dict[str, Any]:
    """Those that were not left out."""
    return {name: made for name, made in sections.items() if "left_out" not in made}


def merged(there: Sections, made: Sections) -> dict[str, Any]:
    """``made`` over ``there``, in the order of `SECTIONS`; none left out replaces a good one."""
    every = {**there, **made, **good(there), **good(made)}
    return {name: every[name] for name in SECTIONS if name in every}


@dataclass(frozen=True)
class Kept:
    """A report's JSON: what is in it before a run.

    Attributes:
        file: the JSON.
        sections: that those of the run join.
        replaced: sections of other data or another budget, all of which the run makes anew.
    """

    file: Path
    sections: Sections
    replaced: Sections

    @classmethod
    def read(
        cls, option: str, file: Path, stamp: Mapping[str, Any], coming: Collection[str]
    ) -> Kept:
        """What is in ``file``, where ``coming`` are to be written with ``stamp``.

        Raises:
            BadInputError: no report in the file; or one of other data or another budget, of which
                something would not be made anew.
        """
        if not file.exists():
            return cls(file, {}, {})
        content = _read(option, file)
        if all(content.get(key) == stamp[key] for key in SETTING):
            return cls(file, content["sections"], {})
        if lost := sorted(set(good(content["sections"])) - set(coming)):
            raise BadInputError(
                f"{option}: its sections are {_setting(content)}, the new ones {_setting(stamp)}: "
                f"{lost[0]} would be lost; make all that are there, or name another place"
            )
        return cls(file, {}, content["sections"])


def _setting(content: Mapping[str, Any]) -> str:
    """Data and budget in words."""
    size = content.get("size")
    words = f"of the {content.get('data')} set, --budget {content.get('budget', 'unknown')}"
    return words if size is None else f"{words}, --size {size}"


def _read(option: str, file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
        unknown = sorted(set(content["sections"]) - set(SECTIONS))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise BadInputError(f"{option}: {file} holds no report ({error})") from error
    if unknown:
        raise BadInputError(
            f"{option}: {file} has a section {unknown[0]}, which there is not; make the report in "
            "another place, or take the section out"
        )
    for name, made in content["sections"].items():
        try:
            if "left_out" not in made:
                SECTIONS[name].render(made)
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise BadInputError(
                f"{option}: {file}: its section {name} is of another version of this package; "
                "make the report in another place, or take the section out"
            ) from error
    return dict(content)


@dataclass(frozen=True)
class Document:
    """A page that takes sections between its markers, pictures and JSON beside it.

    Attributes:
        path: of the page.
        kept: what is in it.
    """

    path: Path
    kept: Kept

    @classmethod
    def read(cls, path: Path, stamp: Mapping[str, Any], coming: Collection[str]) -> Document:
        """The page at ``path``, with nothing written.

        Raises:
            BadInputError: no page, or no markers in it; sections without their JSON; see
                `Kept.read`.
        """
        emptied = with_table(path, "report", "")
        file = path.parent / "results" / "report.json"
        titles = {f"## {SECTIONS[name].title}" for name in SECTIONS}
        inside = set(path.read_text().splitlines()) - set(emptied.splitlines())
        if not file.exists() and titles & inside:
            raise BadInputError(
                f"--into {path}: it has sections, and their numbers are not in {file}"
            )
        return cls(path, Kept.read(f"--into {path}", file, stamp, coming))

    @property
    def pictures(self) -> Path:
        """Where its pictures are."""
        return self.path.parent / "images" / "report"

    def make_folders(self) -> None:
        """Raises BadInputError where pictures or numbers cannot be written."""
        for folder in (self.pictures, self.kept.file.parent):
            make_folder("--into", folder)

    def keep(self, stamp: Mapping[str, Any], made: Sections, out: Path) -> None:
        """Put sections into the page, with their pictures from ``out``.

        A page of other data or another budget is left as it is unless all that it has is here.

        Raises:
            BadInputError: something cannot be written.
        """
        if missing := sorted(set(good(self.kept.replaced)) - set(good(made))):
            click.echo(f"{self.path}: left as it is, for {missing[0]} was not made anew", err=True)
            return
        for section in made.values():
            for name in section.get("pictures", ()):
                _copy(out / name, self.pictures / name)
        content = {**stamp, "sections": merged(self.kept.sections, made)}
        write_json(self.kept.file, content)
        insert_into(self.path, "report", sections_of(content, "images/report/"))


def write_report(out: Path, content: Mapping[str, Any]) -> None:
    """Both files of a folder: JSON and the page."""
    write_json(out / "report.json", content)
    write_text(out / "report.md", page_of(content))


def _copy(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise BadInputError(f"{target}: not written ({error})") from error
