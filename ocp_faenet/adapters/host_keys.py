"""Which keys the host's configuration has, so that a misspelt override is an error.

The host merges anything into its configuration and reads what it knows: a typo trains another
model than its author thinks. Known is what the configuration at hand holds, and beside it what
fairchem-core 1.10 and this package read.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from fairchem.core.common.registry import registry

from ocp_faenet.adapters.preflight import BACKBONES, MODELS
from ocp_faenet.models.config import FAENetConfig

_SECTIONS = (
    "trainer dataset model optim task outputs loss_functions evaluation_metrics logger slurm"
)
_RUN = (
    "mode identifier timestamp_id seed is_debug run_dir print_every amp checkpoint cpu submit "
    "summit world_size distributed_backend gp_gpus hide_eval_progressbar timeout "
    "use_cuda_visibile_devices"
)
_SPLIT = (
    "src format transforms key_mapping metadata_path first_n sample_n max_atoms subset_to "
    "no_shuffle seed shard total_shards use_train_settings splits train_split_settings "
    "val_split_settings test_split_settings lin_ref train_on_oc20_total_energies skip_corrupt"
)
_OPTIM = (
    "batch_size eval_batch_size num_workers optimizer optimizer_params lr_initial weight_decay "
    "max_epochs eval_every checkpoint_every clip_grad_norm ema_decay load_balancing "
    "load_balancing_on_error scheduler lambda_type warmup_steps warmup_epochs warmup_factor "
    "lr_milestones lr_gamma lr_min_factor epochs load_datasets_and_model_then_exit layer_lr_decay"
)
_TASK = (
    "strict_load eval_relaxations relax_dataset relax_opt relaxation_steps relaxation_fmax "
    "relax_cell relax_volume num_relaxation_batches save_full_traj write_pos prediction_dtype "
    "dataset set_deterministic_scatter"
)
_LOGGER = "name project entity group watch log_weight_table"
#: Keys of a section, beside those that the configuration has; others may hold anything.
_KNOWN: dict[tuple[str, ...], list[str]] = {
    (): f"{_SECTIONS} {_RUN}".split(),
    ("dataset",): ["train", "val", "test", "relax"],
    **{("dataset", split): _SPLIT.split() for split in ["train", "val", "test", "relax"]},
    ("task",): _TASK.split(),
    ("logger",): _LOGGER.split(),
}


def check_path(config: Mapping[str, Any], path: Sequence[str], origin: str) -> None:
    """Refuse a path of keys that neither ``config`` holds nor the host reads.

    Args:
        config: resolved configuration.
        path: keys from the top; a number indexes a list.
        origin: where the path was written, for the message.

    Raises:
        ValueError: names the key, the nearest known one and the remedy.
    """
    level: Any = config
    for depth, key in enumerate(path):
        here = tuple(path[:depth])
        if isinstance(level, Mapping) and key in level:
            level = level[key]
        elif isinstance(level, list):
            level = level[_index(level, key, path[: depth + 1], origin)]
        elif isinstance(level, Mapping) or level is None:
            _refuse_unknown(config, here, level or {}, key, origin)
            level = None
        else:
            raise ValueError(
                f"{origin}: {'.'.join(here)} is {level!r}, so it has no key {key!r} under it"
            )


def _index(values: list[Any], key: str, path: Sequence[str], origin: str) -> int:
    if not key.isdecimal() or int(key) >= len(values):
        raise ValueError(
            f"{origin}: {'.'.join(path)}: {key!r} in a list of {len(values)}; "
            f"a number from 0 to {len(values) - 1} is right"
        )
    return int(key)


def _refuse_unknown(
    config: Mapping[str, Any],
    here: tuple[str, ...],
    level: Mapping[str, Any],
    key: str,
    origin: str,
) -> None:
    known = _known(config, here)
    if known is None or key in known:
        return
    choices = sorted({*known, *map(str, level)})
    near = difflib.get_close_matches(key, choices, n=1, cutoff=0.0)
    full, nearest = (".".join([*here, name]) for name in (key, near[0] if near else "?"))
    raise ValueError(
        f"{origin}: unknown key {full!r}; the nearest known key is {nearest!r} (a key that only "
        "your own code reads goes into the configuration file)"
    )


def _known(config: Mapping[str, Any], here: tuple[str, ...]) -> list[str] | None:
    """Keys that may stand under ``here``, or ``None`` for any."""
    if here == ("optim",):
        return [*_OPTIM.split(), *_scheduler_arguments(config)]
    if here == ("model",):
        return _model_keys(config.get("model") or {})
    if here == ("model", "backbone"):
        backbone = (config.get("model") or {}).get("backbone") or {}
        ours = isinstance(backbone, Mapping) and backbone.get("model") in BACKBONES
        return ["model", *_faenet_keys()] if ours else None
    return _KNOWN.get(here)


def _faenet_keys() -> list[str]:
    return [field.name for field in fields(FAENetConfig)]


def _model_keys(model: Mapping[str, Any]) -> list[str] | None:
    name = model.get("name")
    if name in MODELS:
        return ["name", *_faenet_keys()]
    try:
        arguments = inspect.signature(registry.get_model_class(name)).parameters
    except Exception:  # the run itself says what is wrong with the name
        return None
    if any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values()):
        return None
    return ["name", *arguments]


def _scheduler_arguments(config: Mapping[str, Any]) -> list[str]:
    name = (config.get("optim") or {}).get("scheduler")
    kind = getattr(torch.optim.lr_scheduler, str(name), None)
    return list(inspect.signature(kind).parameters) if inspect.isclass(kind) else []
