"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from plugin_fixtures import once, one_thread


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """The embedded set `tiny`, made once per session whatever the number of test workers.

    ``OCP_FAENET_TINY`` names a folder that holds it already.
    """
    ready = os.environ.get("OCP_FAENET_TINY")
    if ready:
        return Path(ready)
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def build(folder: Path) -> None:
        command = [str(Path(sys.executable).with_name("ocp-faenet")), "data", "emt"]
        command += [str(folder / "data"), "--preset", "tiny"]
        made = subprocess.run(command, env=one_thread(), capture_output=True, text=True)
        assert made.returncode == 0, made.stderr[-2000:]

    return once(shared / "tiny", build) / "data"
