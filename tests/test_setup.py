"""The set-up's decisions, and its one-line errors through the real script in a bare tree."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import setup_rules as rules  # noqa: E402
from setup_rules import Machine, Settings, SetupError  # noqa: E402

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout that holds only what the set-up reads."""
    for name in (*rules.WATCHED, "scripts/setup_env.sh"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def set_up(tree: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """``make setup``'s script in ``tree``."""
    drop = ("PYTHON", "TORCH_INDEX_URL", "EXTRA_WHEELS", "FORCE_CUDA", "CC", "CXX")
    env = {k: v for k, v in os.environ.items() if k not in drop and not k.startswith("PIP_")}
    env |= {"PIP_CONFIG_FILE": os.devnull, "PYTHON": sys.executable} | variables
    command = ["/bin/sh", str(tree / "scripts" / "setup_env.sh")]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


def program(folder: Path, name: str, text: str) -> Path:
    """An executable shell script."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The error line of a set-up that refused, and nothing but it on standard error."""
    assert done.returncode == 1, done
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("setup: ")
    return lines[0]


class TestStamp:
    @pytest.mark.parametrize("name", rules.WATCHED)
    def test_every_watched_file_counts(self, tree: Path, name: str) -> None:
        settings = Settings(python="3.11")
        before = settings.key(tree)
        assert settings.key(tree) == before
        with (tree / name).open("a") as file:
            file.write("\n")
        assert settings.key(tree) != before

    @pytest.mark.parametrize(
        ("changed", "new_venv"),
        [
            ({"python": "3.12"}, True),
            ({"torch_index_url": "https://index.example/cpu"}, True),
            ({"force_cuda": "1"}, True),
            ({"extra_wheels": "/wheels"}, False),
        ],
    )
    def test_variables(self, tree: Path, changed: dict[str, str], new_venv: bool) -> None:
        before, after = Settings(python="3.11"), Settings(**{"python": "3.11"} | changed)
        assert before.key(tree) != after.key(tree)
        assert (before.base_key() != after.base_key()) is new_venv

    def test_neighbouring_values_do_not_run_together(self) -> None:
        assert rules.digest(["ab", "c"]) != rules.digest(["a", "bc"])

    def test_absent_variables_are_remembered_and_empty_ones_reset(self) -> None:
        url = "https://index.example/cpu"
        first = Settings.read({"TORCH_INDEX_URL": url}, "3.11", {})
        assert Settings.read({}, "3.11", first.remember()) == first
        reset = Settings.read({"TORCH_INDEX_URL": ""}, "3.11", first.remember())
        assert reset == Settings(python="3.11")

    def test_a_remembered_folder_may_vanish_but_a_given_one_must_exist(
        self, tmp_path: Path
    ) -> None:
        gone = str(tmp_path / "gone")
        assert Settings.read({}, "3.11", {"extra_wheels": gone}).extra_wheels == ""
        with pytest.raises(SetupError, match=r"EXTRA_WHEELS=.*gone: no such folder"):
            Settings.read({"EXTRA_WHEELS": gone}, "3.11", {})

    def test_fitting_stamp_ends_the_call(self, tree: Path) -> None:
        venv = tree / ".venv"
        program_dir = venv / "bin"
        program_dir.mkdir(parents=True)
        program(program_dir, "python", f'exec "{sys.executable}" "$@"')
        stamp = {"key": Settings(python=HERE).key(tree)}
        (venv / "ocp_faenet_setup.json").write_text(json.dumps(stamp))
        done = set_up(tree)
        assert (done.returncode, done.stdout) == (0, "setup: .venv is up to date\n")
        assert not (tree / "build").exists()


class TestCuda:
    GPU = Machine(torch_cuda="12.1", nvcc="12.4", gpu=True)

    @pytest.mark.parametrize(
        ("force", "machine", "kernels"),
        [
            ("", GPU, True),
            ("0", GPU, False),
            ("1", GPU, True),
            ("", Machine("12.1", "12.1", gpu=False), False),
            ("", Machine("12.1", "13.0", gpu=True), False),
            ("", Machine("12.1", None, gpu=True), False),
            ("", Machine(None, "13.0", gpu=False), False),
            ("1", Machine("12.1", "12.1", gpu=False, arch_list="8.0"), True),
        ],
    )
    def test_choice(self, force: str, machine: Machine, kernels: bool) -> None:
        assert rules.with_cuda(force, machine)[0] is kernels

    @pytest.mark.parametrize(
        ("machine", "remedy"),
        [
            (Machine(None, "12.1", gpu=False), "TORCH_INDEX_URL"),
            (Machine("12.1", "13.0", gpu=True), r"nvcc of CUDA 12.1 \(found: 13.0\)"),
            (Machine("12.1", None, gpu=True), r"found: None"),
            (Machine("12.1", "12.1", gpu=False), "TORCH_CUDA_ARCH_LIST"),
        ],
    )
    def test_impossible(self, machine: Machine, remedy: str) -> None:
        with pytest.raises(SetupError, match=remedy):
            rules.with_cuda("1", machine)

    def test_unknown_value(self) -> None:
        with pytest.raises(SetupError, match="FORCE_CUDA=yes: give 0, 1"):
            Settings.read({"FORCE_CUDA": "yes"}, "3.11", {})


class TestExplain:
    @pytest.mark.parametrize(
        ("output", "line"),
        [
            ("OSError: [Errno 28] No space left on device", "disk is full"),
            ("WARNING: Retrying ... NewConnectionError('refused')", "the index cannot be reached"),
            (
                "ERROR: Could not find a version (from versions: none)",
                "the index cannot be reached",
            ),
            ("ERROR: first\nERROR: second\n", "torch failed: second"),
            ("", "torch failed: no message"),
        ],
    )
    def test_cause(self, output: str, line: str) -> None:
        said = rules.explain("torch", output, "the index", "build/setup.log")
        assert line in said
        assert "build/setup.log" in said
        assert "\n" not in said

    def test_passwords_are_not_shown(self) -> None:
        assert rules.without_password("https://me:pw@index.example/cpu") == (
            "https://index.example/cpu"
        )


class TestErrorLines:
    def test_no_such_python(self, tree: Path) -> None:
        assert "PYTHON=python9: no such command; give a Python 3.10" in one_line(
            set_up(tree, PYTHON="python9")
        )

    def test_wrong_python(self, tree: Path) -> None:
        fake = program(tree / "fake", "python3", "echo 3.13")
        assert f"PYTHON={fake} is Python 3.13; give" in one_line(set_up(tree, PYTHON=str(fake)))

    def test_python_that_is_none(self, tree: Path) -> None:
        fake = program(tree / "fake", "python3", "exit 0")
        assert "does not run as a Python" in one_line(set_up(tree, PYTHON=str(fake)))

    def test_no_python(self, tree: Path) -> None:
        tools = tree / "tools"
        tools.mkdir()
        (tools / "dirname").symlink_to(shutil.which("dirname") or "")
        line = one_line(set_up(tree, PYTHON="", PATH=str(tools)))
        assert line.startswith("setup: no Python 3.10 to 3.12 on PATH")

    def test_no_network(self, tree: Path) -> None:
        with socket.socket() as closed:  # bound but not listening: connections are refused
            closed.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{closed.getsockname()[1]}/simple"
            line = one_line(set_up(tree, PIP_INDEX_URL=url))
        assert "the package index cannot be reached" in line
        assert "PIP_INDEX_URL" in line

    def test_foreign_folder_is_kept(self, tree: Path) -> None:
        (tree / ".venv").mkdir()
        (tree / ".venv" / "thesis.txt").touch()
        assert ".venv is no virtual environment" in one_line(set_up(tree))
        assert (tree / ".venv" / "thesis.txt").exists()

    def test_no_compiler(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import setup_compiled

        for name in ("CC", "CXX"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(SetupError, match=r"no C\+\+ compiler .*install g\+\+"):
            setup_compiled.find_compilers()

    def test_no_headers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import setup_compiled

        for name in ("CC", "CXX"):
            monkeypatch.setenv(name, str(program(tmp_path / "bin", name.lower(), "exit 1")))
        with pytest.raises(SetupError, match=rf"install python{HERE}-dev"):
            setup_compiled.find_compilers()


class TestPins:
    def test_every_direct_requirement_is_pinned(self) -> None:
        config = ConfigParser()
        config.read(ROOT / "setup.cfg")
        extras = config["options.extras_require"]
        text = "\n".join([config["options"]["install_requires"], extras["test"], extras["lint"]])
        wanted = {re.split(r"[<>=~! ]", line)[0].lower() for line in text.split("\n") if line}
        pins = (ROOT / "constraints.txt").read_text()
        assert wanted <= set(re.findall(r"^([a-z0-9.-]+)==", pins, re.MULTILINE))

    def test_missing_pin(self) -> None:
        assert rules.pinned("a==1\ntorch-scatter==2.1.2\ntorch==2.4.1 ; x\n", "torch") == (
            "torch==2.4.1"
        )
        with pytest.raises(SetupError, match="no line torch=="):
            rules.pinned("torch-scatter==2.1.2\n", "torch")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_set_up_that_is_ended_leaves_nothing_running(tree: Path, number: signal.Signals) -> None:
    """pip and the compilers that it started end with it, those that ignore SIGTERM too."""
    pids = tree / "pids"
    stubborn = (
        f"trap '' TERM INT HUP; sleep 600 & echo $$ $! > {pids}.new; mv {pids}.new {pids}; wait"
    )
    code = (
        "import signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "import setup_env, setup_pip, setup_rules\n"
        # Whoever runs the tests in the background may have these ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "setup_pip.LOG.parent.mkdir(exist_ok=True)\n"
        "where = setup_pip.Environment(setup_rules.Settings.read({}, '3.11', {}))\n"
        "setup_env.set_up = lambda: where.run('compiled', ['/bin/sh', '-c', sys.argv[2]])\n"
        "sys.exit(setup_env.main())\n"
    )
    command = [sys.executable, "-c", code, str(tree / "scripts"), stubborn]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        while not pids.exists():
            assert time.monotonic() < until, process.poll()
            time.sleep(0.05)
        process.send_signal(number)
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()  # or the test would wait for it
    assert process.returncode == 130
    assert said == "setup: interrupted; call again and it goes on from here\n"
    for pid in map(int, pids.read_text().split()):
        assert not alive(pid)


def alive(pid: int) -> bool:
    """Whether a process runs (one that waits to be collected does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
