"""Nodes of a cluster for the kernels' build: fake compilers, a cache, a folder for other files."""

from __future__ import annotations

import ctypes
import os
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ocp_faenet.nn import native, native_build


def required_kernels() -> ctypes.CDLL:
    """The compiled kernels; the test skips without a compiler and fails where one is no use."""
    found = native.library()
    if found is None:
        if os.environ.get("OCP_FAENET_NATIVE") == "0":
            pytest.skip("OCP_FAENET_NATIVE=0")
        if not native_build.compilers():
            pytest.skip("no C++ compiler")
        pytest.fail("a C++ compiler, but no kernels: the warning above says why")
    return found


@dataclass
class Node:
    """A machine with compilers of its own.

    Attributes:
        bin: all that is on PATH.
        cache: XDG_CACHE_HOME.
        tmp: folder for temporary files.
        ready: kernels that load here, which fake compilers copy.
    """

    bin: Path
    cache: Path
    tmp: Path
    ready: Path

    @classmethod
    def make(cls, root: Path, ready: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
        node = cls(root / "bin", root / "cache", root / "tmp", ready)
        for folder in (node.bin, node.cache, node.tmp):
            folder.mkdir(parents=True)
        monkeypatch.setenv("PATH", str(node.bin))
        monkeypatch.setenv("XDG_CACHE_HOME", str(node.cache))
        monkeypatch.setattr(tempfile, "tempdir", str(node.tmp))
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.delenv("OCP_FAENET_NATIVE", raising=False)
        return node

    def script(self, name: str, body: str) -> Path:
        """A command of that name; ``$out`` is its output, and each call is counted."""
        path = self.bin / name
        path.write_text(
            f"#!/bin/sh\necho >> {shlex.quote(str(path))}.calls\n"
            f'last=; for a in "$@"; do [ "$last" = -o ] && out=$a; last=$a; done\n{body}\n'
        )
        path.chmod(0o755)
        return path

    def compiler(self, name: str = "g++", gives: Path | None = None, before: str = "") -> Path:
        """One that works, or whose work is the file that it ``gives``."""
        body = f'{before}\n/bin/cp {shlex.quote(str(gives or self.ready))} "$out"'
        return self.script(name, body)

    def calls(self, name: str = "g++") -> int:
        """How often the command ran: twice to compile and link."""
        path = self.bin / f"{name}.calls"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def load(self, **options: float) -> ctypes.CDLL:
        """As `native.library` does."""
        return native_build.load_kernels(native_build.cache_folders(), **options)

    def kernels(self) -> list[Path]:
        """Everything that is kept in the cache."""
        return sorted(self.cache.glob("ocp_faenet/*.so"))

    @property
    def private(self) -> Path:
        """The folder that takes the cache's place."""
        return self.tmp / f"ocp_faenet-{os.getuid()}"


def in_processes(work: Callable[[], object], count: int = 1) -> list[int]:
    """Exit statuses of copies of this process that do the work at once; negative for signals."""
    children = []
    for _ in range(count):
        child = os.fork()
        if child == 0:
            try:
                work()
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
