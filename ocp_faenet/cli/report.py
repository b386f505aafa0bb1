"""``ocp-faenet report``: the report's tables and figures by one command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.options import JOBS, PATH, runs_in
from ocp_faenet.cli.output import command_line, make_folder
from ocp_faenet.cli.report_pages import Document, Kept, merged, write_report
from ocp_faenet.cli.report_plan import Part, Setting, estimate, missing
from ocp_faenet.cli.report_sections import SECTIONS
from ocp_faenet.data.places import SIZES, TASKS, training_lmdb

#: Parameters that say where numbers go or how fast, and not what they are.
ELSEWHERE = ("jobs", "runs", "into")


@click.command(
    epilog="\b\nocp-faenet report --data data/emt/demo --out report\n"
    "ocp-faenet report --data data/emt/demo --out report --only figure1,figure3\n"
    "ocp-faenet report --data data/emt/demo --out report --budget full --jobs 8\n"
    "ocp-faenet report --data data --size 10k --out report_oc20 --only table1"
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
@click.option(
    "--size", type=click.Choice(SIZES), help="Of OC20's training sets; the smallest if absent."
)
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
    with a line that says why. Sections that are there already, of the same data and budget, stay
    where no new one is made.
    """
    chosen = _chosen(only)
    if not data.is_dir():
        raise BadInputError(f"--data {data}: no such folder; `ocp-faenet data emt {data}` makes it")
    named = data if data.name.strip(".") else data.resolve()
    setting = Setting(
        named, out, configs, runs, jobs, budget == "small", size, command_line(ELSEWHERE)
    )
    absent = _absent(setting, chosen)
    coming = [name for name in chosen if name not in absent]
    stamp = {**setting.stamp(), "command": command_line((*ELSEWHERE, "only")), "budget": budget,
             "size": size}  # fmt: skip
    document = None if into is None else Document.read(into, stamp, coming)
    kept = Kept.read(f"--out {out}", out / "report.json", stamp, coming)
    parts = list(dict.fromkeys(part for name in coming for part in SECTIONS[name].parts))
    _check_inputs(setting, coming, parts)
    if document is not None:
        document.make_folders()
    make_folder("--out", out)
    if parts:
        click.echo(estimate(setting, parts))
    made: dict[str, Any] = {}
    failed: dict[str, Any] = {}
    for name in chosen:
        content, ok = _section(name, setting, absent.get(name))
        (made if ok else failed)[name] = content
        sections = merged(kept.sections, {**made, **failed})
        write_report(out, {**stamp, "sections": sections})  # what is there so far, whatever comes
    click.echo(f"{out / 'report.md'}")
    if document is not None:
        document.keep(stamp, made, out)
    if failed:
        raise click.exceptions.Exit(1)


def _chosen(only: str | None) -> list[str]:
    asked = list(SECTIONS) if only is None else only.split(",")
    if unknown := sorted(set(asked) - set(SECTIONS)):
        raise BadInputError(f"--only {unknown[0]}: the sections are {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in asked]


def _absent(setting: Setting, chosen: Sequence[str]) -> dict[str, str]:
    """Sections whose data are absent, and what is missing.

    Raises:
        BadInputError: none of the chosen can be made.
    """
    reasons = {name: missing(setting.data, SECTIONS[name].needs) for name in chosen}
    absent = {name: reason for name, reason in reasons.items() if reason is not None}
    if len(absent) == len(chosen):
        raise BadInputError(absent[chosen[0]])
    return absent


def _check_inputs(setting: Setting, coming: Sequence[str], parts: Sequence[Part]) -> None:
    """Raises BadInputError where a training set, a study or the folder of runs cannot be had."""
    needs = dict.fromkeys(need for name in coming for need in SECTIONS[name].needs)
    if setting.size is not None:
        for task in [need for need in needs if need in TASKS]:
            try:
                training_lmdb(setting.data, task, setting.size)
            except FileNotFoundError as error:
                raise BadInputError(f"--size {setting.size}: {error}") from error
    for part in parts:
        if not (setting.configs / part.file).is_file():
            raise BadInputError(f"--configs {setting.configs}: no {setting.configs / part.file}")
    if parts:
        make_folder("--runs", setting.runs)
    elif setting.runs.exists() and not setting.runs.is_dir():
        raise BadInputError(f"--runs {setting.runs}: no folder")


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
