"""Loader transform ``frame_averaging``: frames made by the workers, used in training alone.

In a dataset configuration, after whatever moves or removes atoms::

    transforms:
      frame_averaging: {frame_averaging: 2D, fa_method: stochastic}

The model must be told of the same ``frame_averaging``: in evaluation, in relaxations and in
calculators it makes its own frames from the positions it is given, which stored ones would not
follow. ``frame_averaging: DA`` turns the record itself, for any model
(`ocp_faenet.adapters.augmentation`).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from ocp_faenet.adapters.augmentation import augmented
from ocp_faenet.adapters.records import record_name
from ocp_faenet.adapters.schema import is_absent, validate_config
from ocp_faenet.adapters.seeding import fresh_generator
from ocp_faenet.adapters.unpack import unpack
from ocp_faenet.models.config import FAENetConfig, FrameAveraging, FrameSource
from ocp_faenet.models.frames import FrameProvider, frame_providers
from ocp_faenet.models.graph import AtomGraph

#: Where a record holds its frames, ``(1, F, 3, 3)``; a batch ``(B, F, 3, 3)``.
FRAMES = "fa_rotations"
#: Model keys that it takes: which frames, and which graph where they are read from the edges.
KEYS = (
    "frame_averaging", "fa_method", "augmentation", "frame_source",
    "cutoff", "use_pbc", "otf_graph", "max_num_neighbors", "vectors",
)  # fmt: skip
#: Those that go with ``frame_averaging: DA``.
DA_KEYS = frozenset({"frame_averaging", "augmentation", "vectors"})


def frame_averaging(data: Data, config: Any) -> Data:
    """A copy of one record with its frames under `FRAMES`, or, with ``DA``, turned in training.

    Args:
        data: a record with ``pos`` ``(N, 3)``, Å.
        config: some of `KEYS`, as in the model's configuration, and ``vectors``, names of keys
            that turn beside the known ones under ``DA``; ``null`` does nothing.

    Raises:
        ValueError: other keys, unknown values, positions that are not finite.
    """
    if is_absent(config):
        return data
    if not isinstance(config, Mapping) or not set(config) <= set(KEYS):
        raise ValueError(
            f"transforms.frame_averaging: {config!r}; give a mapping with {', '.join(KEYS)}"
        )
    vectors = config.get("vectors") or []
    if not isinstance(vectors, list) or not all(isinstance(key, str) for key in vectors):
        raise ValueError(f"transforms.frame_averaging.vectors: {vectors!r}; give a list of keys")
    items = {key: value for key, value in config.items() if key != "vectors"}
    provider, settings = _provider(tuple(sorted(items.items())))
    if settings.frame_averaging is FrameAveraging.DATA_AUGMENTATION:
        _check_augmentation(data, config)
        return augmented(data, settings.augmentation, vectors)
    if vectors:
        raise ValueError("transforms.frame_averaging.vectors: only DA turns the record")
    out = copy.copy(data)
    out[FRAMES] = provider(_graph(data, settings), fresh_generator())
    return out


def _check_augmentation(data: Data, config: Mapping[str, Any]) -> None:
    extra = sorted(set(config) - DA_KEYS)
    if extra:
        raise ValueError(
            f"transforms.frame_averaging: {', '.join(extra)} with DA, which has no frames; "
            f"it takes {', '.join(sorted(DA_KEYS))}"
        )
    if FRAMES in data:
        raise ValueError("transforms: DA would turn the record under its frames; use one of them")


def _graph(data: Data, settings: FAENetConfig) -> AtomGraph:
    """What frames are read from: for positions, the atoms without any edges."""
    if settings.frame_source is not FrameSource.POSITIONS:
        return unpack(data, settings)
    if not bool(torch.isfinite(data.pos).all()):
        raise ValueError(f"{record_name(data)}: positions are not finite; repair or drop it")
    batch = torch.zeros(data.pos.shape[0], dtype=torch.int64)
    return AtomGraph.build(data.pos, data.atomic_numbers, batch, 1, batch.new_zeros(2, 0))


@functools.cache
def _provider(items: tuple[tuple[str, Any], ...]) -> tuple[FrameProvider, FAENetConfig]:
    settings = validate_config({"tag_hidden_channels": 0, **dict(items)})
    if settings.fa_method is not None and settings.fa_method.is_learned:
        raise ValueError(
            f"transforms.frame_averaging: fa_method {settings.fa_method.value!r} is learned in "
            "the model, which a loader does not have; leave the transform out"
        )
    return frame_providers(settings)[0], settings


def stored_frames(data: Any, graph: AtomGraph, config: FAENetConfig) -> Tensor | None:
    """``(B, F, 3, 3)`` frames that the loader made for a batch, or ``None``.

    Raises:
        ValueError: the model does not average frames, or the shape does not fit.
    """
    if FRAMES not in data:
        return None
    if config.frame_averaging is None:
        raise ValueError(
            "the loader makes frames (transforms.frame_averaging) but the model's "
            "frame_averaging is null, so evaluation would use none; set it in the model too"
        )
    frames = data[FRAMES]
    if frames.dim() != 4 or frames.shape[0] != graph.num_graphs or frames.shape[2:] != (3, 3):
        raise ValueError(
            f"{FRAMES}: shape {tuple(frames.shape)}, expected ({graph.num_graphs}, F, 3, 3)"
        )
    return frames.to(graph.positions.dtype)
