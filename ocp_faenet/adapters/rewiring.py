"""Loader transform ``graph_rewiring``: fewer atoms below the surface.

In a dataset configuration::

    transforms:
      graph_rewiring: remove-tag-0

The model's own key ``graph_rewiring: remove-tag-0`` does the same in the model, hence in
calculators and relaxations too, which run no transforms; it keeps every atom in the batch.

Source: PhAST (arXiv 2211.12020), section 4.1, whose names the modes bear.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from ocp_faenet.adapters.frames import FRAMES
from ocp_faenet.adapters.records import record_name
from ocp_faenet.adapters.schema import is_absent
from ocp_faenet.adapters.supernodes import (
    EDGE_KEYS,
    GRAPH_KEYS,
    like,
    merge_all,
    merge_by_element,
    with_supernodes,
)


class Rewiring(str, Enum):
    """What ``graph_rewiring`` may be set to; ``None`` leaves the record as it is."""

    REMOVE_TAG_0 = "remove-tag-0"
    ONE_PER_GRAPH = "one-supernode-per-graph"
    ONE_PER_ELEMENT = "one-supernode-per-atom-type"


def parse_rewiring(config: Any) -> Rewiring | None:
    """The mode that ``config`` names, or ``None``.

    Raises:
        ValueError: an unknown mode.
    """
    if is_absent(config):
        return None
    try:
        return Rewiring(config)
    except ValueError:
        allowed = ", ".join(repr(mode.value) for mode in Rewiring)
        raise ValueError(
            f"transforms.graph_rewiring: {config!r} is not known; allowed: {allowed} or null"
        ) from None


def graph_rewiring(data: Data, config: Any) -> Data:
    """Rewire one record as ``config`` says (a value of `Rewiring`, or nothing).

    Every mode acts on the subsurface atoms (tag 0), gives a copy, keeps the energy as it is and
    counts ``natoms`` and the edges anew. A graph whose last edge goes keeps ``edge_index`` of
    shape ``(2, 0)``, so the collater still counts it.

    Raises:
        ValueError: an unknown mode, frames made before, or a record without usable tags.
    """
    mode = parse_rewiring(config)
    if mode is None:
        return data
    if FRAMES in data:
        raise ValueError("transforms: put graph_rewiring before frame_averaging")
    if "denoising" in data:
        raise ValueError("transforms: put graph_rewiring before noisy_nodes and denoising")
    return _REWIRED[mode](data, above_subsurface(data, mode))


def above_subsurface(data: Data, mode: Rewiring) -> Tensor:
    """``(N,)`` mask of the atoms that stay: those with a tag above 0.

    Raises:
        ValueError: no ``tags``, or no atom with a tag above 0 (tags that were never set).
    """
    tags = data.tags if "tags" in data else None
    if tags is None:
        raise ValueError(
            f"{record_name(data)} has no 'tags', which graph_rewiring: {mode.value} needs; "
            "add tags (0 subsurface, 1 surface, 2 adsorbate) or drop the transform"
        )
    keep: Tensor = tags.view(-1) > 0
    if not bool(keep.any()):
        raise ValueError(
            f"{record_name(data)}: every tag is 0, so graph_rewiring: {mode.value} would leave "
            "no atom; set tags (0 subsurface, 1 surface, 2 adsorbate) or drop the transform"
        )
    return keep


def without_atoms(data: Data, keep: Tensor) -> Data:
    """A copy of ``data`` with only the atoms of the mask ``keep`` ``(N,)``, and their edges.

    Every per-atom tensor (``pos``, ``pos_relaxed``, ``fixed``, ``force``, ...) is cut, edges
    between the atoms that stay are renumbered.
    """
    stored = data.to_dict()  # asking a record for its keys takes longer than cutting it
    changes = {
        key: value[keep]
        for key, value in stored.items()
        if key not in EDGE_KEYS
        and key not in GRAPH_KEYS
        and torch.is_tensor(value)
        and value.dim() > 0
        and value.shape[0] == keep.numel()
    }
    if stored.get("edge_index") is not None:
        changes |= _cut_edges(stored, keep)
    remaining = int(keep.sum())
    for key in ("natoms", "num_nodes"):
        if key in stored:
            changes[key] = like(stored[key], remaining)
    out = copy.copy(data)
    for key, value in changes.items():
        out[key] = value
    return out


def _cut_edges(stored: dict[str, Any], keep: Tensor) -> dict[str, Any]:
    """The edges whose two ends stay, under the new numbering."""
    edge_index = stored["edge_index"]
    stays = keep[edge_index].all(0).nonzero().view(-1)
    number = torch.cumsum(keep, 0) - 1
    changes = {"edge_index": number[edge_index.index_select(1, stays)]}
    for key in EDGE_KEYS - {"edge_index"}:
        if torch.is_tensor(stored.get(key)):
            changes[key] = stored[key].index_select(0, stays)
    for key in ("neighbors", "nedges"):
        if key in stored:
            changes[key] = like(stored[key], len(stays))
    return changes


#: Mode -> what it makes of a record and the mask of the atoms that stay.
_REWIRED: dict[Rewiring, Callable[[Data, Tensor], Data]] = {
    Rewiring.REMOVE_TAG_0: without_atoms,
    Rewiring.ONE_PER_GRAPH: lambda data, keep: with_supernodes(data, merge_all(data, keep.numpy())),
    Rewiring.ONE_PER_ELEMENT: lambda data, keep: with_supernodes(
        data, merge_by_element(data, keep.numpy())
    ),
}
