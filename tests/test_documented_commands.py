"""Every command of README, docs and help texts exists, with the options that it is given."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from fairchem.core.common.flags import flags

from ocp_faenet.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```\w*\n(.*?)```|((?:^    \S.*\n)+)", re.DOTALL | re.MULTILINE)
CALL = re.compile(r"\s*(?:\$ )?(?:[A-Z_]+=\S+ )*((?:fairchem|ocp-faenet) .*)")
HOST = set(flags.get_parser()._option_string_actions)
CONTEXT = click.Context(main)


def commands(text: str) -> Iterator[list[str]]:
    """Words of each line that calls the host or this package, lines joined where they go on."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        called = CALL.match(line)
        if called:
            yield shlex.split(called[1], comments=True)


def on_page(text: str) -> Iterator[list[str]]:
    for blocks in BLOCK.findall(text):
        yield from commands("\n".join(line.strip() for line in "".join(blocks).splitlines()))
    for span in re.findall(r"`((?:fairchem|ocp-faenet) [^`]*)`", text):
        yield from commands(span.replace("\n", " "))


def helps(command: click.Command) -> Iterator[str]:
    if isinstance(command, click.Group):
        for name in command.list_commands(CONTEXT):
            found = command.get_command(CONTEXT, name)
            assert found is not None
            yield from helps(found)
    yield f"{command.help}\n{command.epilog}"


def faults(words: list[str]) -> list[str]:
    """Verbs and options that there are not, and configurations that are not there."""
    command: click.Command = main
    known, rest = {"--help", "-h"}, words[1:]
    if words[0] == "ocp-faenet":
        while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
            found = command.get_command(CONTEXT, rest.pop(0))
            if found is None:
                return [" ".join(words)]
            command = found
        known |= {o for p in command.params for o in p.opts + p.secondary_opts}
    host = words[0] == "fairchem" or command.name == "main"
    known |= HOST if host else set()
    options = [word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)]
    wrong = [o for o in options if o not in known and not (host and "." in o)]
    files = [word.split("=")[-1] for word in rest if re.search(r"(^|=)configs/[^{]*\.yml$", word)]
    return wrong + [file for file in files if not (ROOT / file).is_file()]


def test_what_is_no_command_is_found():
    page = "```\nfairchem --mode train \\\n  --no-such 1 --optim.batch_size=2\n```\n"
    page += "`ocp-faenet data time\nconfigs/no.yml --sample 3 --simple 3` `ocp-faenet nothing`\n"
    found = [faults(words) for words in on_page(page)]
    assert found == [["--no-such"], ["--simple", "configs/no.yml"], ["ocp-faenet nothing"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_the_pages(page):
    assert [fault for words in on_page(page.read_text()) for fault in faults(words)] == []


def test_commands_of_the_help_texts():
    seen = [words for text in helps(main) for words in commands(text)]
    assert len(seen) > 20
    assert [fault for words in seen for fault in faults(words)] == []
