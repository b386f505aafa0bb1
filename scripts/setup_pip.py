"""How the set-up runs pip and Python in ``.venv``."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

from setup_rules import Settings, SetupError, explain

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
LOG = ROOT / "build" / "setup.log"
HEARTBEAT = 60.0  # seconds between signs of life


def say(message: str) -> None:
    """One line of progress."""
    print(f"setup: {message}", flush=True)


def end_group(process: subprocess.Popen[bytes], patience: float = 5.0) -> None:
    """End ``process`` and all that it started: asked first, then killed."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal_number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)


class Environment:
    """``.venv`` and how commands run in it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.python = str(VENV / "bin" / "python")
        self.pins = (ROOT / "constraints.txt").read_text()
        self.constrained = ["install", "-c", str(ROOT / "constraints.txt")]
        self.links = ["--find-links", settings.extra_wheels] if settings.extra_wheels else []
        drop = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "FORCE_CUDA")
        self.env = {k: v for k, v in os.environ.items() if k not in drop}
        self.env |= {"PIP_USER": "0", "PYTHONNOUSERSITE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        self.env["PATH"] = f"{VENV / 'bin'}{os.pathsep}{self.env.get('PATH', '')}"

    def run(self, step: str, command: list[str], **extra_env: str) -> tuple[bool, str]:
        """Run ``command`` into the log; return whether it succeeded, and what it said."""
        began = time.monotonic()
        with LOG.open("a+") as log:
            log.write(f"\n# {step}\n")
            log.flush()
            start = log.tell()
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.env | extra_env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # one group with its compilers, so that all of them end
            )
            try:
                code = self.wait(process, step, began)
            except BaseException:
                end_group(process)
                raise
            log.seek(start)
            return code == 0, log.read()

    def wait(self, process: subprocess.Popen[bytes], step: str, began: float) -> int:
        """Exit status of ``process``; a line each minute until then."""
        while True:
            try:
                return process.wait(HEARTBEAT)
            except subprocess.TimeoutExpired:
                say(f"  {step}: {(time.monotonic() - began) / 60:.0f} min so far")

    def pip(self, step: str, *args: str, source: str = "the package index", **env: str) -> None:
        """``pip`` in the environment; raises ``SetupError`` with one line."""
        began = time.monotonic()
        good, output = self.run(step, [self.python, "-m", "pip", *args], **env)
        if not good:
            raise SetupError(explain(step, output, source, str(LOG.relative_to(ROOT))))
        say(f"{step}: {time.monotonic() - began:.0f} s")

    def ask(self, code: str) -> str | None:
        """Standard output of Python ``code`` run in the environment; ``None`` if it fails."""
        try:
            done = subprocess.run(
                [self.python, "-c", code], env=self.env, capture_output=True, text=True, cwd="/"
            )
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    def has(self, pin: str) -> bool:
        """Whether this pin is installed, whatever its local version (``2.4.1+cpu``)."""
        name, version = pin.split("==")
        found = self.ask(f"import importlib.metadata as m; print(m.version({name!r}))")
        return found is not None and found.split("+")[0] == version
