"""The compiled kernels: found in a cache folder, or compiled into one, verified and loaded.

`kernels.cpp` is C++ without dependencies, compiled in seconds. The name of its compiled form,
``kernels-KEY-DIGEST.so``, holds a hash of what it depends on (source, flags, processor) and one of
its own bytes. Nodes of several types can therefore share a home, a node without a compiler takes
what another one compiled, and what a full disk or a crash cut short is not loaded.

PyTorch must have been imported: its OpenMP runtime is the one that the kernels run on.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.cpp")
COMPILERS = ("g++", "clang++", "c++")
#: The kernels round by a sum that some compilers reorder by default: `-fno-fast-math`, before the
#: flags that it would reset.
FLAGS = (
    *("-O3", "-fno-fast-math", "-march=native", "-ffp-contract=fast", "-fno-math-errno"),
    *("-std=c++17", "-fPIC"),
)
#: Longest that a compiler may take for a step, and that another process is waited for, s.
COMPILE_SECONDS, LOCK_SECONDS = 120, 150
P, I64, INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
#: Arguments of the kernels, as in the source.
SIGNATURES: dict[str, list[Any]] = {
    "faenet_forward": [I64, INT, INT, INT, INT, I64, I64, *[P] * 13],
    "faenet_backward": [I64, I64, INT, INT, INT, INT, *[P] * 12],
    "faenet_products": [INT, I64, I64, I64, *[P] * 4],
    "faenet_ewald": [I64, INT, *[I64] * 6, INT, INT, I64, *[P] * 9],
    "faenet_norm": [I64, INT, *[I64] * 3, *[P] * 4, ctypes.c_float, P],
    "faenet_basis": [I64, INT, INT, P, P],
}


def load_kernels(folders: Sequence[Path], patience: float = LOCK_SECONDS) -> ctypes.CDLL:
    """The kernels from the first folder that has them; compiled now if none has.

    Of processes that start together one compiles, and the others take what it made.

    Args:
        folders: where to look and to write, best first.
        patience: longest to wait for another process that compiles, s.

    Raises:
        RuntimeError: no compiler is found, or none makes what loads here; says why.
        OSError: the source cannot be read.
    """
    key = cache_key()
    found = _cached(folders, key)
    if found is not None:
        return found
    commands = compilers()
    if not commands:
        tried = filter(None, (os.environ.get("CXX"), *COMPILERS))
        raise RuntimeError(f"no C++ compiler found ({', '.join(tried)})")
    with _turn(folders, key, patience) as first:
        found = _cached(folders, key)
        if found is None and first:
            return _compiled(folders, key, commands)
    # What failed for the first would fail for each in turn: those that waited in vain go together.
    return found or _compiled(folders, key, commands)


def cache_folders() -> list[Path]:
    """The user's cache folder, and a private one where that cannot be written."""
    folders = []
    with suppress(RuntimeError, OSError):  # no home; links in a circle
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folders.append((cache / "ocp_faenet").resolve())  # links in one's own folder are one's own
    with suppress(FileNotFoundError):
        folders.append(Path(tempfile.gettempdir()) / f"ocp_faenet-{os.getuid()}")
    return folders


def compilers() -> list[list[str]]:
    """Commands to try: ``CXX``, then the usual ones, if they exist."""
    commands = [[name] for name in COMPILERS]
    with suppress(ValueError):  # quotes that do not close
        commands.insert(0, shlex.split(os.environ.get("CXX", "")))
    return [
        command
        for place, command in enumerate(commands)
        if command and shutil.which(command[0]) and command not in commands[:place]
    ]


def cache_key() -> str:
    """Hash of what the compiled form depends on, but for the compiler: any that works will do."""
    made_from = (SOURCE.read_bytes(), " ".join(FLAGS).encode(), _processor())
    return hashlib.sha256(b"\0".join(made_from)).hexdigest()[:16]


def _processor() -> bytes:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(x for x in lines if x.startswith(wanted))).encode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _cached(folders: Sequence[Path], key: str) -> ctypes.CDLL | None:
    """What lies in the folders, is whole and loads here."""
    for folder in filter(_is_ours, folders):
        for path in sorted(folder.glob(f"kernels-{key}-*.so")):
            try:
                if path.stem.endswith(_digest(path.read_bytes())):
                    return _load(path)
                log.info("%s is damaged", path)
            except OSError as error:  # from a system with a newer C library, say
                log.info("%s is not used: %s", path, error)
    return None


def _is_ours(folder: Path) -> bool:
    """Whether the folder is the user's, and nobody else can put there what will be loaded."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    others = stat.S_IWGRP | stat.S_IWOTH
    return (
        stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & others
    )


def _make(folder: Path) -> None:
    """The folder, if it is not there; raises ``OSError`` where it cannot be used."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not _is_ours(folder):
        raise PermissionError(f"{folder} is a link, or others may write there")


@contextmanager
def _turn(folders: Sequence[Path], key: str, patience: float) -> Iterator[bool]:
    """Within it no other process compiles, where the file system has locks.

    Yields:
        Whether this process is the first: it has not waited for another.
    """
    file = _lock_file(folders, key)
    if file is None:
        yield True
        return
    with file:
        yield _locked_at_once(file, patience)


def _lock_file(folders: Sequence[Path], key: str) -> IO[bytes] | None:
    for folder in folders:
        with suppress(OSError):
            _make(folder)
            return (folder / f"{key}.lock").open("ab")
    return None


def _locked_at_once(file: IO[bytes], patience: float) -> bool:
    """Lock the file, as soon as that can be done; gives up after ``patience`` seconds."""
    import fcntl  # not everywhere, and not before it is needed

    start = time.monotonic()
    at_once = True
    while time.monotonic() - start < patience:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            at_once = False
            time.sleep(0.1)
        except OSError:  # a file system without locks: two may compile, which does no harm
            return True
        else:
            return at_once
    return False


def _compiled(folders: Sequence[Path], key: str, commands: Sequence[list[str]]) -> ctypes.CDLL:
    """By the first compiler whose work loads here."""
    reasons = []
    for command in commands:
        try:
            with tempfile.TemporaryDirectory() as work:
                content = _compile(command, Path(work))
            return _install(content, folders, key)
        except (OSError, subprocess.SubprocessError) as error:
            reasons.append(f"{shlex.join(command)}: {_reason(error)}")
            log.info("kernels not compiled by %s", reasons[-1])
    raise RuntimeError("; ".join(reasons))


def _compile(command: Sequence[str], work: Path) -> bytes:
    # Linked without -fopenmp: its symbols are then those of the OpenMP runtime that PyTorch has
    # loaded already, and not of a second one with threads of its own.
    steps = (
        [*FLAGS, "-fopenmp", "-c", str(SOURCE), "-o", str(work / "k.o")],
        ["-shared", str(work / "k.o"), "-o", str(work / "k.so")],
    )
    for arguments in steps:
        subprocess.run(
            [*command, *arguments], check=True, timeout=COMPILE_SECONDS,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
        )  # fmt: skip
    return (work / "k.so").read_bytes()


def _install(content: bytes, folders: Sequence[Path], key: str) -> ctypes.CDLL:
    """Written to the first folder that takes it and that it loads from."""
    failures = []
    for folder in folders:
        try:
            _make(folder)
            with tempfile.TemporaryDirectory(dir=folder) as work:
                place = Path(work) / "kernels.so"
                with place.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                found = _load(place)  # what does not load is not left behind
                os.replace(place, folder / f"kernels-{key}-{_digest(content)}.so")
                return found
        except OSError as error:
            failures.append(str(error))
    raise OSError("; ".join(failures) or "no folder to write to")


def _load(path: Path) -> ctypes.CDLL:
    """Raises ``OSError`` where symbols are missing, the kernels' own or those of OpenMP."""
    found = ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_LOCAL)
    for name, arguments in SIGNATURES.items():
        if not hasattr(found, name):
            raise OSError(f"{path} has no {name}")
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, None
    return found


def _reason(error: Exception) -> str:
    """In one line: of what a compiler said, the last that tells of an error."""
    said = getattr(error, "stderr", None)
    lines = said.strip().splitlines() if isinstance(said, str) else []
    telling = [line for line in lines if "error" in line.lower()] or lines or [str(error)]
    return telling[-1].strip()
