"""One training run as a value: what defines it, where it is cached, what came out of it.

Studies (`compare`, and those that follow it) are lists of :class:`RunSpec`. A run lives in a
folder named after the hash of everything that defines it; its ``result.json`` is written last
and whole, so a study that was interrupted takes up its finished runs from there and its
unfinished ones from their last checkpoint. What a folder lost or holds broken is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fairchem.core.common.flags import flags
from fairchem.core.common.utils import build_config, load_config, merge_dicts

from ocp_faenet.adapters.datasets import check_lmdb
from ocp_faenet.adapters.schedules import LENGTHS
from ocp_faenet.data.digests import file_digest

#: Steps after which the host's log starts its running means of training errors anew.
LOG_WINDOW = 100
#: Part of every hash: raise it when the meaning of a result changes.
PROTOCOL = 1
#: Of every result.
SECTIONS = ("training", "splits")


@dataclass(frozen=True)
class RunSpec:
    """A run of the stock trainer.

    Attributes:
        name: what tables call it; not part of its identity.
        config_yml: configuration, read by the host's own loader.
        overrides: nested dictionary laid over it.
        seed: of weights, shuffling and frames.
        splits: LMDBs on which the final weights are evaluated, by name.
        threads: of PyTorch.
        starts_from: fields of another spec, whose trained backbone this run starts with.
    """

    name: str
    config_yml: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    splits: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    starts_from: Mapping[str, Any] | None = None

    @property
    def stage(self) -> RunSpec | None:
        """The run whose backbone this one starts with."""
        return None if self.starts_from is None else RunSpec(**self.starts_from)

    def with_seed(self, seed: int) -> RunSpec:
        """The same run with another seed, the run that it starts from included."""
        stage = self.starts_from
        started = None if stage is None else {**stage, "seed": seed}
        return replace(self, seed=seed, starts_from=started)

    def config(self) -> dict[str, Any]:
        """The configuration with its includes and overrides, nothing of the machine in it.

        Raises:
            ValueError: files included together that contradict each other.
        """
        config, _, conflicts = load_config(self.config_yml)
        if conflicts:
            raise ValueError(f"{self.config_yml}: its includes contradict each other: {conflicts}")
        merged: dict[str, Any] = merge_dicts(config, dict(self.overrides))[0]
        return merged

    def key(self) -> str:
        """Hash of configuration, seed and the content of every data file."""
        config = self.config()
        sources = {"train": config["dataset"]["train"]["src"], **self.splits}
        content = {
            "protocol": PROTOCOL,
            "config": _without_sources(config),
            "seed": self.seed,
            "threads": self.threads,
            "data": {split: file_digest(Path(src)) for split, src in sorted(sources.items())},
        }
        if self.stage is not None:
            content["starts_from"] = self.stage.key()
        text = json.dumps(content, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def folder(self, root: Path) -> Path:
        """Where the run lives under ``root``: its name does not matter if its key is there."""
        key = self.key()
        same = sorted(root.glob(f"*-seed{self.seed}-{key}"))
        return same[0] if same else root / f"{self.name}-seed{self.seed}-{key}"

    def runnable(self, folder: Path) -> dict[str, Any]:
        """The configuration as ``fairchem --mode train`` would build it, kept in ``folder``.

        Whatever the logger of the configuration, the log stays there too: published ones have W&B,
        which wants a key, and a measurement is no run that somebody looks for among their own.
        """
        arguments = ["--mode", "train", "--config-yml", self.config_yml, "--cpu"]
        arguments += ["--run-dir", str(folder), "--timestamp-id", "run", "--seed", str(self.seed)]
        arguments += ["--identifier", self.name, "--print-every", str(LOG_WINDOW)]
        parsed, rest = flags.get_parser().parse_known_args(arguments)
        config: dict[str, Any] = merge_dicts(build_config(parsed, rest), dict(self.overrides))[0]
        config["logger"] = "tensorboard"
        if self.stage is not None:
            start = checkpoint_of(self.stage.folder(folder.parent))
            del config["model"]["backbone"]  # the host would build a new one
            config["model"]["finetune_config"] = {"starting_checkpoint": str(start)}
        return config

    def to_json(self) -> str:
        """Text from which :meth:`from_json` makes an equal spec."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> RunSpec:
        """The spec that :meth:`to_json` wrote."""
        return cls(**json.loads(text))


def with_epochs(spec_config: Mapping[str, Any], train_size: int, epochs: int) -> dict[str, Any]:
    """Overrides that give a configuration ``epochs`` epochs, its schedule stretched to them.

    An ``eval_every`` that is ``None`` becomes the steps of an epoch.

    Args:
        spec_config: a resolved configuration, for its batch size and scheduler.
        train_size: number of training structures.
        epochs: how many times each is seen.
    """
    optim = spec_config["optim"]
    steps = math.ceil(train_size / optim["batch_size"])
    overrides: dict[str, Any] = {"max_epochs": epochs}
    if optim.get("eval_every", steps) is None:
        overrides["eval_every"] = steps
    if optim.get("scheduler") in LENGTHS:
        overrides[LENGTHS[optim["scheduler"]]] = epochs * steps
    return {"optim": overrides}


def count_records(src: str) -> int:
    """Number of structures of an LMDB; see `check_lmdb` for what it raises."""
    return check_lmdb(src)


def checkpoint_of(folder: Path) -> Path:
    """Where a run in ``folder`` leaves its weights."""
    return folder / "checkpoints" / "run" / "checkpoint.pt"


def load_result(folder: Path) -> dict[str, Any] | None:
    """What a finished run left, or ``None`` if it is not finished.

    A run whose weights are gone, or whose weights or predictions are half there, is not: a
    warning names the file.
    """
    result = read_result(folder)
    if result is None:
        return None
    for path in (checkpoint_of(folder), *sorted(folder.glob("predictions_*.npz"))):
        if not zipfile.is_zipfile(path):
            state = "incomplete" if path.is_file() else "no longer there"
            logging.warning(f"{path}: {state}; the run is not finished, it is taken up again")
            return None
    return result


def read_result(folder: Path) -> dict[str, Any] | None:
    """The numbers of a run, whatever became of its weights; ``None`` where there are none."""
    path = folder / "result.json"
    result = read_json(path)
    if result is not None and not all(isinstance(result.get(key), dict) for key in SECTIONS):
        logging.warning(f"{path}: without {' or '.join(SECTIONS)}, taken for absent")
        return None
    return result


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; ``None`` where it is absent or, with a warning, broken."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logging.warning(f"{path}: unreadable, taken for absent ({error})")
        return None
    if not isinstance(content, dict):
        logging.warning(f"{path}: holds no object, taken for absent")
        return None
    return content


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as stream:
        json.dump(content, stream, indent=2)
        stream.write("\n")
    os.replace(name, path)


def _without_sources(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` without paths: the content of the files counts, not where they lie."""
    dataset = {
        split: {key: value for key, value in section.items() if key != "src"}
        for split, section in config["dataset"].items()
    }
    return {**config, "dataset": dataset}


def specs_by_seed(spec: RunSpec, seeds: Iterable[int]) -> list[RunSpec]:
    """The same run with each of ``seeds``."""
    return [RunSpec(**{**asdict(spec), "seed": seed}) for seed in seeds]
