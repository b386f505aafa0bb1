"""``ocp-faenet <verb>``: what the host's own command lacks."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys

import click

#: Each verb is a module under ``ocp_faenet.cli`` that exports a click command of the same name.
VERBS = (
    "benchmark",
    "compare",
    "conservation",
    "convert",
    "data",
    "demo",
    "dense",
    "diagnose",
    "expressivity",
    "main",
    "relaxations",
    "report",
    "scaling",
    "study",
    "submission",
    "symmetry",
)
#: Verbs whose module has another name: ``main`` is what this package itself exports.
MODULES = {"main": "host"}


class LazyVerbs(click.Group):
    """A click group that imports a verb's module only when the verb is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(v for v in VERBS if importlib.util.find_spec(_module(v)) is not None)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        if not sys.stderr.isatty():  # a log file needs no film; tqdm reads this when imported
            os.environ.setdefault("TQDM_MININTERVAL", "60")
        command: click.Command = getattr(importlib.import_module(_module(cmd_name)), cmd_name)
        return command


def _module(verb: str) -> str:
    return f"{__name__}.{MODULES.get(verb, verb)}"


@click.command(
    cls=LazyVerbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Training: fairchem --mode train --config-yml configs/oc20/..., or, for sweeps and "
    "clusters, ocp-faenet main with the same arguments.",
)
@click.version_option(package_name="ocp_faenet")
def main() -> None:
    """FAENet for fairchem-core 1.10: data, conversion, checks, comparisons."""
