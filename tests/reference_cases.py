"""Models of the ``faenet`` 0.1.3 package, structures, and our models with the same weights."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from ocp_faenet.adapters.schema import validate_config
from ocp_faenet.models.convert import convert_state_dict
from ocp_faenet.models.faenet import FAENetCore
from ocp_faenet.models.graph import AtomGraph
from ocp_faenet.models.reference import published_options

CUTOFF = 4.0
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
#: Elements the reference can hold with group embeddings: up to 84, without 58 to 71.
ELEMENTS = torch.tensor([*range(1, 58), *range(72, 85)])
SMALL = {
    "cutoff": CUTOFF,
    "hidden_channels": 40,
    "num_filters": 24,
    "num_gaussians": 10,
    "num_interactions": 2,
    "tag_hidden_channels": 4,
    "pg_hidden_channels": 3,
    "mp_type": "base",
    "complex_mp": False,
    "graph_norm": False,
    "second_layer_MLP": False,
    "skip_co": None,
    "regress_forces": "direct",
    "force_decoder_type": "mlp",
    "force_decoder_model_config": {"mlp": {"hidden_channels": 16, "norm": ""}},
}
CHOICES = {
    "mp_type": ["base", "simple", "updownscale", "updownscale_base", "updown_local_env"],
    "skip_co": [None, "add", "concat", "concat_atom"],
    "energy_head": [None, "weighted-av-initial-embeds", "weighted-av-final-embeds"],
    "second_layer_MLP": [False, True],
    "complex_mp": [False, True],
    "graph_norm": [False, True],
    "phys_embeds": [True, False],
    "phys_hidden_channels": [0, 5],
    "tag_hidden_channels": [4, 0],
    "pg_hidden_channels": [3, 0],
    "num_filters": [24, 17],
    "num_gaussians": [10, 30],
    "num_interactions": [2, 1, 3],
    "act": ["swish", "relu", "tanh"],
}
DECODERS = list(itertools.product(["simple", "mlp", "res", "res_updown"], ["batch1d", "layer", ""]))


def decoder(kind: str, norm: str) -> dict:
    return {
        "force_decoder_type": kind,
        "force_decoder_model_config": {kind: {"hidden_channels": 16, "norm": norm}},
    }


def singles() -> list[dict]:
    """Each option alone, and each pair of message passing and graph norm."""
    changes = [{key: value} for key, values in CHOICES.items() for value in values[1:]]
    changes += [{"mp_type": kind, "graph_norm": True} for kind in CHOICES["mp_type"]]
    return [{}, *changes, *(decoder(*choice) for choice in DECODERS)]


def combinations(count: int) -> list[dict]:
    draw = random.Random(0)
    return [
        {key: draw.choice(values) for key, values in CHOICES.items()}
        | decoder(*draw.choice(DECODERS))
        for _ in range(count)
    ]


def label(options: dict) -> str:
    return "-".join(str(value) for key, value in options.items() if "config" not in key) or "plain"


@dataclass
class Structures:
    """Periodic structures, in the fields of OC20 records."""

    positions: Tensor
    numbers: Tensor
    tags: Tensor
    batch: Tensor
    cell: Tensor
    edge_index: Tensor
    cell_offsets: Tensor
    neighbors: Tensor

    @property
    def num_graphs(self) -> int:
        return len(self.cell)


def structures(sizes: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Structures:
    draw = torch.Generator().manual_seed(seed)
    images = torch.tensor(list(itertools.product((-1, 0, 1), repeat=3)))
    start, parts = 0, []
    for i, n in enumerate(sizes):
        cell = torch.diag(torch.tensor([4.5, 5.3, 6.1], dtype=dtype)) + 0.1 * torch.rand(
            3, 3, generator=draw, dtype=dtype
        )
        pos = torch.rand(n, 3, generator=draw, dtype=dtype) @ cell
        shifts = images.to(dtype) @ cell
        d = (pos[:, None, None] - pos[None, :, None] + shifts).norm(dim=-1)
        j, k, s = ((d < CUTOFF) & (d > 0)).nonzero(as_tuple=True)
        order = torch.randperm(len(j), generator=draw)  # the reference does not ask for an order
        j, k, s = j[order], k[order], s[order]
        pick = torch.randint(len(ELEMENTS), (n,), generator=draw)
        tags = torch.randint(3, (n,), generator=draw)
        edges = torch.stack([j, k]) + start
        which = torch.full((n,), i)
        parts.append((pos, ELEMENTS[pick], tags, which, cell[None], edges, images[s]))
        start += n
    *atoms, edges, offsets = zip(*parts, strict=True)
    counts = torch.tensor([e.shape[1] for e in edges])
    return Structures(
        *(torch.cat(x) for x in atoms), torch.cat(edges, 1), torch.cat(offsets), counts
    )


def reference_data(s: Structures):
    from torch_geometric.data import Data

    return Data(
        pos=s.positions.clone(), atomic_numbers=s.numbers, tags=s.tags, batch=s.batch,
        cell=s.cell, cell_offsets=s.cell_offsets, neighbors=s.neighbors, edge_index=s.edge_index,
    )  # fmt: skip


def our_graph(s: Structures, cutoff: float = CUTOFF) -> AtomGraph:
    return AtomGraph.build(
        s.positions, s.numbers, s.batch, s.num_graphs, s.edge_index,
        cell=s.cell, cell_offsets=s.cell_offsets, tags=s.tags, cutoff=cutoff,
    )  # fmt: skip


@contextmanager
def in_dtype(dtype: torch.dtype) -> Iterator[None]:
    """The reference casts cells and frames to float32 on the way: have it cast to ``dtype``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", lambda tensor: tensor.to(dtype))
        patch.setattr(torch, "eye", partial(torch.eye, dtype=dtype))
        patch.setattr(torch, "tensor", partial(torch.tensor, dtype=dtype))
        yield


def propagate(block, edge_index: Tensor, x: Tensor, W: Tensor, local_env=None) -> Tensor:
    """What PyG's ``propagate`` did when the reference was written.

    From PyG 2.5 it refuses the extra argument of ``updown_local_env``, which then cannot run.
    """
    messages = block.message(x[edge_index[0]], W, local_env)
    return torch.zeros_like(x).index_add(0, edge_index[1], messages)


@contextmanager
def reference_models() -> Iterator[Callable[..., Any]]:
    """Gives a function that makes reference models; their element table is fetched once."""
    import faenet
    from faenet import embedding

    elements = embedding.fetch_table("elements")
    energies = embedding.fetch_ionization_energies(degree=[1, 2])

    def make(options: dict, dtype: torch.dtype = torch.float32, seed: int = 0):
        torch.manual_seed(seed)
        model = faenet.FAENet(**options)
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if "running_var" in name:
                value.data.uniform_(0.5, 2.0)
            elif value.is_floating_point() and "phys_emb" not in name and "offset" not in name:
                value.data.add_(0.1 * torch.randn_like(value))  # no weight 1, no bias 0
        if options["mp_type"] == "updown_local_env":
            for block in model.interaction_blocks:
                block.propagate = partial(propagate, block)
        return model.to(dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding, "fetch_table", lambda name: elements.copy())
        patch.setattr(embedding, "fetch_ionization_energies", lambda degree: energies.copy())
        yield make


def ours_like(reference, options: dict, dtype: torch.dtype, **extra) -> FAENetCore:
    config = validate_config(published_options(options) | extra)
    model = FAENetCore(config).to(dtype)
    model.load_state_dict(convert_state_dict(reference.state_dict(), config))
    return model
