"""Train and evaluate one run in this process: ``python -m ocp_faenet.adapters.worker FOLDER``.

Everything is the host's own: its context, trainer, task, loaders, checkpoint and evaluator.
"""

from __future__ import annotations

import fcntl
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairchem.core.common.utils import new_trainer_context
from fairchem.core.datasets.base_dataset import create_dataset

from ocp_faenet.adapters.checkpoints import save_beside
from ocp_faenet.adapters.curves import read_curves
from ocp_faenet.adapters.machine import machine_class
from ocp_faenet.adapters.resuming import ResumingTrainer
from ocp_faenet.adapters.runs import RunSpec, checkpoint_of, load_result, read_json, write_json

#: Scalars of the host's log that a result keeps begin so.
CURVES = ("train/", "val/")


class Stopwatch:
    """Seconds, and seconds of CPU time, spent inside the functions it wraps."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start, cpu = time.perf_counter(), time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start
                self.cpu_seconds += time.process_time() - cpu

        return timed


def execute(folder: Path) -> dict[str, Any]:
    """Run what ``folder/spec.json`` describes and write ``folder/result.json``.

    A second process that is given the same folder waits for the first and takes its result.
    """
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = load_result(folder)
        if done is not None:
            return done
        spec = RunSpec.from_json((folder / "spec.json").read_text())
        torch.set_num_threads(spec.threads)
        if spec.stage is not None:
            _train_first(spec.stage, folder.parent)
        result = {"name": spec.name, "seed": spec.seed, "key": folder.name, **_run(spec, folder)}
        write_json(folder / "result.json", result)
        return result


def _train_first(stage: RunSpec, root: Path) -> None:
    """Train what a run starts from, in a process of its own, unless that was done before.

    Raises:
        RuntimeError: it failed.
    """
    folder = stage.folder(root)
    if load_result(folder) is not None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(stage.to_json() + "\n")
    command = [sys.executable, "-m", "ocp_faenet.adapters.worker", str(folder)]
    with (folder / "log.txt").open("ab") as log:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    if done.returncode:
        raise RuntimeError(f"{stage.name}, seed {stage.seed}: failed; log: {folder / 'log.txt'}")


def _run(spec: RunSpec, folder: Path) -> dict[str, Any]:
    config = spec.runnable(folder)
    checkpoint = checkpoint_of(folder)
    _drop_if_broken(checkpoint)
    with new_trainer_context(config=config) as context:
        trainer = context.trainer
        if not isinstance(trainer, ResumingTrainer):  # which does so itself
            trainer.save = partial(save_beside, trainer.save)
        context.task.setup(trainer)
        training = _train(context.task, trainer, folder)
        trainer.logger = None  # what follows belongs to no curve
        splits = {name: _evaluate(trainer, src, folder, name) for name, src in spec.splits.items()}
        parameters = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        curves = read_curves(Path(trainer.config["cmd"]["logs_dir"]))
        normalizer = trainer.normalizers.get("energy")
        return {
            "parameters": parameters,
            "model": config["model"],
            "batch_size": config["optim"]["batch_size"],
            "epochs": config["optim"]["max_epochs"],
            "train_size": len(trainer.train_dataset),
            "train_mean": None if normalizer is None else float(normalizer.mean),
            "training": training,
            "splits": splits,
            "checkpoint": str(checkpoint),
            "curves": {tag: points for tag, points in curves.items() if tag.startswith(CURVES)},
            "torch": torch.__version__,
            "machine": machine_class(),
        }


def _train(task: Any, trainer: Any, folder: Path) -> dict[str, Any]:
    """Train to the end, and leave the weights of the end in the checkpoint.

    Seconds include those of earlier, interrupted attempts. Samples per second are those of this
    one; ``None`` where it had no step left.

    Raises:
        OSError: the checkpoint cannot be written.
    """
    finished = folder / "training.json"
    total = len(trainer.train_loader) * trainer.config["optim"]["max_epochs"]
    done = read_json(finished)
    if done is not None and trainer.step >= total:  # the step of the checkpoint, 0 without one
        return done
    for measured in folder.glob("measured_*.json"):  # of weights that are gone
        measured.unlink()
    validation, progress = Stopwatch(), _Progress(trainer, folder, total)
    first = trainer.step
    trainer.scheduler.step = progress.around(trainer.scheduler.step)
    trainer.validate = validation.around(trainer.validate)
    task.run()
    seconds, cpu_seconds = progress.spent()
    steps = trainer.step - first
    seen = steps / max(len(trainer.train_loader), 1) * len(trainer.train_dataset)

    def rate(of: float) -> float | None:
        return seen / max(of, 1e-9) if steps > 0 else None

    state = progress.state()
    training = {
        **{key: state[key] for key in ("seconds", "cpu_seconds", "resumed_at_steps")},
        "validation_seconds": validation.seconds,
        "samples_per_second": rate(seconds - validation.seconds),
        "samples_per_cpu_second": rate(cpu_seconds - validation.cpu_seconds),
        "resumed_at_step": first,
    }
    # The trainer saves every so many steps, which the last one need not be among.
    if trainer.save(checkpoint_file="checkpoint.pt", training_state=True) is None:
        raise OSError(f"{checkpoint_of(folder)}: not written at the end; make room on the disk")
    write_json(finished, training)
    return training


class _Progress:
    """How far a run is, in ``progress.json``: seconds of earlier, interrupted attempts are counted
    in, and every step at which an attempt went on is kept, if there is a checkpoint to go on from.
    """

    def __init__(self, trainer: Any, folder: Path, total: int) -> None:
        before = read_json(folder / "progress.json")
        if before is None or not checkpoint_of(folder).is_file():
            before = {}
        self.file, self.trainer, self.total = folder / "progress.json", trainer, total
        self.before = [float(before.get(key, 0.0)) for key in ("seconds", "cpu_seconds")]
        self.start = self.shown = time.perf_counter()
        self.cpu_start = time.process_time()
        resumed = [*before.get("resumed_at_steps", []), trainer.step]
        self.resumed = resumed if trainer.step > 0 else []
        write_json(self.file, self.state())  # where this attempt began, however soon it ends

    def spent(self) -> tuple[float, float]:
        """Wall and CPU seconds of this attempt."""
        return time.perf_counter() - self.start, time.process_time() - self.cpu_start

    def state(self) -> dict[str, Any]:
        """Of all attempts, as the file has it."""
        seconds, cpu_seconds = self.spent()
        return {
            "step": self.trainer.step,
            "steps": self.total,
            "seconds": self.before[0] + seconds,
            "cpu_seconds": self.before[1] + cpu_seconds,
            "resumed_at_steps": self.resumed,
        }

    def around(self, advance: Callable[..., Any]) -> Callable[..., None]:
        """``advance``, which ends a step; the file is written once a second."""

        def step(*args: Any, **kwargs: Any) -> None:
            advance(*args, **kwargs)
            now = time.perf_counter()
            if now - self.shown > 1.0:
                self.shown = now
                write_json(self.file, self.state())

        return step


@torch.no_grad()
def _evaluate(trainer: Any, src: str, folder: Path, name: str) -> dict[str, float]:
    """The host's metrics on one LMDB with the weights as they are, in eV and eV²."""
    config = {**trainer.config["dataset"], **trainer.config["val_dataset"], "src": src}
    dataset = create_dataset(config, "val")
    batch = trainer.config["optim"].get("eval_batch_size", trainer.config["optim"]["batch_size"])
    loader = trainer.get_dataloader(dataset, trainer.get_sampler(dataset, batch, shuffle=False))
    trainer.val_loader = loader
    watch = Stopwatch()
    metrics = watch.around(trainer.validate)("val", disable_tqdm=True)
    scores = {key: float(value["metric"]) for key, value in metrics.items()}
    if "energy" in trainer.config["outputs"]:
        _save_energies(trainer, dataset, loader, folder / f"predictions_{name}.npz")
    return {
        **scores,
        "structures": len(dataset),
        "samples_per_second": len(dataset) / watch.seconds,
        "samples_per_cpu_second": len(dataset) / watch.cpu_seconds,
    }


def _save_energies(trainer: Any, dataset: Any, loader: Any, path: Path) -> None:
    """Predicted and true energies of every structure, in eV, for pictures."""
    predictions = trainer.predict(loader, results_file=None, disable_tqdm=True)
    target = {_system_id(record): float(record.energy) for record in dataset}
    ids = predictions["ids"]
    energy = np.array([float(np.ravel(value)[0]) for value in predictions["energy"]])
    np.savez_compressed(path, ids=ids, energy=energy, target=[target[name] for name in ids])


def _system_id(record: Any) -> str:
    """The id that the host's ``predict`` gives a record."""
    name = str(int(record.sid))
    return f"{name}_{int(record.fid)}" if "fid" in record else name


def _drop_if_broken(checkpoint: Path) -> None:
    """Remove a checkpoint that a killed run left half written: the run starts anew then."""
    if not checkpoint.is_file():
        return
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=False)
    except Exception:  # it may hold any Python object, half of it
        logging.warning(f"{checkpoint} is incomplete; starting from the beginning")
        checkpoint.unlink()


if __name__ == "__main__":
    execute(Path(sys.argv[1]))
