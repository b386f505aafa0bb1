"""Where the time of a training epoch goes: the stock trainer with stopwatches in it."""

from __future__ import annotations

import functools
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from fairchem.core.common.utils import merge_dicts, new_trainer_context

from ocp_faenet.adapters import datasets
from ocp_faenet.adapters.datasets import CheckedLmdbDataset
from ocp_faenet.adapters.runs import RunSpec

REST = "rest of the loop"
#: Stages that make batches, in the order of their work; the last waits for worker processes.
LOADING = ("LMDB read", "unpickling", "transforms", "checks", "collating", "sampling, waiting")
#: Stages of the model's own work.
MODEL = ("forward", "loss", "backward", "optimiser")
STAGES = (*LOADING, *MODEL, "metrics", "logging", "checkpoint", "validation", REST)


class Stages:
    """Wall and CPU seconds by stage; those of an inner stage are not counted to the outer."""

    def __init__(self) -> None:
        self.clear()
        self._open: list[str] = []
        self._sealed = False

    def clear(self) -> None:
        """Start counting anew."""
        self.wall = dict.fromkeys(STAGES, 0.0)
        self.cpu = dict.fromkeys(STAGES, 0.0)
        self._last = (time.perf_counter(), time.process_time())

    def charge(self) -> None:
        """Count the time since the last look to the innermost stage."""
        now = (time.perf_counter(), time.process_time())
        name = self._open[-1] if self._open else REST
        self.wall[name] += now[0] - self._last[0]
        self.cpu[name] += now[1] - self._last[1]
        self._last = now

    @contextmanager
    def stage(self, name: str, *, sealed: bool = False) -> Iterator[None]:
        """Count what runs inside to ``name``; ``sealed`` takes no notice of stages within."""
        if self._sealed:
            yield
            return
        self.charge()
        self._open.append(name)
        self._sealed = sealed
        try:
            yield
        finally:
            self.charge()
            self._open.pop()
            self._sealed = False

    def around(
        self, function: Callable[..., Any], name: str, *, sealed: bool = False
    ) -> Callable[..., Any]:
        """``function`` as stage ``name``."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name, sealed=sealed):
                return function(*args, **kwargs)

        return timed


class _Loader:
    """A loader whose ``next`` is a stage."""

    def __init__(self, loader: Any, stages: Stages) -> None:
        self._loader, self._stages = loader, stages

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        with self._stages.stage(LOADING[-1]):
            batches = iter(self._loader)
        while True:
            with self._stages.stage(LOADING[-1]):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


@dataclass(frozen=True)
class EpochTimes:
    """One training epoch.

    Attributes:
        samples: structures in it.
        validated: structures of the validation at its end.
        workers: loader processes; with 0 the loader's stages are counted one by one.
        wall, cpu: seconds by stage, of this process alone.
        loader: wall seconds of an epoch of the loader with nothing else to do.
        loader_cpu: CPU seconds of this process in it.
    """

    samples: int
    validated: int
    workers: int
    wall: dict[str, float]
    cpu: dict[str, float]
    loader: float
    loader_cpu: float

    @property
    def model_rate(self) -> float:
        """Training samples per second of forward, loss, backward and optimiser alone."""
        seconds = self.wall if self.workers else self.cpu
        return self.samples / sum(seconds[name] for name in MODEL)

    @property
    def loader_rate(self) -> float:
        """Samples per second of the loader alone."""
        return self.samples / (self.loader if self.workers else self.loader_cpu)


def time_epoch(
    spec: RunSpec, workers: int | None = None, progress: Callable[[], object] = lambda: None
) -> EpochTimes:
    """Train two epochs on the CPU with the stock trainer and count the second.

    Args:
        spec: the run; nothing of it is kept.
        workers: loader processes instead of the configuration's.
        progress: called after every step.

    Raises:
        ValueError: a configuration or data that cannot be used.
    """
    optim: dict[str, Any] = {"max_epochs": 2}
    if workers is not None:
        optim["num_workers"] = workers
    spec = replace(spec, overrides=merge_dicts(dict(spec.overrides), {"optim": optim})[0])
    torch.set_num_threads(spec.threads)
    stages = Stages()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as patches:
        config = spec.runnable(Path(folder))
        with new_trainer_context(config=config) as context:
            trainer = context.trainer
            context.task.setup(trainer)
            for patch in _stopwatches(trainer, stages, progress):
                patches.enter_context(patch)
            trainer.train(disable_eval_tqdm=True)
            stages.charge()
            wall, cpu = dict(stages.wall), dict(stages.cpu)
            start, start_cpu = time.perf_counter(), time.process_time()
            samples = sum(len(batch.natoms) for batch in trainer.train_loader)
            end, end_cpu = time.perf_counter(), time.process_time()
            validated = 0 if trainer.val_loader is None else len(trainer.val_dataset)
    count = config["optim"]["num_workers"]
    return EpochTimes(samples, validated, count, wall, cpu, end - start, end_cpu - start_cpu)


def _stopwatches(
    trainer: Any, stages: Stages, progress: Callable[[], object]
) -> Iterator[AbstractContextManager[Any]]:
    """Patches that put stages into a trainer and into the loading of its data."""
    around = stages.around
    set_epoch, step = trainer.train_sampler.set_epoch_and_start_iteration, trainer.scheduler.step

    def new_epoch(*args: Any) -> None:
        stages.clear()  # what is left at the end is the last epoch
        set_epoch(*args)

    def stepped(*args: Any, **kwargs: Any) -> None:
        with stages.stage("optimiser"):
            step(*args, **kwargs)
        progress()

    put = mock.patch.object
    yield put(trainer.train_sampler, "set_epoch_and_start_iteration", new_epoch)
    yield put(trainer.scheduler, "step", stepped)
    for name, stage in {
        "_forward": "forward",
        "_compute_loss": "loss",
        "_backward": "backward",
        "_compute_metrics": "metrics",
    }.items():
        yield put(trainer, name, around(getattr(trainer, name), stage))
    for name, stage in {"save": "checkpoint", "validate": "validation"}.items():
        yield put(trainer, name, around(getattr(trainer, name), stage, sealed=True))
    yield put(trainer.optimizer, "step", around(trainer.optimizer.step, "optimiser"))
    if trainer.ema is not None:
        yield put(trainer.ema, "update", around(trainer.ema.update, "optimiser"))
    if trainer.logger is not None:
        yield put(trainer.logger, "log", around(trainer.logger.log, "logging"))
    if trainer.train_loader.num_workers == 0:  # else all this happens elsewhere
        collate = around(trainer.train_loader.collate_fn, "collating")
        yield put(trainer.train_loader, "collate_fn", collate)
        yield from _inside_the_dataset(_innermost(trainer.train_dataset), stages)
    yield put(trainer, "train_loader", _Loader(trainer.train_loader, stages))


def _inside_the_dataset(dataset: Any, stages: Stages) -> Iterator[AbstractContextManager[Any]]:
    put, around = mock.patch.object, stages.around
    for name, stage in {"__getitem__": "checks", "_read": "LMDB read"}.items():
        yield put(CheckedLmdbDataset, name, around(getattr(CheckedLmdbDataset, name), stage))
    timed = {**vars(pickle), "loads": around(pickle.loads, "unpickling")}
    yield put(datasets, "pickle", SimpleNamespace(**timed))
    borrowed = {"pyg2_data_transform": "unpickling", "rename_data_object_keys": "transforms"}
    for name, stage in borrowed.items():
        yield put(datasets, name, around(getattr(datasets, name), stage))
    yield put(dataset, "transforms", around(dataset.transforms, "transforms"))


def _innermost(dataset: Any) -> Any:
    """The dataset below the host's subsets."""
    while not isinstance(dataset, CheckedLmdbDataset) and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    if not isinstance(dataset, CheckedLmdbDataset):
        raise ValueError(f"{type(dataset).__name__}: only LMDB data sets are timed from inside")
    return dataset
