"""The host's models as subjects of `ocp_faenet.models.expressivity`."""

from __future__ import annotations

import copy
from functools import cache, partial
from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports
from torch import Tensor, nn

from ocp_faenet.adapters.peers import host_batch
from ocp_faenet.geometry.counterexamples import CUTOFF
from ocp_faenet.models.expressive_subjects import Subject
from ocp_faenet.models.graph import AtomGraph

#: Å, edge of a cell so large that no image of an atom is near: the host's SchNet looks for
#: neighbours by itself where there is none, and these pairs bring their own edges.
EMPTY = 1000.0
#: Name -> the host's name, the key of the number of layers, small sizes.
SMALL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "SchNet": (
        "schnet",
        "num_interactions",
        {"hidden_channels": 32, "num_filters": 32, "num_gaussians": 16},
    ),
    "DimeNet++": (
        "dimenetplusplus",
        "num_blocks",
        {
            "hidden_channels": 32, "int_emb_size": 16, "out_emb_channels": 32, "num_spherical": 3,
            "num_radial": 3, "num_output_layers": 1,
        },
    ),
    "PaiNN": ("painn", "num_layers", {"hidden_channels": 32, "num_rbf": 16}),
}  # fmt: skip


def peer_subject(name: str) -> Subject:
    """One of `SMALL`, energies only."""
    make = _deep_dimenet if name == "DimeNet++" else partial(_make, name)
    return Subject(name, make, _energy, lambda network, graph: _energy(network, graph)[:, None])


def _make(name: str, layers: int) -> nn.Module:
    setup_imports({"skip_experimental_imports": True})
    model, layers_key, sizes = SMALL[name]
    module: nn.Module = registry.get_model_class(model)(
        use_pbc=True, regress_forces=False, otf_graph=False, cutoff=CUTOFF,
        **{layers_key: layers}, **sizes,
    )  # fmt: skip
    return module


@cache
def _shallow_dimenet() -> Any:
    return _make("DimeNet++", 1)


def _deep_dimenet(layers: int) -> nn.Module:
    """As `_make`, but the basis functions, seconds of computer algebra, are derived only once."""
    network = copy.deepcopy(_shallow_dimenet())
    for blocks in (network.interaction_blocks, network.output_blocks):
        blocks.extend(copy.deepcopy(blocks[-1]) for _ in range(layers - 1))
    network.num_blocks = layers
    network.reset_parameters()
    made: nn.Module = network
    return made


def all_peers() -> dict[str, Subject]:
    """Every peer by its name."""
    return {name: peer_subject(name) for name in SMALL}


def _energy(network: nn.Module, graph: AtomGraph) -> Tensor:
    """``(B,)`` on the edges given, in an otherwise empty cell."""
    eye = EMPTY * torch.eye(3, dtype=graph.positions.dtype)
    cell = eye.expand(graph.num_graphs, 3, 3)
    offsets = torch.zeros(graph.edge_index.shape[1], 3, dtype=graph.positions.dtype)
    periodic = AtomGraph(
        graph.positions, graph.atomic_numbers, graph.batch, graph.num_graphs, graph.edge_index,
        graph.edge_vectors, cell, offsets, graph.tags,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(graph.positions.dtype)
    try:
        energy: Tensor = network(host_batch(periodic))["energy"]
    finally:
        torch.set_default_dtype(before)
    return energy.reshape(graph.num_graphs)
