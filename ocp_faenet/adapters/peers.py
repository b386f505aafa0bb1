"""The models beside which FAENet is timed: the host's own, and the published FAENet package."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports
from torch import Tensor
from torch_geometric.data import Batch, Data

from ocp_faenet.models.graph import AtomGraph
from ocp_faenet.models.timing import Contender

#: Sizes: SchNet and DimeNet++ as fairchem trained them on OC20 IS2RE-all, PaiNN as on S2EF-2M,
#: EquiformerV2 cut down to two layers so that a CPU can run it.
HOST_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "SchNet": (
        "schnet",
        {
            "hidden_channels": 384, "num_filters": 128, "num_interactions": 4,
            "num_gaussians": 100, "cutoff": 6.0,
        },
    ),
    "DimeNet++": (
        "dimenetplusplus",
        {
            "hidden_channels": 256, "out_emb_channels": 192, "num_blocks": 3, "num_radial": 6,
            "num_spherical": 7, "num_before_skip": 1, "num_after_skip": 2,
            "num_output_layers": 3, "cutoff": 6.0,
        },
    ),
    "PaiNN": (
        "painn",
        {
            "hidden_channels": 512, "num_layers": 6, "num_rbf": 128, "max_neighbors": 50,
            "cutoff": 6.0,
        },
    ),
    "EquiformerV2, small": (
        "equiformer_v2",
        {
            "num_layers": 2, "sphere_channels": 64, "attn_hidden_channels": 32, "num_heads": 4,
            "attn_alpha_channels": 32, "attn_value_channels": 16, "ffn_hidden_channels": 64,
            "lmax_list": [4], "mmax_list": [2], "grid_resolution": 14, "max_radius": 6.0,
            "max_neighbors": 50, "use_gate_act": False, "use_grid_mlp": True,
        },
    ),
}  # fmt: skip
#: Name in the benchmark -> frame method of the published package.
FAENET_METHODS = {"faenet 0.1.3, one frame": "stochastic", "faenet 0.1.3, all (4)": "all"}
#: The published package: sizes of IS2RE-all.
PUBLISHED = {
    "hidden_channels": 384, "num_filters": 480, "num_interactions": 5, "num_gaussians": 104,
    "tag_hidden_channels": 64, "pg_hidden_channels": 64, "phys_embeds": True,
    "energy_head": "weighted-av-final-embeds", "skip_co": "concat", "second_layer_MLP": False,
    "complex_mp": True, "mp_type": "base", "graph_norm": True, "regress_forces": "",
}  # fmt: skip


def host_batch(graph: AtomGraph) -> Any:
    """The structures as the host's collater gives them."""
    counts = torch.bincount(graph.batch, minlength=graph.num_graphs)
    edges = torch.bincount(graph.batch[graph.edge_index[1]], minlength=graph.num_graphs)
    data = Data(
        pos=graph.positions,
        atomic_numbers=graph.atomic_numbers.float(),
        tags=graph.tags,
        fixed=torch.zeros_like(graph.positions[:, 0]),
        cell=graph.cell,
        edge_index=graph.edge_index,
        cell_offsets=graph.cell_offsets,
        natoms=counts,
        neighbors=edges,
        batch=graph.batch,
    )
    batch = Batch(_base_cls=Data).update(data)
    batch._num_graphs = graph.num_graphs
    return batch


def host_model(
    name: str, *, regress_forces: bool = False, otf_graph: bool = False
) -> torch.nn.Module:
    """One of `HOST_MODELS`."""
    setup_imports({"skip_experimental_imports": True})
    model, sizes = HOST_MODELS[name]
    module: torch.nn.Module = registry.get_model_class(model)(
        use_pbc=True, regress_forces=regress_forces, otf_graph=otf_graph, **sizes
    )
    return module


def host_contender(name: str, device: torch.device | str) -> Contender:
    """One of `HOST_MODELS`, energies only, on the edges given."""
    module = host_model(name).to(device)
    return Contender(name, module, host_batch, lambda batch: module(batch)["energy"])


def published_contender(name: str, device: torch.device | str) -> Contender:
    """``faenet`` 0.1.3 under one of `FAENET_METHODS`, its frames made beforehand, untimed."""
    from faenet.fa_forward import model_forward
    from faenet.frame_averaging import frame_averaging_2D
    from faenet.model import FAENet

    module = FAENet(**PUBLISHED).to(device)

    def prepare(graph: AtomGraph) -> Any:
        batch = host_batch(graph)
        turned = [
            frame_averaging_2D(
                graph.positions[graph.batch == g].cpu(),
                None if graph.cell is None else graph.cell[g : g + 1].cpu(),
                FAENET_METHODS[name],
            )
            for g in range(graph.num_graphs)
        ]
        for part, key in enumerate(("fa_pos", "fa_cell", "fa_rot")):
            frames = zip(*(t[part] for t in turned), strict=True)
            batch[key] = [torch.cat(frame).to(device) for frame in frames]
        return batch

    def energy(batch: Any) -> Tensor:
        mode = "train" if module.training else "inference"
        out: Tensor = model_forward(batch, module, "2D", mode=mode)["energy"]
        return out

    return Contender(name, module, prepare, energy)


def all_peers() -> dict[str, Callable[[torch.device | str], Contender]]:
    """Every peer by the name that the benchmark shows, made only when called."""
    found: dict[str, Callable[[torch.device | str], Contender]] = {
        name: partial(host_contender, name) for name in HOST_MODELS
    }
    if importlib.util.find_spec("faenet") is not None:
        for name in FAENET_METHODS:
            found[name] = partial(published_contender, name)
    return found
