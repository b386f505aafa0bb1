"""Loader transforms ``noisy_nodes`` and ``denoising``: noise on the positions of a record.

In a dataset configuration, after ``graph_rewiring`` and before ``frame_averaging``::

    transforms:
      graph_rewiring: remove-tag-0
      noisy_nodes: {target: relaxed, std: 0.1}

The noise is in ``pos`` itself, so graphs, edge vectors and frames are those of the noisy
structure. Stored edges stay the pairs they were, and models take their vectors from the
positions; pairs that noise brings within the cutoff are missed unless the model's ``otf_graph``
finds them anew.

**Noise of `noisy_nodes` is for training alone.** The host gives other splits the transforms of
``train`` unless they name their own, and tells a transform nothing of the split. What tells
training from the rest is that gradients are being recorded: the host validates, predicts, relaxes
and fits normalizers under ``torch.no_grad()``, which forked workers inherit. There the record
keeps its positions and gets the target only. Should noise reach a model of ours in evaluation
all the same (workers that were not forked), it refuses (`refuse_noise`).
"""

from __future__ import annotations

import copy
import difflib
import functools
import json
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch_geometric.data import Data

from ocp_faenet.adapters.frames import FRAMES
from ocp_faenet.adapters.records import record_name
from ocp_faenet.adapters.schema import is_absent
from ocp_faenet.adapters.seeding import derive_seed, fresh_generator
from ocp_faenet.models import noise
from ocp_faenet.models.noise_config import DenoisingConfig, NoiseTarget, NoisyNodesConfig

#: Output and target of the vectors, ``(N, 3)``; NaN for atoms without one.
TARGET = "denoising"
#: Output and target of the species, ``(N, classes)``; NaN for atoms without one.
SPECIES = "species"
#: What the head adds to its vectors, ``(N, 3)``.
OFFSET = "denoising_offset"
#: Whether a record bears noise of `noisy_nodes`, ``(1,)``.
NOISED = "noised"

Config = TypeVar("Config", NoisyNodesConfig, DenoisingConfig)


def noisy_nodes(data: Data, config: Any) -> Data:
    """A copy of one record with noise in training, and the target of the auxiliary head.

    Args:
        data: a record with ``pos`` ``(N, 3)``, Å, ``fixed`` where only free atoms take part.
        config: keys of `NoisyNodesConfig`; ``null`` does nothing.

    Raises:
        ValueError: wrong keys or values, frames made before, or a record without what they
            need: ``pos_relaxed``, ``tags``, ``fixed``; elements outside the classes.
    """
    if is_absent(config):
        return data
    settings = parse("noisy_nodes", config, NoisyNodesConfig)
    out = _copied(data, "noisy_nodes")
    training = torch.is_grad_enabled()
    generator = fresh_generator() if training else None
    try:
        selected = _selected(data, settings)
        made = noise.corrupted(
            data.pos,
            selected,
            settings,
            generator,
            relaxed=_relaxed(data) if settings.target is NoiseTarget.RELAXED else None,
            cell=_cell(data),
        )
        if settings.species_classes is not None:
            _add_species(data, out, selected, settings, generator)
    except ValueError as error:
        raise ValueError(f"transforms.noisy_nodes: {record_name(data)}: {error}") from error
    out.pos, out[TARGET], out[OFFSET] = made.positions, made.target, made.offset
    out[NOISED] = torch.tensor([training])
    return out


def denoising(data: Data, config: Any) -> Data:
    """A copy of one record with noise on its positions, and the noise as target.

    Labels are not needed: a record without ``fixed`` gets zeros, which the host asks for.

    Args:
        data: a record with ``pos`` ``(N, 3)``, Å, or ``pos_relaxed``.
        config: keys of `DenoisingConfig`; ``null`` does nothing.

    Raises:
        ValueError: wrong keys or values, frames made before, or a record without what they need.
    """
    if is_absent(config):
        return data
    settings = parse("denoising", config, DenoisingConfig)
    out = _copied(data, "denoising")
    try:
        positions = _relaxed(data) if settings.positions == "pos_relaxed" else data.pos
        selected = _selected(data, settings)
    except ValueError as error:
        raise ValueError(f"transforms.denoising: {record_name(data)}: {error}") from error
    if settings.seed is None:
        generator = fresh_generator()
    else:
        name = [int(data[key]) if key in data else 0 for key in ("sid", "fid")]
        generator = torch.Generator().manual_seed(derive_seed(settings.seed, *name))
    out.pos, out[TARGET] = noise.with_noise(positions, selected, settings.std, generator)
    if "fixed" not in data:
        out.fixed = torch.zeros(len(positions))
    return out


def refuse_noise(data: Any, training: bool) -> None:
    """Refuse a batch with noise of `noisy_nodes` outside training.

    Raises:
        ValueError: with the remedy.
    """
    if not training and NOISED in data and bool(data[NOISED].any()):
        raise ValueError(
            "transforms.noisy_nodes: noise in a batch that is evaluated; load it under "
            "torch.no_grad() (with workers: in processes that are forked, or num_workers: 0), or "
            "take the transform out of that split"
        )


def check_noise(sections: Mapping[str, Mapping[str, Any]], outputs: Mapping[str, Any]) -> None:
    """Transforms of every split: settings, order, and the target where it is an output.

    Args:
        sections: each split's configuration, what it inherits included.
        outputs: of the run.

    Raises:
        ValueError: the first thing wrong; the host would fail at the first validation.
    """
    kinds = {"noisy_nodes": NoisyNodesConfig, "denoising": DenoisingConfig}
    for split, section in sections.items():
        transforms = section.get("transforms") or {}
        used = [name for name in transforms if name in kinds]
        for name in used:
            try:
                parse(name, transforms[name], kinds[name])
            except ValueError as error:
                raise ValueError(f"dataset.{split}.{error}") from error
        order = list(transforms)
        for name in used:
            if "frame_averaging" in order[: order.index(name)]:
                raise ValueError(f"dataset.{split}.transforms: put {name} before frame_averaging")
        if TARGET in outputs and split in ("train", "val") and not used:
            raise ValueError(
                f"dataset.{split}.transforms: no noisy_nodes or denoising, which makes the target "
                f"of outputs.{TARGET}; add it (noisy_nodes adds no noise in validation)"
            )


def parse(name: str, config: Any, kind: type[Config]) -> Config:
    """The settings of a transform, checked once for each spelling.

    Raises:
        ValueError: one line that names the key, its value and what is allowed.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"transforms.{name}: {config!r}; give a mapping, e.g. {{std: 0.1}}")
    hashable: Any = kind  # mypy takes a dataclass for an instance of itself here
    settings: Config = _parsed(name, json.dumps(config, sort_keys=True), hashable)
    return settings


@functools.lru_cache(maxsize=32)
def _parsed(name: str, text: str, kind: Any) -> Any:
    where = f"transforms.{name}"
    known = list(kind.__dataclass_fields__)
    for key, value in json.loads(text).items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"{where}: unknown key {key!r} (value {value!r}); the nearest known key is {near!r}"
            )
    try:
        return TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"][:1]))
        reason = first["msg"].removeprefix("Value error, ")
        detail = f"{key}: {first['input']!r}; {reason}" if key else reason
        raise ValueError(f"{where}: {detail}") from None


def _copied(data: Data, name: str) -> Data:
    """A shallow copy, without distances that noise makes wrong.

    Raises:
        ValueError: frames or another noise are there already.
    """
    if FRAMES in data:
        raise ValueError(f"transforms: put {name} before frame_averaging")
    if TARGET in data:
        raise ValueError("transforms: noisy_nodes and denoising in one list; use one of them")
    out = copy.copy(data)
    for key in ("distances", "edge_distance_vec"):
        if key in out:
            del out[key]
    return out


def _selected(data: Data, settings: NoisyNodesConfig | DenoisingConfig) -> Tensor:
    return noise.selection(
        data.tags if "tags" in data else None,
        data.fixed if "fixed" in data else None,
        wanted=settings.tags,
        free_atoms_only=settings.free_atoms_only,
        num_atoms=data.pos.shape[0],
    )


def _relaxed(data: Data) -> Tensor:
    relaxed = data.pos_relaxed if "pos_relaxed" in data else None
    if relaxed is None:
        raise ValueError("no 'pos_relaxed'; use target: initial or noise (denoising: pos)")
    if relaxed.shape != data.pos.shape or not bool(torch.isfinite(relaxed).all()):
        raise ValueError("'pos_relaxed' has another shape than 'pos' or is not finite; repair it")
    return relaxed


def _cell(data: Data) -> Tensor | None:
    cell = data.cell if "cell" in data else None
    return None if cell is None else cell.view(1, 3, 3)


def _add_species(
    data: Data,
    out: Data,
    selected: Tensor,
    settings: NoisyNodesConfig,
    generator: torch.Generator | None,
) -> None:
    """Random species in ``out``, and the true ones of those atoms as target."""
    classes = settings.species_classes or ()
    hit = selected
    if generator is not None:
        out.atomic_numbers, hit = noise.corrupted_species(
            data.atomic_numbers, selected, classes, settings.species_probability, generator
        )
    out[SPECIES] = noise.species_target(data.atomic_numbers, hit, classes)
