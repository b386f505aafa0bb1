"""``ocp-faenet report``: the report's tables and figures by one command."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ocp_faenet.cli.documents import insert_into, with_table
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.options import JOBS, PATH, runs_in
from ocp_faenet.cli.output import machine_class, write_json, write_text
from ocp_faenet.cli.report_plan import Setting, estimate, missing
from ocp_faenet.cli.report_sections import SECTIONS
from ocp_faenet.data.places import SIZES


@click.command(
    epilog="\b\nocp-faenet report --data data/emt/demo --out report\n"
    "ocp-faenet report --data data/emt/demo --out report --budget full --jobs 8\n"
    "ocp-faenet report --data data/emt/demo --out report --only figure1,figure3\n"
    "ocp-faenet report --data data --size 10k --out report --only table1"
)
@click.option("--data", type=PATH, required=True, help="Embedded set, or OC20 as downloaded.")
@click.option("--out", type=PATH, required=True, help="Folder of report.md, report.json, PNGs.")
@click.option(
    "--budget",
    type=click.Choice(["small", "full"]),
    default="small",
    show_default=True,
    help="small: one seed, fewer epochs. full: the studies as their files have them.",
)
@click.option("--only", help=f"Sections, by commas, of {', '.join(SECTIONS)}; all if absent.")
@click.option("--size", type=click.Choice(SIZES), help="Of OC20's training set; the smallest.")
@JOBS
@runs_in("runs/studies")
@click.option(
    "--configs",
    type=PATH,
    default=Path("configs"),
    show_default=True,
    help="Folder of `studies` and of the configurations that they name.",
)
@click.option(
    "--into",
    type=PATH,
    help="Put the sections between this document's lines <!-- table:report --> and "
    "<!-- /table:report -->, with images/report/ and results/report.json beside it.",
)
def report(
    data: Path,
    out: Path,
    budget: str,
    only: str | None,
    size: str | None,
    jobs: int,
    runs: Path,
    configs: Path,
    into: Path | None,
) -> None:
    """Make the report's tables and figures from the data at hand: Markdown, JSON, PNG.

    What trains is cached by the hash of its configuration, as in `study`, and shared with the
    studies of the same folder: run again, the command makes only what changed, and goes on where
    it was interrupted. A section whose data are absent, or one of whose runs fails, is left out
    with a line that says why.
    """
    chosen = _chosen(only)
    if not data.is_dir():
        raise BadInputError(f"--data {data}: no such folder; `ocp-faenet data emt {data}` makes it")
    if into is not None:
        with_table(into, "report", "")  # before anything is run
    command = f"ocp-faenet report --budget {budget}"
    command += "" if only is None else f" --only {','.join(chosen)}"
    command += "" if size is None else f" --size {size}"
    setting = Setting(data, out, configs, runs, jobs, budget == "small", size, command)
    absent = {
        name: reason
        for name in chosen
        if (reason := missing(data, SECTIONS[name].needs)) is not None
    }
    if len(absent) == len(chosen):
        raise BadInputError(absent[chosen[0]])
    parts = [part for name in chosen if name not in absent for part in SECTIONS[name].parts]
    if parts:
        click.echo(estimate(setting, dict.fromkeys(parts)))
    out.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "command": command, "data": data.name, "machine": machine_class(), "sections": {},
    }  # fmt: skip
    failed = False
    for name in chosen:
        made, ok = _section(name, setting, absent.get(name))
        content["sections"][name] = made
        failed |= not ok
        write_json(out / "report.json", content)  # what is there so far, whatever comes
        write_text(out / "report.md", page_of(content))
    click.echo(f"{out / 'report.md'}")
    if into is not None:
        _keep(content, out, into)
    if failed:
        raise click.exceptions.Exit(1)


def page_of(content: Mapping[str, Any]) -> str:
    """The whole report as Markdown, from what is in its JSON."""
    stamp = f"`{content['command']}` on the {content['data']} set; {content['machine']}."
    return f"# The report, reproduced\n\n{stamp}\n\n{sections_of(content)}\n"


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


def _chosen(only: str | None) -> list[str]:
    asked = list(SECTIONS) if only is None else only.split(",")
    if unknown := sorted(set(asked) - set(SECTIONS)):
        raise BadInputError(f"--only {unknown[0]}: the sections are {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in asked]


def _keep(content: Mapping[str, Any], out: Path, document: Path) -> None:
    """Sections into the document, pictures and numbers beside it."""
    pictures = document.parent / "images" / "report"
    pictures.mkdir(parents=True, exist_ok=True)
    for made in content["sections"].values():
        for name in made.get("pictures", ()):
            temporary = pictures / f".{name}.tmp"
            shutil.copyfile(out / name, temporary)
            os.replace(temporary, pictures / name)
    write_json(document.parent / "results" / "report.json", content)
    insert_into(document, "report", sections_of(content, "images/report/"))


def _section(name: str, setting: Setting, reason: str | None) -> tuple[dict[str, Any], bool]:
    """What is made of a section, and whether nothing failed."""
    if reason is not None:
        click.echo(f"{name}: left out: {reason}")
        return {"left_out": reason}, True
    click.echo(f"{name}: {SECTIONS[name].title}")
    try:
        return SECTIONS[name].make(setting), True
    except (BadInputError, ValueError, OSError) as error:
        click.echo(f"{name}: left out: {error}", err=True)
        return {"left_out": str(error)}, False
