"""FAENet as it is here, made ready for timing; needs no host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ocp_faenet.models.config import FAENetConfig, FAMethod
from ocp_faenet.models.ewald_config import EwaldConfig
from ocp_faenet.models.faenet import FAENetCore
from ocp_faenet.models.graph import AtomGraph
from ocp_faenet.models.published import IS2RE, with_method
from ocp_faenet.models.timing import Contender

#: Name in the benchmark -> frame method.
METHODS: dict[str, FAMethod | None] = {
    "FAENet, no frames": None,
    "FAENet, stochastic": FAMethod.STOCHASTIC,
    "FAENet, det": FAMethod.DET,
    "FAENet, all (4)": FAMethod.ALL,
}
EWALD, TAG_0_REMOVED = ", Ewald", ", tag 0 removed"
#: The report's setting of Ewald message passing on OC20 (section 4.3).
OC20_EWALD = EwaldConfig(box=(1, 1, 3), residual_channels=64)


def rebuild(graph: AtomGraph) -> AtomGraph:
    """The graph checked and sorted again from its parts, as each batch of a loader is."""
    return AtomGraph.build(
        graph.positions, graph.atomic_numbers, graph.batch, graph.num_graphs, graph.edge_index,
        cell=graph.cell, cell_offsets=graph.cell_offsets, tags=graph.tags, cutoff=6.0,
    )  # fmt: skip


def without_tag_0(graph: AtomGraph) -> AtomGraph:
    """The structures without their subsurface atoms (PhAST's remove-tag-0)."""
    if graph.tags is None:
        raise ValueError("tags: needed to remove subsurface atoms")
    return graph.keep_atoms(graph.tags > 0)


def faenet_contender(name: str, config: FAENetConfig, device: torch.device | str) -> Contender:
    """FAENet of ``config``; building and checking the graph is timed with it.

    Weights are drawn from one seed, whatever was drawn before: how fine the tables of `nn.cells`
    must be depends on them, and options are compared at the same ones.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = FAENetCore(config).to(device)

    def energy(graph: object) -> Tensor:
        if not isinstance(graph, AtomGraph):
            raise TypeError(f"expected an AtomGraph, got {type(graph).__name__}")
        out: dict[str, Tensor] = module(rebuild(graph))
        return out["energy"]

    prepare = without_tag_0 if name.endswith(TAG_0_REMOVED) else (lambda graph: graph)
    return Contender(name, module, prepare, energy)


def all_faenets(
    config: FAENetConfig = IS2RE,
) -> dict[str, Callable[[torch.device | str], Contender]]:
    """FAENet under each frame method, with and without Ewald messages and subsurface atoms.

    Each is made when called.
    """
    found: dict[str, Callable[[torch.device | str], Contender]] = {}
    for removed in ("", TAG_0_REMOVED):
        for ewald in (None, OC20_EWALD):
            for method_name, method in METHODS.items():
                name = method_name + (EWALD if ewald else "") + removed
                chosen = replace(with_method(config, method), ewald=ewald)
                found[name] = partial(faenet_contender, name, chosen)
    return found


def usual_faenets() -> list[str]:
    """Those that are timed when none are named: each frame method, and each option once."""
    options = (EWALD, TAG_0_REMOVED, EWALD + TAG_0_REMOVED)
    return [*METHODS, *("FAENet, stochastic" + option for option in options)]
