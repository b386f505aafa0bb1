"""The embedded set: same bytes whoever makes it, goes on after a kill, refuses a foreign folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from data_cases import MINI, digests, quiet
from ocp_faenet.cli.data import data
from ocp_faenet.data.generate import CACHE, OutputError, generate
from ocp_faenet.data.jobs import plan
from ocp_faenet.data.lmdb_io import record_bytes
from ocp_faenet.data.presets import PRESETS
from ocp_faenet.data.records import to_data
from ocp_faenet.data.relax_job import run_relax_job
from ocp_faenet.data.systems import Split

SCRIPT = """
if __name__ == "__main__":
    import sys
    from pathlib import Path
    from ocp_faenet.data.generate import generate
    from ocp_faenet.data.presets import Preset
    generate(Path(sys.argv[1]), Preset(**{preset}), 5, workers=2)
"""


@pytest.fixture(scope="module")
def mini(tmp_path_factory) -> Path:
    """A very small set, made in this process."""
    out = tmp_path_factory.mktemp("mini")
    seen: list[int] = []
    manifest = generate(out, MINI, 5, progress=seen.append)
    assert sum(seen) == sum(job.count for job in plan(MINI, 5))
    assert manifest["counts"]["is2re/train"] == MINI.train
    return out


def test_killed_and_resumed_by_others_gives_the_same_bytes(mini, tmp_path):
    """Two workers, killed after the first results, then one process: as if never interrupted."""
    out = tmp_path / "out"
    script = tmp_path / "make.py"
    script.write_text(SCRIPT.format(preset=asdict(MINI)))
    child = subprocess.Popen([sys.executable, str(script), str(out)], env=quiet())
    deadline = time.monotonic() + 400
    while not _results(out) and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert _results(out)
    assert not (out / "manifest.json").exists()
    generate(out, MINI, 5, workers=1)
    assert not (out / CACHE).exists()
    assert digests(out) == digests(mini)


def test_interrupted_means_stopped(tmp_path):
    """Ctrl-C drops the jobs that wait, and its folder can be gone on with."""
    out = tmp_path / "out"
    script = tmp_path / "make.py"
    script.write_text(SCRIPT.format(preset=asdict(replace(MINI, train=4000))))
    child = subprocess.Popen(
        [sys.executable, str(script), str(out)],
        env=quiet(),
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 400
    while not _results(out) and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=120)
    assert child.returncode != 0
    assert b"KeyboardInterrupt" in errors
    assert 0 < len(_results(out)) < 100
    assert not (out / "manifest.json").exists()


def test_finished_parts_are_not_made_again(mini, tmp_path, monkeypatch):
    out = tmp_path / "out"
    calls = []

    def stop_after_two(job):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(job.name)
        return run_relax_job(job)

    monkeypatch.setattr("ocp_faenet.data.pool.run_relax_job", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        generate(out, MINI, 5)
    first = list(calls)

    def count(job):
        calls.append(job.name)
        return run_relax_job(job)

    monkeypatch.setattr("ocp_faenet.data.pool.run_relax_job", count)
    generate(out, MINI, 5)
    assert len(first) == 2
    assert len(calls) == len(set(calls)) == sum(not job.dense for job in plan(MINI, 5))
    assert digests(out) == digests(mini)
    before = digests(out)
    generate(out, MINI, 5)  # complete: nothing is done
    assert digests(out) == before
    assert len(calls) == len(set(calls))


def test_records_do_not_depend_on_how_jobs_are_cut():
    whole = next(job for job in plan(MINI, 5) if job.split is Split.TRAIN)
    part = run_relax_job(replace(whole, start=3, count=2))
    full = run_relax_job(whole)
    assert len(full.is2re) == 8
    for ours, theirs in zip(part.is2re, full.is2re[3:5], strict=True):
        assert record_bytes(to_data(ours)) == record_bytes(to_data(theirs))


def test_seeds_differ(mini, tmp_path):
    other = run_relax_job(replace(plan(MINI, 6)[0], count=1)).is2re[0]
    same = run_relax_job(replace(plan(MINI, 5)[0], count=1)).is2re[0]
    assert record_bytes(to_data(other)) != record_bytes(to_data(same))


def test_folder_of_another_set_is_refused(mini, tmp_path):
    with pytest.raises(OutputError, match="holds another data set"):
        generate(mini, MINI, 6)
    taken = tmp_path / "file"
    taken.write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        generate(taken, MINI, 5)
    result = CliRunner().invoke(data, ["emt", str(mini), "--preset", "tiny"])
    assert result.exit_code == 2
    assert result.output.strip().splitlines()[-1].startswith("Error: ")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "manifest.json").write_text("{")
    with pytest.raises(OutputError, match="not readable"):
        generate(broken, MINI, 5)


def test_presets_are_as_documented():
    assert PRESETS["demo"].train == 1000
    assert PRESETS["full"].train == 10000
    assert PRESETS["tiny"].train <= 60


def _results(out: Path) -> list[Path]:
    return [file for file in out.glob(f"{CACHE}/*/*") if not file.name.startswith(".")]
