"""Command lines of ``ocp-faenet main``."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

import plugin_fixtures as fx
from ocp_faenet.cli import main

MODEL = {"name": "ocp_faenet.FAENet", **fx.TINY, "regress_forces": "direct", "otf_graph": True}


def arguments(config_yml: Path, *more: str) -> list[str]:
    return ["--mode", "train", "--config-yml", str(config_yml), "--cpu", *more]


def sweep(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sweep.yml"
    path.write_text(text)
    return path


def invoke(*args: str) -> tuple[int, str, str]:
    found = CliRunner().invoke(main, ["main", *args])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code, found.stdout, found.stderr
