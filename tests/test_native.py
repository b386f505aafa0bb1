"""Building and loading of the compiled kernels on machines of many kinds."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import platform
import shutil
import stat
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from native_cases import Node, in_processes, required_kernels
from ocp_faenet.nn import native, native_build
from ocp_faenet.nn.messages import Operands
from ocp_faenet.nn.norm import GraphNorm
from ocp_faenet.nn.topology import Topology

pytestmark = pytest.mark.usefixtures("no_garbage")  # they fork

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="Linux alone has kernels")


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> Path:
    """Kernels that the compiler of this machine made."""
    if not native_build.compilers():
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("ready")
    folder.chmod(0o700)
    native_build.load_kernels([folder])
    return next(folder.glob("*.so"))


@pytest.fixture
def node(tmp_path, ready, monkeypatch) -> Node:
    """A machine without any compiler."""
    return Node.make(tmp_path / "node", ready, monkeypatch)


@pytest.fixture
def fresh():
    """`native.library` as a new process finds it."""
    native.library.cache_clear()
    yield
    native.library.cache_clear()


# -- what lies in the cache -----------------------------------------------------------------------


def test_a_node_without_a_compiler_takes_what_another_compiled(node, monkeypatch):
    """In a home that nodes share; but not where another processor compiled it."""
    node.compiler()
    node.load()
    (node.bin / "g++").unlink()
    assert node.load().faenet_lanes() in (8, 16)
    monkeypatch.setattr(native_build, "_processor", lambda: b"model name: another")
    with pytest.raises(RuntimeError, match="no C\\+\\+ compiler found"):
        node.load()


def test_node_types_of_one_home_do_not_meet(node, monkeypatch):
    node.compiler()
    node.load()
    monkeypatch.setattr(native_build, "_processor", lambda: b"model name: another")
    node.load()
    assert (node.calls(), len(node.kernels())) == (4, 2)
    node.load()
    assert node.calls() == 4


@pytest.mark.parametrize("left", [0.0, 0.002, 0.5])
def test_a_file_that_was_cut_short_is_made_again(node, left):
    """Loading it may end a process with a bus error, so that happens in others here."""

    def fails():
        with pytest.raises(RuntimeError, match="no C\\+\\+ compiler found"):
            node.load()

    node.compiler()
    node.load()
    (path,) = node.kernels()
    whole = path.read_bytes()
    os.truncate(path, int(left * len(whole)))
    assert in_processes(node.load) == [0]
    assert node.calls() == 4
    assert [path.read_bytes() for path in node.kernels()] == [whole]
    os.truncate(path, len(whole) // 2)
    (node.bin / "g++").unlink()
    assert in_processes(fails) == [0]


def test_what_does_not_load_here_is_made_again(node):
    """Whole, but of a system with another C library, say: both files stay."""
    node.compiler()
    node.load()
    (path,) = node.kernels()
    other = b"made elsewhere"
    stem = path.stem.rpartition("-")[0]
    (path.parent / f"{stem}-{native_build._digest(other)}.so").write_bytes(other)
    path.unlink()
    node.load()
    assert node.calls() == 4
    assert path in node.kernels()


def test_files_are_on_disk_before_they_have_their_name(node, monkeypatch):
    """Else a crash of the machine leaves a short file of the right name."""
    node.compiler()
    done, fsync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        done.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    def named(source, target):
        done.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", named)
    node.load()
    assert done == [node.ready.stat().st_size, node.kernels()[0].name]


# -- compilers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "named",
    ["/usr/bin/env g++", "'{bin}/a compiler' -x", "{bin}/g++", "/usr/bin/env 'g++' -B'a b'"],
)
def test_cxx_with_arguments(node, monkeypatch, named):
    node.compiler("g++" if "g++" in named else "a compiler")
    monkeypatch.setenv("CXX", named.format(bin=node.bin))
    node.load()
    assert len(node.kernels()) == 1


def test_cxx_comes_first_and_the_usual_ones_in_turn(node, monkeypatch):
    for name in ("c++", "clang++", "g++", "mine"):
        node.compiler(name)
        monkeypatch.setenv("CXX", "mine")
        shutil.rmtree(node.cache / "ocp_faenet", ignore_errors=True)
        node.load()
        monkeypatch.delenv("CXX")
    counts = {name: node.calls(name) for name in ("c++", "clang++", "g++", "mine")}
    assert counts == {"c++": 2, "clang++": 2, "g++": 2, "mine": 2}


@pytest.fixture
def not_ours(tmp_path, ready) -> dict[str, Path]:
    """Libraries that do not load, for OpenMP of another kind, or load and hold something else."""
    texts = {
        "kmpc": 'extern "C" void __kmpc_nothing(); extern "C" void f() { __kmpc_nothing(); }',
        "other": 'extern "C" int faenet_lanes() { return 8; }',
    }
    for name, text in texts.items():
        source = tmp_path / f"{name}.cpp"
        source.write_text(text)
        command = [*native_build.compilers()[0], "-shared", "-fPIC", str(source)]
        subprocess.run([*command, "-o", str(tmp_path / f"{name}.so")], check=True)
    return {name: tmp_path / f"{name}.so" for name in texts}


@pytest.mark.parametrize("kind", ["absent", "quotes", "flags", "idle", "text", "kmpc", "other"])
def test_a_compiler_that_is_no_use_is_passed_over(not_ours, node, monkeypatch, kind):
    """One that is not there, that refuses, that makes nothing, or what does not load."""
    node.compiler("g++")
    named = "'mine" if kind == "quotes" else "mine -O1"
    monkeypatch.setenv("CXX", named)
    if kind == "flags":
        node.script("mine", "echo 'mine: error: unknown flag' >&2; exit 1")
    elif kind == "idle":
        node.script("mine", "exit 0")
    elif kind != "absent":
        node.compiler("mine", gives=not_ours.get(kind, Path(__file__)))
    node.load()
    assert node.calls() == 2
    assert node.calls("mine") == {"absent": 0, "quotes": 0, "flags": 1}.get(kind, 2)
    assert [path.read_bytes() for path in node.kernels()] == [node.ready.read_bytes()]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of x86-64")
@pytest.mark.parametrize("march", ["x86-64", "x86-64-v3"])
@torch.no_grad()
def test_processors_without_avx(tmp_path, ready, monkeypatch, march):
    """The same numbers from vectors that registers hold and that they do not."""
    if march != "x86-64" and "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("no AVX2 here")
    flags = [flag.replace("-march=native", f"-march={march}") for flag in native_build.FLAGS]
    assert f"-march={march}" in flags
    monkeypatch.setattr(native_build, "FLAGS", tuple(flags))
    found = native_build.load_kernels([tmp_path / "cache"])
    assert found.faenet_lanes() == 8
    monkeypatch.setattr(native, "library", lambda: found)
    rows, matrices = torch.randn(37, 11), torch.randn(2, 11, 40)
    parts = zip(rows.split([30, 7]), matrices, strict=True)
    plain = torch.cat([part @ matrix for part, matrix in parts])
    torch.testing.assert_close(native.products(rows, matrices, (30, 7)), plain)
    x, norm = 30 * torch.randn(1, 9, 40), GraphNorm(40, per_graph=True)
    norm.weight.fill_(20.0)  # either end of the sigmoid
    topology = Topology(*[torch.zeros(9, dtype=torch.int64)] * 3, 1)
    plain = F.silu(norm(x, topology))
    assert native.norm_and_silu(x, norm, topology)
    torch.testing.assert_close(x, plain, rtol=1e-5, atol=1e-5)


# -- what is said ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("fresh")
def test_one_warning_with_reason_and_remedy(node, caplog):
    node.script("g++", "printf 'k.cpp:1: error: no such flag\\ncompilation ended.\\n' >&2; exit 1")
    with caplog.at_level(logging.INFO):
        assert native.library() is None
        assert native.library() is None
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    for part in ("g++: k.cpp:1: error: no such flag.", "Install g++ or set CXX", "FAENET_NATIVE=0"):
        assert part in warning
    assert "\n" not in warning


@pytest.mark.usefixtures("fresh")
def test_a_warning_names_compilers_that_are_not_there(node, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "icpx -fast")
    assert native.library() is None
    assert "no C++ compiler found (icpx -fast, g++, clang++, c++)" in caplog.text


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("why", ["works", "silenced", "system"])
def test_no_warning(node, monkeypatch, caplog, why):
    node.compiler() if why == "works" else node.script("g++", "exit 1")
    if why == "silenced":
        monkeypatch.setenv("OCP_FAENET_NATIVE", "0")
    elif why == "system":
        monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert (native.library() is not None) == (why == "works")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert node.calls() == (2 if why == "works" else 0)


# -- places ---------------------------------------------------------------------------------------


def test_a_private_folder_where_home_cannot_be_written(node):
    node.compiler()
    node.cache.rmdir()
    node.cache.write_text("no folder")
    node.load()
    (path,) = node.private.glob("kernels-*.so")
    assert path.read_bytes() == node.ready.read_bytes()
    assert stat.S_IMODE(node.private.stat().st_mode) == 0o700
    (node.bin / "g++").unlink()
    node.load()


def test_no_home_at_all(node, monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)
    assert native_build.cache_folders() == [node.private]


def test_a_link_in_ones_own_cache_is_followed(node, tmp_path):
    node.compiler()
    (tmp_path / "scratch").mkdir(mode=0o700)
    (node.cache / "ocp_faenet").symlink_to(tmp_path / "scratch")
    node.load()
    assert len(list((tmp_path / "scratch").glob("*.so"))) == 1


@pytest.mark.parametrize("fault", ["none", "owner", "link", "mode"])
def test_no_code_from_a_folder_where_others_write(node, tmp_path, monkeypatch, fault):
    """Neither loaded from there nor written: somebody else could have put it there."""
    node.compiler()
    folder = tmp_path / "shared"
    native_build.load_kernels([folder])
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.so")}
    if fault == "owner":
        mine = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    elif fault == "link":
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere")
    elif fault == "mode":
        folder.chmod(0o777)
    if fault == "none":
        native_build.load_kernels([folder])
    else:
        with pytest.raises(RuntimeError, match="is a link, or others may write there"):
            native_build.load_kernels([folder])
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.so")} == before


# -- processes that start together ----------------------------------------------------------------


def test_of_four_processes_one_compiles(node):
    node.compiler(before="/bin/sleep 0.5")
    assert in_processes(node.load, 4) == [0] * 4
    assert node.calls() == 2
    assert len(node.kernels()) == 1


def test_a_lock_that_is_never_given_back_is_not_waited_for(node):
    """By a process that hangs."""
    node.compiler()
    folder = native_build.cache_folders()[0]
    folder.mkdir(mode=0o700)
    with (folder / f"{native_build.cache_key()}.lock").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        node.load(patience=0.3)
    assert len(node.kernels()) == 1


def test_locks_that_are_not_there_are_done_without(node, monkeypatch):
    """A file system without them, and one that has no room for the file."""

    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    node.compiler()
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        node.load()
    (path,) = node.kernels()
    path.unlink()
    for folder in native_build.cache_folders():
        lock = folder / f"{native_build.cache_key()}.lock"
        lock.unlink(missing_ok=True)
        lock.mkdir(parents=True)
        folder.chmod(0o700)
    node.load()
    assert node.kernels() == [path]


def test_those_that_waited_in_vain_do_not_wait_for_each_other(node):
    """A compiler that fails after a minute would hold up each process for all before it."""
    folders = native_build.cache_folders()
    with native_build._turn(folders, "key", 60) as first:
        assert first
        seen, waits = [], threading.Event()

        def later():
            waits.set()
            with native_build._turn(folders, "key", 60) as first:
                seen.append(first)

        thread = threading.Thread(target=later)
        thread.start()
        waits.wait()
        time.sleep(0.3)
        assert not seen
    thread.join()
    assert seen == [False]


# -- where kernels apply --------------------------------------------------------------------------


def _norm(kind):
    norm = GraphNorm(48, per_graph=True).to(**kind)
    with torch.no_grad():
        native.norm_and_silu(torch.zeros(1, 4, 48, **kind), norm, SimpleNamespace())


def _ewald(kind):
    h, waves = torch.zeros(1, 4, 48, **kind), torch.zeros(1, 4, 6, **kind)
    group = SimpleNamespace(counts=torch.tensor([4]), waves=waves)
    native.ewald_group(h, h, group, torch.zeros(1, 6, 48, **kind), [], 48, torch.empty_like(h))


def _convolution(kind):
    messages = SimpleNamespace(radial=None)
    x, rows = torch.zeros(4, 48, **kind), torch.zeros(9, 1, dtype=torch.int64)
    features, matrices = torch.zeros(9, 3, **kind), torch.zeros(1, 3, 48, **kind)
    native.pass_for(Operands(x, features, matrices, x, rows, None, messages))


USES = {
    "basis": lambda kind: native.chebyshev_products(torch.zeros(5, 3, **kind), 4),
    "products": lambda kind: native.products(
        torch.zeros(5, 6, **kind), torch.zeros(1, 6, 8, **kind), (5,)
    ),
    "norm": _norm,
    "ewald": _ewald,
    "convolution": _convolution,
}


@pytest.mark.parametrize("use", USES)
def test_nothing_is_compiled_for_tensors_that_kernels_do_not_take(use, monkeypatch):
    """Double precision, and another device than the CPU; single precision there asks for them."""
    asked = []
    monkeypatch.setattr(native, "library", lambda: asked.append(1))
    for kind in ({"dtype": torch.float64}, {"device": "meta"}):
        USES[use](kind)
    assert not asked
    with native.switched_off():
        USES[use]({})
    assert not asked
    USES[use]({})
    assert asked


# -- these tests ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["works", "broken", "absent", "switched off"])
def test_a_broken_compiler_fails_tests_and_none_skips_them(node, monkeypatch, case):
    monkeypatch.setattr(native, "library", lambda: "kernels" if case == "works" else None)
    if case != "absent":
        node.script("g++", "exit 1")
    if case == "switched off":
        monkeypatch.setenv("OCP_FAENET_NATIVE", "0")
    if case == "works":
        assert required_kernels() == "kernels"
        return
    ends = {"fails": pytest.fail.Exception, "skips": pytest.skip.Exception}
    with pytest.raises(tuple(ends.values())) as caught:
        required_kernels()
    assert caught.type is ends["fails" if case == "broken" else "skips"]
