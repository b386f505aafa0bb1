"""Checkpoints that the host loads, from weights trained with the ``faenet`` 0.1.3 package."""

from __future__ import annotations

import contextlib
import os
import pickle
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ocp_faenet.adapters.model import FAENet
from ocp_faenet.models.convert import convert_state_dict
from ocp_faenet.models.reference import published_options


@dataclass(frozen=True)
class Scales:
    """How targets were normalised in training: ``(target - mean) / std``; forces have no mean.

    Attributes:
        energy_mean, energy_std: eV.
        force_std: eV/Å.
    """

    energy_mean: float = 0.0
    energy_std: float = 1.0
    force_std: float = 1.0

    def normalizers(self, forces: bool) -> dict[str, dict[str, Tensor]]:
        """State of the host's normalizers by target."""
        scales = {"energy": (self.energy_mean, self.energy_std)}
        if forces:
            scales["forces"] = (0.0, self.force_std)
        return {
            target: {"mean": torch.tensor(mean), "rmsd": torch.tensor(std)}
            for target, (mean, std) in scales.items()
        }


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Weights from a file, alone or under ``state_dict`` in a training checkpoint.

    Read with ``weights_only``: nothing in the file is executed.

    Raises:
        ValueError: no such file, not a PyTorch file, or no mapping of names to tensors.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below; its errors are not those of reading)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    try:
        with file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError):
        raise ValueError(
            f"{path}: not a PyTorch file of plain tensors, or truncated; save it with "
            "torch.save(model.state_dict(), PATH)"
        ) from None
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(f"{path}: holds no state dict; save model.state_dict()")
    wrong = next((k for k, v in weights.items() if not isinstance(v, Tensor)), None)
    if wrong is not None:
        raise ValueError(f"{path}: {wrong!r} is not a tensor; save model.state_dict() alone")
    return dict(weights)


def read_options(path: Path) -> dict[str, Any]:
    """Our ``model:`` section from a YAML file of the reference's constructor arguments.

    Raises:
        ValueError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        kwargs = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise ValueError(f"{path}: not a mapping of constructor arguments to values")
    return published_options(kwargs)


def convert_checkpoint(
    state: Mapping[str, Tensor], options: Mapping[str, Any], scales: Scales
) -> dict[str, Any]:
    """What the host's trainer would have saved, had it trained these weights.

    The model is stored by its dotted name, so the checkpoint opens in any process that has this
    package installed. It has no optimizer: training may start from it, not resume.

    Args:
        state: the reference's state dict.
        options: our ``model:`` section, see `read_options`.
        scales: of the targets.

    Raises:
        ValueError: options or weights that are wrong or do not fit each other.
    """
    model = FAENet(**options)
    model.core.load_state_dict(convert_state_dict(state, model.config))
    forces = model.config.regress_forces is not None
    return {
        "state_dict": dict(model.state_dict()),
        "normalizers": scales.normalizers(forces),
        "elementrefs": {},
        "config": _host_config(dict(options), forces),
        "val_metrics": None,
        "amp": None,
        "epoch": 0,
        "step": 0,
        "best_val_metric": None,
        "primary_metric": None,
    }


def _host_config(options: dict[str, Any], forces: bool) -> dict[str, Any]:
    """The sections that `OCPCalculator` builds a trainer from."""
    outputs: dict[str, Any] = {"energy": {"shape": 1, "level": "system"}}
    losses = [{"energy": {"fn": "mae", "coefficient": 1}}]
    metrics = {"energy": ["mae"]}
    if forces:
        outputs["forces"] = {
            "irrep_dim": 1,
            "level": "atom",
            "train_on_free_atoms": True,
            "eval_on_free_atoms": True,
        }
        losses.append({"forces": {"fn": "l2mae", "coefficient": 1}})
        metrics["forces"] = ["mae"]
    return {
        "task": {},
        "trainer": "ocp",
        "model": {"name": "ocp_faenet.FAENet", **options},
        "outputs": outputs,
        "optim": {},
        "loss_functions": losses,
        "evaluation_metrics": {"metrics": metrics, "primary_metric": "energy_mae"},
        "dataset": {"src": None},  # the calculator deletes the key, so it has to be there
        "slurm": {},
        "amp": False,
        "cmd": {"seed": 0},
    }


def save_whole(checkpoint: dict[str, Any], path: Path) -> None:
    """Write ``checkpoint`` to ``path``: complete, or not at all.

    Raises:
        ValueError: the place cannot be written.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            torch.save(checkpoint, file)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}; not written") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def save_beside(
    save: Callable[..., str | None],
    metrics: Any = None,
    checkpoint_file: str = "checkpoint.pt",
    training_state: bool = True,
) -> str | None:
    """What ``save`` of a trainer does, which writes in place, under a temporary name; then moved.

    Killed in the middle of that it leaves the checkpoint that was there.

    Args:
        save: of the trainer.
        metrics, checkpoint_file, training_state: what it takes.

    Returns:
        The path, or ``None`` where ``save`` wrote nothing.
    """
    written = save(metrics, f"{checkpoint_file}.partial", training_state)
    if written is None:
        return None
    with open(written, "rb+") as file:
        os.fsync(file.fileno())
    whole = Path(written).with_name(checkpoint_file)
    os.replace(written, whole)
    return str(whole)


def is_write_error(error: Exception) -> bool:
    """Whether ``error`` is a file that could not be written; PyTorch raises a bare
    `RuntimeError` for that."""
    text = str(error)
    return isinstance(error, OSError) or "PytorchStreamWriter" in text or "inline_container" in text
