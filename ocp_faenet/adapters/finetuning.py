"""Fine-tuning through the host's ``finetune_config``: what has to hold, and what it lacks.

model:
  name: hydra
  finetune_config: {starting_checkpoint: PATH}   # its backbone, with weights
  freeze_backbone: false
  heads: {...}                                   # new ones
optim:
  layer_lr_decay: 0.8                            # FAENetTrainer: deeper layers learn faster
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from fairchem.core.modules.normalization.element_references import create_element_references
from fairchem.core.modules.normalization.normalizer import create_normalizer
from torch import nn
from torch.optim.optimizer import Optimizer

#: Where a parameter's name says that it belongs to interaction ``k``.
_INTERACTION = re.compile(r"\binteractions\.(\d+)\.")
#: What reads the last embeddings, though it is in the backbone.
_AFTER_INTERACTIONS = ("mix_atoms",)


def check_finetuning(model: Mapping[str, Any]) -> None:
    """Look at a ``finetune_config`` before the host does.

    Raises:
        ValueError: the checkpoint is missing, unreadable or of no hydra model; or a backbone is
            given beside it, of which the host would train a new one and forget the checkpoint.
    """
    finetune = model.get("finetune_config")
    if not finetune:
        return
    if model.get("name") != "hydra":
        raise ValueError(f"model.finetune_config: needs model.name: hydra, not {model.get('name')}")
    if model.get("backbone"):
        raise ValueError(
            "model.backbone: given beside model.finetune_config, so the host would train a new "
            "backbone and not use the checkpoint; drop model.backbone"
        )
    path = Path(str(finetune.get("starting_checkpoint")))
    found = model_of(path)
    if found.get("name") != "hydra":
        raise ValueError(
            f"model.finetune_config.starting_checkpoint: {path} holds a {found.get('name')}, not a "
            "hydra model; fine-tuning takes its backbone, so train it as one"
        )


def model_of(path: Path) -> dict[str, Any]:
    """The model section of a checkpoint.

    Raises:
        ValueError: no such file, or no checkpoint of the host.
    """
    key = "model.finetune_config.starting_checkpoint"
    if not path.is_file():
        raise ValueError(f"{key}: {path}: no such file; give the .pt file of a finished run")
    try:
        # The host's checkpoints hold its configuration, which may be any Python object.
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
        model: dict[str, Any] = checkpoint["config"]["model"]
    except Exception as error:
        raise ValueError(f"{key}: {path}: not a checkpoint of the host ({error})") from error
    return model


def self_contained(model: Mapping[str, Any], network: nn.Module) -> dict[str, Any]:
    """A fine-tuned model's configuration without the checkpoint that it started from.

    With ``finetune_config`` the host opens that file each time it builds the model, also to
    predict with the fine-tuned weights somewhere else.
    """
    if not model.get("finetune_config"):
        return dict(model)
    start = model_of(Path(model["finetune_config"]["starting_checkpoint"]))
    kept = {key: value for key, value in model.items() if key != "finetune_config"}
    backbone: Any = getattr(network, "backbone", None)
    found = getattr(backbone, "mapping", None)
    kept["backbone"] = (
        dict(start["backbone"]) if found is None else {"model": start["backbone"]["model"], **found}
    )
    if not kept.get("heads"):
        kept["heads"] = start["heads"]
    return kept


def taken_heads(model: Mapping[str, Any]) -> Path | None:
    """The checkpoint whose heads a fine-tuned model goes on with; none if it has its own."""
    finetune = model.get("finetune_config")
    if not finetune or model.get("heads"):
        return None
    return Path(finetune["starting_checkpoint"])


def scales_of(path: Path, device: torch.device) -> tuple[dict[str, Any], dict[str, Any]]:
    """Normalizers and element references of a checkpoint, by output.

    Heads speak in these: with the scale of other data they would say something else.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    normalizers = checkpoint.get("normalizers") or {}
    references = checkpoint.get("elementrefs") or {}
    return (
        {key: create_normalizer(state_dict=state).to(device) for key, state in normalizers.items()},
        {
            key: create_element_references(state_dict=state).to(device)
            for key, state in references.items()
        },
    )


def layered_optimizer(network: nn.Module, optim: Mapping[str, Any]) -> Optimizer:
    """The optimizer of an ``optim`` section with ``layer_lr_decay``; see `layer_groups`.

    Raises:
        ValueError: a factor outside (0, 1], a model without interactions, or a scheduler that
            knows one rate only.
    """
    if optim.get("scheduler") == "OneCycleLR":
        raise ValueError(
            "optim.layer_lr_decay: OneCycleLR sets one max_lr for all layers; use "
            "CosineAnnealingLR or the default warm-up"
        )
    options = dict(optim.get("optimizer_params", {}))
    weight_decay = optim.get("weight_decay", options.pop("weight_decay", 0.0))
    no_weight_decay: Any = getattr(network, "no_weight_decay", list)
    groups = layer_groups(
        network.named_parameters(),
        optim["lr_initial"],
        optim["layer_lr_decay"],
        weight_decay=weight_decay,
        without_decay=no_weight_decay(),
    )
    kind = getattr(torch.optim, optim.get("optimizer", "AdamW"))
    optimizer: Optimizer = kind(groups, lr=optim["lr_initial"], **options)
    return optimizer


def layer_depths(names: Iterable[str]) -> dict[str, int]:
    """How far each parameter is from the input: 0 for the embedding, ``k + 1`` for interaction
    ``k``, one more than the last for all that reads its result.

    Raises:
        ValueError: no interactions: no FAENet.
    """
    names = list(names)
    layers = [int(match.group(1)) for name in names if (match := _INTERACTION.search(name))]
    if not layers:
        raise ValueError("optim.layer_lr_decay: the model has no interactions; it needs a FAENet")
    top, depths = max(layers) + 2, {}
    for name in names:
        match = _INTERACTION.search(name)
        if match:
            depths[name] = int(match.group(1)) + 1
        elif "backbone." not in name or any(part in name for part in _AFTER_INTERACTIONS):
            depths[name] = top
        else:
            depths[name] = 0
    return depths


def layer_groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    lr: float,
    decay: float,
    *,
    weight_decay: float = 0.0,
    without_decay: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Groups of an optimizer: ``lr * decay^d``, ``d`` layers below the heads (arXiv 1801.06146).

    Args:
        parameters: of the model, by name; those without gradient are left out.
        lr: of the heads, which come first, so that the host logs theirs.
        decay: factor from each layer to the one below it.
        weight_decay: of all but biases and embeddings.
        without_decay: ends of the names of those, as the host's models give them.

    Raises:
        ValueError: a factor outside (0, 1], or a model without interactions.
    """
    if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0.0 < decay <= 1.0:
        raise ValueError(f"optim.layer_lr_decay: {decay!r}; a factor above 0 and at most 1")
    everything = list(parameters)
    depths = layer_depths([name for name, _ in everything])
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in everything:
        if not parameter.requires_grad:
            continue
        decays = weight_decay > 0 and not any(name.endswith(end) for end in without_decay)
        groups.setdefault((-depths[name], decays), []).append(parameter)
    top = max(depths.values())
    return [
        {
            "params": group,
            "lr": lr * decay ** (top + negative),
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (negative, decays), group in sorted(groups.items(), key=lambda item: item[0])
    ]
