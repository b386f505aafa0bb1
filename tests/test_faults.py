"""Accidents of long runs: signals, kills, full disks, lost files, broken records, dead ranks."""

from __future__ import annotations

import json
import os
import pickle
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

import faults
import plugin_fixtures as fx
from ocp_faenet.adapters import interruption
from ocp_faenet.adapters.datasets import CheckedLmdbDataset
from ocp_faenet.adapters.interruption import Interruption, LoaderContext
from ocp_faenet.adapters.launch import RankDiedError, run_here
from ocp_faenet.adapters.overrides import read_arguments
from ocp_faenet.adapters.sweeps import make_grid

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_garbage")]  # they fork


def record(folder: Path, name: str) -> dict:
    return json.loads((folder / "results" / name / "run.json").read_text())


def accident(kind: str, at: int, folder: Path, **more) -> dict:
    return {"kind": kind, "at": at, "marker": str(folder / f"{kind}-{at}"), **more}


@pytest.mark.parametrize(
    ("signum", "read", "step"),
    [
        (signal.SIGUSR2, 11, 5),  # while the sixth step gets its data, in the second epoch
        (signal.SIGTERM, 16, 7),  # while the last step of the second epoch does
    ],
)
def test_a_signal_between_and_a_resume_at_the_same_step(
    signum, read, step, accident_data, undisturbed, tmp_path
):
    happens = accident("signal", read, tmp_path, signum=int(signum))
    config = faults.write_config(tmp_path / "config.yml", accident_data, [happens])
    given = faults.arguments(config, tmp_path, "run")
    log = tmp_path / "log.txt"
    assert faults.run(given, log) == 128 + signum, log.read_text()[-3000:]
    stopped = fx.checkpoint(tmp_path, "run")
    assert (stopped["step"], stopped["epoch"]) == (step, step / faults.EPOCH)
    assert stopped["scheduler"]["last_epoch"] == step
    assert record(tmp_path, "run")["state"] == "stopped"
    assert "--timestamp-id run" in log.read_text()
    assert faults.run(given, log) == 0, log.read_text()[-3000:]
    faults.same_weights(tmp_path, "run", undisturbed)
    # One log, in which each step stands once.
    assert faults.steps_logged(tmp_path, "run") == list(range(1, faults.STEPS + 1))
    rates = [event.value for event in faults.scalars(tmp_path, "run", "train/lr")]
    assert rates == [event.value for event in faults.scalars(undisturbed, "whole", "train/lr")]
    assert record(tmp_path, "run")["state"] == "finished"


@pytest.mark.parametrize("when", ["reading", "starting"])
def test_a_signal_to_all_processes_of_a_job_spares_those_that_load(
    when, accident_data, undisturbed, tmp_path, monkeypatch
):
    """SLURM and a shell signal the loader's processes too; PyTorch has them end on SIGTERM."""
    if when == "reading":
        happens = [accident("signal", 3, tmp_path, signum=int(signal.SIGTERM), group=True)]
    else:
        happens = []
        faults.signal_at_the_start_of_loaders(monkeypatch, tmp_path / "signalled")
    optim = {**faults.OPTIM, "num_workers": 2}
    config = faults.write_config(tmp_path / "config.yml", accident_data, happens, optim=optim)
    given = faults.arguments(config, tmp_path, "run")
    log = tmp_path / "log.txt"
    assert faults.run(given, log, group=True) == 128 + signal.SIGTERM, log.read_text()[-3000:]
    assert "Stopped after step" in log.read_text()
    assert "is killed by signal" not in log.read_text()
    assert record(tmp_path, "run")["state"] == "stopped"
    assert faults.run(given, log) == 0, log.read_text()[-3000:]
    faults.same_weights(tmp_path, "run", undisturbed)


def test_a_loader_process_ends_where_its_parent_asks_and_not_where_another_does(monkeypatch):
    mine = Interruption()
    monkeypatch.setattr(interruption, "INTERRUPTION", mine)
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        mine.listen(list(handlers), lambda signum: None)
        ready, going_on = LoaderContext().Event(), LoaderContext().Event()

        def load() -> None:
            interruption.prepare_loader_process(0)
            for signum in handlers:
                os.kill(os.getpid(), signum)
            while signal.SIGTERM in signal.sigpending():  # two at a time would be one
                time.sleep(0.01)
            ready.wait()
            going_on.set()
            time.sleep(60)

        process = LoaderContext().Process(target=load)
        process.start()
        ready.set()
        assert going_on.wait(30)
        process.terminate()
        process.join(30)
        assert process.exitcode == 0
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())  # this process hears all again
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def test_a_signal_in_a_validation_has_it_done_again(accident_data, undisturbed, tmp_path):
    # The second of two records, in the first validation.
    happens = accident("signal", 2, tmp_path, signum=int(signal.SIGUSR2))
    config = faults.write_config(tmp_path / "config.yml", accident_data)
    content = yaml.safe_load(config.read_text())
    content["dataset"]["val"] |= {"format": "faults.AccidentLmdb", "accidents": [happens]}
    config.write_text(yaml.safe_dump(content, sort_keys=False))
    given = faults.arguments(config, tmp_path, "run")
    log = tmp_path / "log.txt"
    assert faults.run(given, log) == 128 + signal.SIGUSR2, log.read_text()[-3000:]
    stopped = fx.checkpoint(tmp_path, "run")
    assert stopped["step"] == faults.EPOCH
    assert stopped["val_metrics"] is None
    assert faults.run(given, log) == 0, log.read_text()[-3000:]
    faults.same_weights(tmp_path, "run", undisturbed)
    assert faults.steps_logged(tmp_path, "run", "val/loss") == [4, 8, 12]


@pytest.mark.parametrize(("read", "step"), [(11, 4), (18, 8)])
def test_a_kill_and_a_resume_from_the_last_checkpoint(
    read, step, accident_data, undisturbed, tmp_path
):
    happens = accident("signal", read, tmp_path, signum=int(signal.SIGKILL))
    config = faults.write_config(tmp_path / "config.yml", accident_data, [happens])
    given = faults.arguments(config, tmp_path, "run")
    log = tmp_path / "log.txt"
    assert faults.run(given, log) == -signal.SIGKILL
    assert fx.checkpoint(tmp_path, "run")["step"] == step
    assert record(tmp_path, "run")["state"] == "running"
    # A successor that was half written, as one killed a moment later would leave it.
    folder = tmp_path / "checkpoints" / "run"
    half = (folder / "checkpoint.pt").read_bytes()
    (folder / "checkpoint.pt.partial").write_bytes(half[: len(half) // 2])
    assert faults.run(given, log) == 0, log.read_text()[-3000:]
    faults.same_weights(tmp_path, "run", undisturbed)
    assert not (folder / "checkpoint.pt.partial").exists()


def test_the_stock_trainer_resumes_with_another_rate(
    accident_data, undisturbed, tmp_path, monkeypatch
):
    """The control: what the equalities above see in the host's own resume."""
    happens = accident("signal", 11, tmp_path, signum=int(signal.SIGKILL))
    config = faults.write_config(tmp_path / "config.yml", accident_data, [happens])
    given = faults.arguments(config, tmp_path, "run")
    faults.run(given, tmp_path / "log.txt")
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}")
    content = yaml.safe_load(config.read_text())
    resumed = fx.fairchem(content, tmp_path, "run")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    rates = [event.value for event in faults.scalars(tmp_path, "run", "train/lr")]
    assert rates != [event.value for event in faults.scalars(undisturbed, "whole", "train/lr")]


def test_a_full_disk_keeps_the_last_checkpoint_and_ends_with_an_error(accident_data, tmp_path):
    happens = accident("full", 9, tmp_path, limit=16_384)  # during the fifth step
    config = faults.write_config(tmp_path / "config.yml", accident_data, [happens])
    log = tmp_path / "log.txt"
    assert faults.run(faults.arguments(config, tmp_path, "run"), log) == 1
    text = log.read_text()
    assert "not written at step 6" in text
    assert "checkpoint.pt" in text.strip().splitlines()[-1]
    folder = tmp_path / "checkpoints" / "run"
    assert fx.checkpoint(tmp_path, "run")["step"] == 4
    assert (folder / "best_checkpoint.pt").is_file()
    assert not list(folder.glob("*.partial"))
    assert record(tmp_path, "run")["state"] == "failed"


def test_a_disk_that_was_full_for_a_while(accident_data, undisturbed, tmp_path):
    happens = [accident("full", 9, tmp_path, limit=16_384), accident("room", 15, tmp_path)]
    config = faults.write_config(tmp_path / "config.yml", accident_data, happens)
    log = tmp_path / "log.txt"
    assert faults.run(faults.arguments(config, tmp_path, "run"), log) == 0, log.read_text()[-3000:]
    assert "not written at step 6" in log.read_text()
    faults.same_weights(tmp_path, "run", undisturbed)


def test_a_removed_lmdb_ends_no_run_that_has_it_open(undisturbed, tmp_path):
    faults.write_data(tmp_path / "data")
    happens = {"kind": "unlink", "at": 9}
    config = faults.write_config(tmp_path / "config.yml", tmp_path / "data", [happens])
    given = faults.arguments(config, tmp_path, "run")
    log = tmp_path / "log.txt"
    assert faults.run(given, log) == 0, log.read_text()[-3000:]
    assert not (tmp_path / "data" / "train" / "data.lmdb").exists()
    faults.same_weights(tmp_path, "run", undisturbed)
    # The next run says what is missing.
    log.unlink()
    assert faults.run(given, log) == 1
    last = log.read_text().strip().splitlines()[-1]
    assert "train/data.lmdb: no such file" in last


def broken_data(folder: Path, length: int = 8) -> Path:
    """Records of which number 3 is half there and number 5 has no cell."""
    records = [fx.slab_record(seed) for seed in range(length)]
    whole = pickle.dumps(records[3], protocol=-1)
    records[3] = whole[: len(whole) // 2]
    del records[5].cell
    fx.write_lmdb(folder / "train" / "data.lmdb", records)
    fx.write_lmdb(folder / "test" / "data.lmdb", [fx.slab_record(90 + seed) for seed in range(2)])
    np.savez(folder / "train" / "metadata.npz", natoms=np.full(length, 8))
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_records_are_skipped_where_asked_and_counted(workers, tmp_path):
    data = broken_data(tmp_path / "data")
    optim = {**faults.OPTIM, "num_workers": workers}
    config = faults.write_config(tmp_path / "config.yml", data, optim=optim)
    log = tmp_path / "log.txt"
    given = faults.arguments(config, tmp_path, "strict")
    assert faults.run(given, log) == 1
    assert "skip_corrupt" in log.read_text() or "unlike the first" in log.read_text()
    log.unlink()
    given = faults.arguments(config, tmp_path, "run", "--dataset.train.skip_corrupt=true")
    assert faults.run(given, log) == 0, log.read_text()[-3000:]
    text = log.read_text()
    assert "dataset.train: 2 corrupt records skipped" in text
    assert text.count("record at index 3 cannot be read") >= 1
    counted = faults.scalars(tmp_path, "run", "train/skipped_records")
    assert [event.value for event in counted] == [2.0]
    # Eight places in four batches, as the sampler knows nothing of what is in them.
    assert fx.checkpoint(tmp_path, "run")["step"] == faults.STEPS


def test_a_loader_gives_what_is_good_of_a_batch(tmp_path):
    src = broken_data(tmp_path) / "train" / "data.lmdb"
    dataset = CheckedLmdbDataset({"src": str(src), "skip_corrupt": True})
    sids = [record.sid for record in dataset.__getitems__([2, 3, 4, 5, 3])]
    assert sids == [1002, 1004]
    assert dataset.skipped == 2
    with pytest.raises(ValueError, match="none of the 2 records"):
        dataset.__getitems__([3, 5])
    strict = CheckedLmdbDataset({"src": str(src)})
    with pytest.raises(ValueError, match="index 3"):
        strict.__getitems__([2, 3])
    assert strict.skipped == 0


def test_what_a_transform_raises_is_no_corrupt_record(tmp_path):
    fx.write_splits(tmp_path, train=2, test=1)
    src = str(tmp_path / "train" / "data.lmdb")
    dataset = CheckedLmdbDataset({"src": src, "skip_corrupt": True})

    def refuse(record):
        raise KeyError("a transform of its own")

    dataset.transforms = refuse
    with pytest.raises(KeyError, match="a transform of its own"):
        dataset.__getitems__([0, 1])
    assert dataset.skipped == 0


def test_two_jobs_of_one_second_have_folders_of_their_own(accident_data, tmp_path):
    config = faults.write_config(tmp_path / "config.yml", accident_data)
    logs = [tmp_path / "one.txt", tmp_path / "two.txt"]
    more = [("--seed", "1"), ("--seed", "2")]
    children = [
        faults.start(faults.arguments(config, tmp_path, "", *args), log)
        for log, args in zip(logs, more, strict=True)
    ]
    for child in children:
        child.join(400)
        assert child.exitcode == 0
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert len(names) == 2
    saved = [fx.checkpoint(tmp_path, name) for name in names]
    assert {checkpoint["config"]["cmd"]["seed"] for checkpoint in saved} == {1, 2}
    assert [checkpoint["step"] for checkpoint in saved] == [faults.STEPS] * 2
    for name in names:
        assert faults.steps_logged(tmp_path, name) == list(range(1, faults.STEPS + 1))


def test_a_rank_that_dies_ends_the_others_and_the_run_goes_on_later(
    accident_data, tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    happens = accident("signal", 5, tmp_path, signum=int(signal.SIGKILL), rank=1)
    optim = {**faults.OPTIM, "batch_size": 1, "load_balancing": False}
    config = faults.write_config(tmp_path / "config.yml", accident_data, [happens], optim=optim)
    _, content = read_arguments(faults.arguments(config, tmp_path, "run", "--num-gpus", "2"))
    job = make_grid(content, None)[0]
    with pytest.raises(RankDiedError, match="rank 1 ended with exit code -9"):
        run_here(job.config, 2)
    assert fx.checkpoint(tmp_path, "run")["step"] == 4
    given = faults.arguments(config, tmp_path, "run", "--optim.batch_size=2")
    log = tmp_path / "log.txt"
    assert faults.run(given, log) == 0, log.read_text()[-3000:]
    assert "resuming job" in log.read_text()
    assert fx.checkpoint(tmp_path, "run")["step"] == faults.STEPS
