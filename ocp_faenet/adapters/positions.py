"""Direct IS2RS: relaxed positions in one pass, as displacements from the initial ones.

In a configuration::

    dataset:
      train:
        transforms:
          relaxed_positions: {}  # the target: pos_relaxed, each atom at its nearest image
    model:
      name: hydra
      heads:
        positions: {module: ocp_faenet.FAENetPositionsHead}
    outputs:
      positions: {level: atom, irrep_dim: 1, train_on_free_atoms: true, eval_on_free_atoms: true}
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from fairchem.core.common.registry import registry
from torch import Tensor
from torch_geometric.data import Data

from ocp_faenet.adapters.hydra import FORCE_KEYS, FAENetHead
from ocp_faenet.adapters.records import record_name
from ocp_faenet.adapters.schema import is_absent
from ocp_faenet.geometry.images import minimum_image
from ocp_faenet.models.faenet import ForceHead

#: Name of the output and of its target.
POSITIONS = "positions"


def relaxed_positions(data: Data, config: Any) -> Data:
    """A copy of one record with its target under `POSITIONS` ``(N, 3)``, Å.

    ``pos + d``, with ``d`` the shortest vector from an atom to an image of its relaxed place, so
    that wrapping either structure changes nothing.

    Raises:
        ValueError: options, or a record without ``pos_relaxed``.
    """
    if is_absent(config):
        return data
    if config:
        raise ValueError(f"transforms.relaxed_positions: {config!r}; it takes no options: {{}}")
    if "pos_relaxed" not in data or data.pos_relaxed is None:
        raise ValueError(
            f"{record_name(data)} has no 'pos_relaxed', the target of relaxed_positions; take an "
            "IS2RE LMDB with relaxed structures, or drop the transform"
        )
    out = copy.copy(data)
    cell = data.cell.view(1, 3, 3) if "cell" in data and data.cell is not None else None
    batch = torch.zeros(data.pos.shape[0], dtype=torch.int64)
    out[POSITIONS] = data.pos + minimum_image(data.pos_relaxed - data.pos, cell, batch)
    return out


@registry.register_model("faenet_positions_head")
class FAENetPositionsHead(FAENetHead):
    """``positions`` ``(N, 3)``, Å: the initial ones plus vectors decoded as forces are.

    Atoms that the backbone does not see (``graph_rewiring``) stay where they are.

    Args:
        backbone: ours.
        scale: Å; length of a displacement that the decoder should call 1.
        config: `FORCE_KEYS`.
    """

    keys = FORCE_KEYS

    def __init__(self, backbone: Any, scale: float = 0.1, **config: Any) -> None:
        super().__init__(backbone, **config)
        if not scale > 0:
            raise ValueError(f"FAENetPositionsHead: scale: {scale!r} is not a length in Å")
        self.scale = scale
        self.head = ForceHead(self.config)

    def forward(self, data: Any, emb: Mapping[str, Any]) -> dict[str, Tensor]:
        """Relaxed positions of the batch."""
        moved = self.head(self.state(emb).embedding)
        return {POSITIONS: data.pos.to(moved.dtype) + self.scale * moved}


def with_periodicity(batch: Any) -> Any:
    """``batch`` with ``pbc`` as the host's ADwT reads it: three flags, the same for all.

    Raises:
        ValueError: structures of unlike periodicity.
    """
    flags = torch.tensor([True, True, True])
    if "pbc" in batch and batch.pbc is not None:
        found = torch.as_tensor(batch.pbc).view(-1, 3).unique(dim=0)
        if len(found) != 1:
            raise ValueError("pbc: structures of unlike periodicity; the host's metric takes one")
        flags = found[0]
    out = copy.copy(batch)
    out.pbc = flags
    return out
