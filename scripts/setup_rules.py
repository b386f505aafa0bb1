"""Decisions of the set-up that need no machine: settings, stamp keys, CUDA or not, error lines."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

#: Files whose change calls for a new run of the set-up.
WATCHED = (
    "setup.cfg",
    "pyproject.toml",
    "constraints.txt",
    *(f"scripts/setup_{name}.py" for name in ("compiled", "env", "pip", "rules")),
)
#: Compiled against the installed torch; there are no wheels of them on the package index.
COMPILED = ("torch-scatter", "torch-sparse")

NETWORK = re.compile(
    r"NewConnectionError|Max retries exceeded|Connection(Refused|Reset)|Connection (refused|broken)"
    r"|(Connect|Read) ?Time(out|d out)|timed out|Temporary failure in name resolution"
    r"|Name or service not known|SSLError|ProxyError|from versions: none"
)


class SetupError(Exception):
    """The set-up cannot go on; the message is one line that says what to do."""


@dataclass(frozen=True)
class Settings:
    """The variables of ``make setup``; an empty string means "not given"."""

    python: str  # "3.11"
    torch_index_url: str = ""
    extra_wheels: str = ""
    force_cuda: str = ""

    @classmethod
    def read(cls, env: Mapping[str, str], python: str, remembered: Mapping[str, str]) -> Settings:
        """Settings from ``env``; a variable that is absent keeps its remembered value."""
        names = ("torch_index_url", "extra_wheels", "force_cuda")
        values = {n: env.get(n.upper(), remembered.get(n, "")).strip() for n in names}
        if values["force_cuda"] not in ("", "0", "1"):
            raise SetupError(f"FORCE_CUDA={values['force_cuda']}: give 0, 1 or nothing (automatic)")
        values["extra_wheels"] = wheel_folder(values["extra_wheels"], "EXTRA_WHEELS" in env)
        return cls(python=python, **values)

    def remember(self) -> dict[str, str]:
        """What the stamp keeps for calls that leave the variables out."""
        values = asdict(self)
        del values["python"]
        return values | {"base": self.base_key()}

    def base_key(self) -> str:
        """Of what the environment is made of: a new value means a new ``.venv``."""
        return digest([self.python, self.torch_index_url, self.force_cuda])

    def key(self, root: Path) -> str:
        """Of everything: a new value means another run of the set-up."""
        files = [hashlib.sha256((root / name).read_bytes()).hexdigest() for name in WATCHED]
        return digest([json.dumps(asdict(self), sort_keys=True), *files])


def wheel_folder(given: str, explicit: bool) -> str:
    """Absolute path of ``EXTRA_WHEELS``; a remembered folder that has gone is forgotten."""
    if not given or "://" in given:
        return given
    folder = Path(given).expanduser().resolve()
    if folder.is_dir():
        return str(folder)
    if explicit:
        raise SetupError(f"EXTRA_WHEELS={given}: no such folder; name one, or leave it empty")
    return ""


def digest(parts: list[str]) -> str:
    """SHA-256 of ``parts``, kept apart."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def pinned(constraints: str, name: str) -> str:
    """``name==version`` as the text of ``constraints.txt`` has it."""
    found = re.search(rf"^{re.escape(name)}==([^\s;#]+)", constraints, re.MULTILINE)
    if found is None:
        raise SetupError(f"constraints.txt has no line {name}==...: restore the file")
    return f"{name}=={found.group(1)}"


def without_password(url: str) -> str:
    """``url`` fit for printing."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


@dataclass(frozen=True)
class Machine:
    """What the installed torch and the toolkit on ``PATH`` say of CUDA; versions like ``12.1``."""

    torch_cuda: str | None
    nvcc: str | None
    gpu: bool
    arch_list: str = ""


def with_cuda(force: str, machine: Machine) -> tuple[bool, str]:
    """Whether to compile the CUDA kernels of torch-scatter and torch-sparse, and why.

    Without ``FORCE_CUDA`` they are compiled where torch sees a GPU and nvcc is of torch's own
    major version (anything else cannot compile). Raises ``SetupError`` where 1 cannot be had.
    """
    if force == "0":
        return False, "FORCE_CUDA=0"
    matches = None not in (machine.torch_cuda, machine.nvcc) and (
        str(machine.torch_cuda).split(".")[0] == str(machine.nvcc).split(".")[0]
    )
    if force == "1":
        _refuse_impossible_cuda(machine, matches)
        return True, "FORCE_CUDA=1"
    if not machine.gpu:
        return False, "no GPU seen; FORCE_CUDA=1 compiles the CUDA kernels too"
    if not matches:
        return False, f"nvcc {machine.nvcc} is not of torch's CUDA {machine.torch_cuda}"
    return True, "GPU seen"


def _refuse_impossible_cuda(machine: Machine, matches: bool) -> None:
    if machine.torch_cuda is None:
        raise SetupError(
            "FORCE_CUDA=1 but the installed torch is a CPU build: "
            "name a CUDA index with TORCH_INDEX_URL, or leave FORCE_CUDA out"
        )
    if not matches:
        raise SetupError(
            f"FORCE_CUDA=1 needs nvcc of CUDA {machine.torch_cuda} (found: {machine.nvcc}): "
            "load that toolkit (CUDA_HOME), or leave FORCE_CUDA out"
        )
    if not machine.gpu and not machine.arch_list:
        raise SetupError(
            "FORCE_CUDA=1 on a machine without a GPU: say for which, "
            "for example TORCH_CUDA_ARCH_LIST=8.0, or leave FORCE_CUDA out"
        )


def explain(step: str, output: str, source: str, log: str) -> str:
    """One line about a step of pip that failed with ``output``; ``source`` names the index."""
    if "No space left on device" in output:
        return f"{step}: the disk is full; the environment takes about 8 GB (see {log})"
    if NETWORK.search(output):
        return (
            f"{step}: {source} cannot be reached or lacks the package; check network and proxy, "
            f"set PIP_INDEX_URL, or install offline as docs/install.md says (see {log})"
        )
    errors = re.findall(r"^\s*(?:ERROR|error): (.+)$", output, re.MULTILINE)
    return f"{step} failed: {errors[-1].strip() if errors else 'no message'} (see {log})"
