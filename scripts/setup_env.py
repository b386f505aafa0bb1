"""Makes ``.venv``: torch, torch-scatter and torch-sparse, the pins, the package.

Run by ``setup_env.sh``. What is done is not done again: a stamp in ``.venv`` ends a second call at
once, and an interrupted call goes on where it stopped. What pip and the compiler say is in
``build/setup.log``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import time

from setup_compiled import Extensions
from setup_pip import LOG, ROOT, VENV, Environment, say
from setup_rules import Settings, SetupError, explain, pinned, without_password

STAMP = VENV / "ocp_faenet_setup.json"


def read_stamp() -> dict[str, str]:
    """The stamp of an earlier call, empty where there is none."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(settings: Settings, done: bool) -> None:
    """Record the settings; the key only once everything is installed."""
    key = {"key": settings.key(ROOT)} if done else {}
    STAMP.write_text(json.dumps(settings.remember() | key, indent=1))


def make_venv(where: Environment, stamp: dict[str, str]) -> None:
    """Make ``.venv``, or keep one that fits the settings."""
    base, wanted = where.settings.base_key(), where.settings.python
    version = where.ask("import pip, sys; print('%d.%d' % sys.version_info[:2])")
    if version == wanted and stamp.get("base", base) == base:
        return
    if VENV.exists() and any(VENV.iterdir()) and not (VENV / "pyvenv.cfg").exists():
        raise SetupError(".venv is no virtual environment: move it away and call again")
    if importlib.util.find_spec("ensurepip") is None:
        raise SetupError(
            f"this Python {wanted} cannot make virtual environments: "
            f"install python{wanted}-venv, or name another Python with PYTHON="
        )
    say(f"{'new' if version is None else 'replacing'} .venv with Python {wanted}")
    python = getattr(sys, "_base_executable", sys.executable)
    good, output = where.run("venv", [python, "-m", "venv", "--clear", str(VENV)])
    if not good:
        raise SetupError(explain("venv", output, "the package index", str(LOG.relative_to(ROOT))))
    write_stamp(where.settings, done=False)


def install_torch(where: Environment) -> None:
    """torch from ``TORCH_INDEX_URL`` where that is given, else from the default index."""
    pin, url = pinned(where.pins, "torch"), where.settings.torch_index_url
    more = ["--extra-index-url", url] if url else []
    if url and not where.has(pin):
        source = f"TORCH_INDEX_URL={without_password(url)}"
        alone = ["install", "--no-deps", "--index-url", url, *where.links, pin]
        where.pip(f"{pin} from TORCH_INDEX_URL", *alone, source=source)
    where.pip(f"{pin} and what it needs", *where.constrained, *where.links, *more, pin)


def check_imports(where: Environment) -> None:
    """Raise ``SetupError`` if what was installed does not import."""
    code = "import torch_scatter, torch_sparse, fairchem.core, ocp_faenet"
    good, output = where.run("imports", [where.python, "-c", code])
    if not good:
        last = (output.strip().splitlines() or ["no message"])[-1]
        raise SetupError(
            f"the environment does not import ({last}): wheels built for another torch? "
            "Remove .venv and build/wheels, leave EXTRA_WHEELS out, and call again"
        )


def set_up() -> None:
    """All steps."""
    stamp = read_stamp()
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    settings = Settings.read(os.environ, python, stamp)
    where = Environment(settings)
    if stamp.get("key") == settings.key(ROOT) and where.ask("import pip") is not None:
        say(".venv is up to date")
        return
    began = time.monotonic()
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("")
    make_venv(where, stamp)
    write_stamp(settings, done=False)
    quick = ("--retries", "1", "--timeout", "20")  # a dead network shows here, and soon
    tools = ("pip>=23", "setuptools", "wheel", "ninja")
    where.pip("pip, setuptools, wheel, ninja", *where.constrained, *quick, *where.links, *tools)
    extensions = Extensions(where)
    extensions.check()
    install_torch(where)
    extensions.install()
    package = ("--no-build-isolation", "-e", f"{ROOT}[test,lint]")
    where.pip("ocp_faenet and the pins", *where.constrained, *where.links, *package)
    check_imports(where)
    write_stamp(settings, done=True)
    say(f"done in {(time.monotonic() - began) / 60:.1f} min: .venv/bin/ocp-faenet is ready")


def main() -> int:
    """Exit status: 0, or 1 after one line on standard error."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # ended by a batch system, a closed terminal
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, signal.default_int_handler)
    try:
        set_up()
    except (SetupError, OSError) as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; call again and it goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
