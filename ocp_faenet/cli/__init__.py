"""``ocp-faenet <verb>``: what the host's own command lacks."""

from __future__ import annotations

import importlib
import importlib.util

import click

#: verb -> module under ``ocp_faenet.cli`` that exports a click command of the same name.
VERBS = (
    "benchmark",
    "compare",
    "convert",
    "data",
    "demo",
    "main",
    "relaxations",
    "study",
    "submission",
    "symmetry",
)


class LazyVerbs(click.Group):
    """A click group that imports a verb's module only when the verb is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        present = [v for v in VERBS if importlib.util.find_spec(f"{__name__}.{v}") is not None]
        return sorted(present)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = getattr(
            importlib.import_module(f"{__name__}.{cmd_name}"), cmd_name
        )
        return command


@click.command(
    cls=LazyVerbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Training itself is the host's: fairchem --mode train --config-yml configs/oc20/...",
)
@click.version_option(package_name="ocp_faenet")
def main() -> None:
    """FAENet for fairchem-core 1.10: data, conversion, checks, comparisons."""
