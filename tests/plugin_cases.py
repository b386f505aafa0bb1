"""Small models of the plugin and batches for them."""

from __future__ import annotations

from typing import Any

import torch
from fairchem.core.datasets import data_list_collater
from fairchem.core.models.base import HydraModel
from torch_geometric.data import Batch

import ocp_faenet
import plugin_fixtures as fx

FRAMED = {**fx.TINY, "frame_averaging": "2D", "fa_method": "stochastic", "otf_graph": True}


def batch_of(*seeds: int, edges: bool = False) -> Batch:
    """Records collated as the trainer does."""
    records = [fx.slab_record(seed, edges=edges) for seed in seeds]
    return data_list_collater(records, otf_graph=not edges)


def faenet(**config: Any) -> Any:
    """A seeded model in evaluation mode."""
    torch.manual_seed(0)
    return ocp_faenet.FAENet(**{**FRAMED, **config}).eval()


def hydra_like(model: Any, **config: Any) -> HydraModel:
    """The hydra form with the weights of the monolithic ``model``."""
    heads = {"energy": {"module": "ocp_faenet.FAENetEnergyHead"}}
    if model.core.force_head is not None:
        heads["forces"] = {"module": "ocp_faenet.FAENetForceHead"}
    backbone = {"model": "ocp_faenet.FAENetBackbone", **FRAMED, **config}
    hydra = HydraModel(backbone=backbone, heads=heads, pass_through_head_outputs=True)
    names = {
        "core.backbone.": "backbone.core.",
        "core.energy_head.": "output_heads.energy.head.",
        "core.force_head.": "output_heads.forces.head.",
        "seeds.": "backbone.seeds.",
    }
    state = {}
    for key, value in model.state_dict().items():
        old = next(prefix for prefix in names if key.startswith(prefix))
        state[names[old] + key.removeprefix(old)] = value
    hydra.load_state_dict(state, strict=True)
    return hydra
