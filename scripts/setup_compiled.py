"""torch-scatter and torch-sparse: from ready wheels, else compiled against the installed torch."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setup_pip import ROOT, Environment, say
from setup_rules import COMPILED, Machine, SetupError, pinned, with_cuda

MINUTES = {"torch-scatter": 6, "torch-sparse": 8}  # seen on two cores
COMPILERS = {"CC": ("cc", "gcc", "clang"), "CXX": ("c++", "g++", "clang++")}


def find_compilers() -> dict[str, str]:
    """``CC`` and ``CXX`` for the build; raises ``SetupError`` unless they compile ``Python.h``."""
    found = {}
    for variable, usual in COMPILERS.items():
        tried = [os.environ[variable]] if os.environ.get(variable) else list(usual)
        here = [command for command in tried if shutil.which(shlex.split(command)[0])]
        if not here:
            raise SetupError(
                f"no C++ compiler ({variable}: {', '.join(tried)}) to build torch-scatter and "
                "torch-sparse: install g++ (package build-essential or gcc-c++), "
                "or give their wheels with EXTRA_WHEELS=FOLDER"
            )
        found[variable] = here[0]
    include = ["-I", sysconfig.get_path("include"), "-I", sysconfig.get_path("platinclude")]
    command = [*shlex.split(found["CXX"]), "-std=c++17", "-fsyntax-only", *include, "-xc++", "-"]
    test = "#include <Python.h>\n#include <vector>\n"
    if subprocess.run(command, input=test, capture_output=True, text=True).returncode != 0:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise SetupError(
            f"{found['CXX']} does not compile C++17 with Python.h: install python{version}-dev "
            "(or -devel), a newer compiler (CXX=), or name another Python with PYTHON="
        )
    return found


def nvcc_version(home: str) -> str | None:
    """Version of ``nvcc`` under ``home``, such as ``12.1``."""
    try:
        done = subprocess.run([f"{home}/bin/nvcc", "--version"], capture_output=True, text=True)
    except OSError:
        return None
    found = re.search(r"release ([\d.]+)", done.stdout)
    return found.group(1) if found else None


def look_at_machine(where: Environment) -> Machine:
    """What the installed torch sees of CUDA here."""
    answer = where.ask(
        "import json, torch; from torch.utils.cpp_extension import CUDA_HOME as home;"
        "print(json.dumps([torch.version.cuda, torch.cuda.is_available(), home]))"
    )
    if answer is None:
        raise SetupError("the installed torch does not import: remove .venv and call again")
    cuda, gpu, home = json.loads(answer)
    nvcc = nvcc_version(home) if home else None
    return Machine(cuda, nvcc, gpu, where.env.get("TORCH_CUDA_ARCH_LIST", ""))


class Extensions:
    """torch-scatter and torch-sparse: from ready wheels, else compiled against torch."""

    def __init__(self, where: Environment) -> None:
        self.where = where
        self.pins = [pinned(where.pins, name) for name in COMPILED]
        self.alone = ["install", "--no-deps", *where.links]

    def ready(self) -> bool:
        """Whether pip finds wheels of both (``FORCE_CUDA=1`` always compiles)."""
        if self.where.settings.force_cuda == "1":
            return False
        look = [*self.alone, "--dry-run", "--ignore-installed", "--only-binary=:all:", *self.pins]
        return self.where.run("wheels?", [self.where.python, "-m", "pip", *look])[0]

    def store(self, kind: str) -> Path:
        """Folder where compiled wheels are kept: a new ``.venv`` need not compile again."""
        torch = pinned(self.where.pins, "torch").replace("==", "")
        base = self.where.settings.base_key()[:8]
        return ROOT / "build" / "wheels" / f"py{self.where.settings.python}-{torch}-{kind}-{base}"

    def kept(self, kind: str, pin: str) -> bool:
        """Whether an earlier call compiled this one."""
        return any(self.store(kind).glob(pin.replace("-", "_").replace("==", "-") + "-*.whl"))

    def check(self) -> None:
        """Raise ``SetupError`` before gigabytes are fetched if a compiler will be missed."""
        kept = any(all(self.kept(kind, pin) for pin in self.pins) for kind in ("cpu", "cuda"))
        if not (all(map(self.where.has, self.pins)) or kept or self.ready()):
            find_compilers()

    def install(self) -> None:
        """Install both, unless they are there."""
        if all(map(self.where.has, self.pins)):
            return
        if self.ready():
            step = f"{' and '.join(self.pins)} from wheels"
            self.where.pip(step, *self.alone, "--only-binary=:all:", *self.pins)
            return
        cuda, why = with_cuda(self.where.settings.force_cuda, look_at_machine(self.where))
        kind = "cuda" if cuda else "cpu"
        for pin in self.pins:
            if not self.kept(kind, pin):
                self.compile(pin, kind, why)
        folder = str(self.store(kind))
        self.where.pip(
            f"{' and '.join(self.pins)} ({kind})",
            *("install", "--no-deps", "--no-index", "--find-links", folder, *self.pins),
        )

    def compile(self, pin: str, kind: str, why: str) -> None:
        """Compile one of them against the installed torch."""
        name = pin.split("==")[0]
        say(
            f"no wheel of {pin}: compiling it for {kind} ({why}); "
            f"about {MINUTES[name]} minutes on two cores, once"
        )
        flag = {"FORCE_CUDA": "1"} if kind == "cuda" else {"FORCE_ONLY_CPU": "1"}
        build = ("wheel", "--no-deps", "--no-build-isolation", "--no-cache-dir", "--no-binary")
        target = ("-w", str(self.store(kind)))
        env = flag | find_compilers()
        self.where.pip(f"{pin} compiled", *build, name, *target, pin, **env)
