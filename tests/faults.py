"""Runs that meet with an accident, in processes of their own, and the data that cause it."""

from __future__ import annotations

import gc
import json
import logging
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import plugin_fixtures as fx
from ocp_faenet.adapters.datasets import CheckedLmdbDataset
from ocp_faenet.adapters.launch import ClusterOptions, complete, run_here
from ocp_faenet.adapters.overrides import read_arguments
from ocp_faenet.adapters.sweeps import make_grid

#: An average of weights, a rate that changes with every step.
OPTIM = {
    "batch_size": 2,
    "num_workers": 0,
    "optimizer": "AdamW",
    "lr_initial": 1e-2,
    "scheduler": "CosineAnnealingLR",
    "T_max": 12,
    "max_epochs": 3,
    "ema_decay": 0.9,
    "checkpoint_every": 2,
    "eval_every": 4,
}
#: Steps of an epoch and of a run: eight records in batches of two, three epochs.
EPOCH, STEPS = 4, 12


class AccidentLmdb(CheckedLmdbDataset):
    """The plugin's dataset; an accident happens as a loader reads record ``accident.at``.

    Kinds: ``signal`` to this process, with ``group`` to all of its group, ``unlink`` of the file,
    ``full`` disk (no file may grow beyond ``limit`` bytes), ``room`` on it again, ``gate``: wait
    until ``file`` exists. With a ``marker`` it happens once, whatever the number of processes that
    follow each other; with a ``rank``, to that rank alone.
    """

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        return [self._read_with_accidents(idx) for idx in indices]

    def _read_with_accidents(self, idx: int) -> Any:
        self.reads = getattr(self, "reads", 0) + 1
        for accident in self.config.get("accidents", []):
            if accident["at"] == self.reads and self._first(accident):
                self._happen(accident)
        return self[idx]

    def _first(self, accident: dict[str, Any]) -> bool:
        if "rank" in accident and accident["rank"] != int(os.environ["RANK"]):
            return False
        marker = Path(accident.get("marker", os.devnull))
        if marker.is_file():
            return False
        if "marker" in accident:
            marker.touch()
        return True

    def _happen(self, accident: dict[str, Any]) -> None:
        kind = accident["kind"]
        if kind == "signal":
            os.kill(0 if accident.get("group") else os.getpid(), accident["signum"])
        elif kind == "unlink":
            Path(self.config["src"]).unlink()
        elif kind == "gate":
            while not Path(accident["file"]).exists():
                time.sleep(0.05)
        elif kind in ("full", "room"):
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            soft = accident["limit"] if kind == "full" else hard
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def signal_at_the_start_of_loaders(monkeypatch: pytest.MonkeyPatch, marker: Path) -> None:
    """The first process of a loader sends SIGTERM to all of its group while it sets itself up.

    At the moment from which on PyTorch has it end on that.
    """
    handling = torch.utils.data._utils.signal_handling
    set_handlers = handling._set_worker_signal_handlers

    def set_and_signal() -> None:
        set_handlers()
        if not marker.is_file():
            marker.touch()
            os.kill(0, signal.SIGTERM)

    monkeypatch.setattr(handling, "_set_worker_signal_handlers", set_and_signal)


def write_data(folder: Path) -> None:
    """``train/`` and ``test/data.lmdb``."""
    fx.write_splits(folder, train=2 * EPOCH, test=2)


def write_config(
    path: Path, data: Path, accidents: list[dict[str, Any]] | None = None, **sections: Any
) -> Path:
    """A run of `STEPS` steps with ``accidents`` in its training data."""
    config = fx.run_config(data, fx.STOCHASTIC, **{"optim": OPTIM, **sections})
    config["dataset"].pop("test")
    if accidents is not None:
        config["dataset"]["train"] |= {"format": "faults.AccidentLmdb", "accidents": accidents}
        config["dataset"]["val"] |= {"format": "lmdb", "accidents": []}
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def arguments(config_yml: Path, run_dir: Path, name: str, *more: str) -> list[str]:
    """Of ``ocp-faenet main``."""
    given = ["--mode", "train", "--config-yml", str(config_yml), "--cpu", "--print-every", "1"]
    return [*given, "--run-dir", str(run_dir), *(["--timestamp-id", name] if name else []), *more]


def start(
    given: Sequence[str], log: Path, ranks: int = 1, method: str = "fork", group: bool = False
) -> multiprocessing.process.BaseProcess:
    """What ``ocp-faenet main`` does with a single run, in a child of this process.

    ``method`` ``spawn`` for what does not survive a fork, such as the threads of W&B; with
    ``group`` the child and its own are a process group.
    """
    context: Any = multiprocessing.get_context(method)
    gc.collect()  # what a child would not get rid of: see `conftest.no_garbage`
    child = context.Process(target=_child, args=(list(given), log, ranks, group))
    child.start()
    return child


def _child(given: list[str], log: Path, ranks: int, group: bool) -> None:
    if group:
        os.setpgrp()
    with log.open("a") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
    logging.getLogger().handlers.clear()  # pytest's, so that the host sets its own up
    os.environ.update(OMP_NUM_THREADS="1")
    _, config = read_arguments(given)
    job = complete(make_grid(config, None), ClusterOptions())[0]
    run_here(job.config, ranks)


def run(given: Sequence[str], log: Path, ranks: int = 1, limit: float = 400, **how: Any) -> int:
    """Exit code of `start`, which takes ``how``; a signal's number is negative."""
    child = start(given, log, ranks, **how)
    child.join(limit)
    if child.is_alive():
        child.kill()
        raise AssertionError(f"the run did not end: {log.read_text()[-2000:]}")
    return child.exitcode if child.exitcode is not None else -1


def steps_logged(run_dir: Path, name: str, tag: str = "train/lr") -> list[int]:
    """Steps of a tag of the tensorboard log, all files of the run together."""
    return [event.step for event in scalars(run_dir, name, tag)]


def scalars(run_dir: Path, name: str, tag: str) -> list[Any]:
    """Events of one tag, in the order of their files."""
    events = EventAccumulator(
        str(run_dir / "logs" / "tensorboard" / name), size_guidance={"scalars": 0}
    )
    events.Reload()
    return list(events.Scalars(tag))


def wait_for(
    condition: Callable[[], Any],
    limit: float,
    what: Callable[[], str],
    meanwhile: Callable[[], Any] = lambda: None,
) -> Any:
    """The first true value of ``condition``, looked at twice a second."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        meanwhile()
        time.sleep(0.5)
    raise AssertionError(f"not within {limit} s: {what()}")


def same_weights(folder: Path, name: str, undisturbed: Path, other: str = "whole") -> None:
    """The end of run ``name`` is that of the undisturbed ``other``, to the last bit."""
    for file in ("checkpoint.pt", "best_checkpoint.pt"):
        found, whole = fx.checkpoint(folder, name, file), fx.checkpoint(undisturbed, other, file)
        assert found["state_dict"].keys() == whole["state_dict"].keys()
        for key, value in whole["state_dict"].items():
            assert torch.equal(found["state_dict"][key], value), (file, key)
        assert found.get("step") == whole.get("step")
        assert found["normalizers"] == whole["normalizers"]
        if "ema" in whole:
            assert whole["ema"]["num_updates"] == found["ema"]["num_updates"]
            for mine, theirs in zip(
                found["ema"]["shadow_params"], whole["ema"]["shadow_params"], strict=True
            ):
                assert torch.equal(mine, theirs)
    assert fx.checkpoint(folder, name)["step"] == STEPS
    best = [
        json.loads((place / "results" / run / "run.json").read_text())
        for place, run in ((folder, name), (undisturbed, other))
    ]
    assert best[0]["best"] == best[1]["best"]
    assert best[0]["best_step"] == best[1]["best_step"]
