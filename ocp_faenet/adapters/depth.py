"""Diversity of embeddings by layer, of trained checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from fairchem.core.datasets import data_list_collater
from torch import Tensor

from ocp_faenet.adapters.host_model import HostModel, open_model, open_records
from ocp_faenet.adapters.runs import RunSpec
from ocp_faenet.adapters.unpack import unpack
from ocp_faenet.metrics.diversity import mean_average_distance
from ocp_faenet.models.backbone import FAENetBackbone

#: Structures that a study looks at.
STUDY_STRUCTURES = 100


def open_faenet(path: Path) -> HostModel:
    """The FAENet of a checkpoint, whatever its outputs.

    Raises:
        ValueError: no checkpoint, or the model of somebody else.
    """
    model = open_model(path, needs=None)
    if model.config is None:
        name = model.trainer.config["model"]["name"]
        raise ValueError(f"{path}: its model is {name}, not a FAENet; layers are those of FAENet")
    return model


@torch.no_grad()
def diversity_by_layer(
    model: HostModel, src: Path, *, limit: int, batch_size: int = 16
) -> Iterator[Tensor]:
    """MAD of the structures of an LMDB, ``(layers + 1, b)`` for each batch of them.

    The first row is the embedding block; NaN for single atoms. Frames are those of evaluation,
    the mean is over them.

    Raises:
        ValueError: see `open_records`.
    """
    if model.config is None:
        raise TypeError("a model of the host's own has no layers that we know")
    dataset = open_records(src, model)
    backbone = backbone_of(model)
    count = min(limit, len(dataset))
    for start in range(0, count, batch_size):
        records = [dataset[i] for i in range(start, min(start + batch_size, count))]
        batch = data_list_collater(records, otf_graph=not model.stored_edges)
        graph = unpack(batch, model.config, model.dtype, otf_graph=not model.stored_edges)
        embedding = backbone(graph)
        topology = embedding.topology
        mads = (
            mean_average_distance(h, topology.batch, topology.num_graphs).unsqueeze(-1)
            for h in embedding.layers
        )  # (F, R, 1)
        yield torch.cat([embedding.of_structures(mad) for mad in mads], dim=-1).T


def backbone_of(model: HostModel) -> FAENetBackbone:
    """The layers of a FAENet, whatever its heads."""
    network = model.trainer._unwrapped_model
    network = getattr(network, "backbone", network)
    core = network.core
    found: FAENetBackbone = getattr(core, "backbone", core)
    return found.eval()


def last_layer_diversity(spec: RunSpec, result: Mapping[str, Any]) -> dict[str, float]:
    """MAD of the first and last layer on the study's first split (measurement ``mad``)."""
    model = open_faenet(Path(result["checkpoint"]))
    src = Path(next(iter(spec.splits.values())))
    found = torch.cat(list(diversity_by_layer(model, src, limit=STUDY_STRUCTURES)), dim=1)
    mean = found.nanmean(dim=1)
    return {"MAD, first interaction": float(mean[1]), "MAD, last": float(mean[-1])}


def layers_diversity(spec: RunSpec, result: Mapping[str, Any]) -> dict[str, float]:
    """MAD of every layer on the study's first split, and its spread (measurement ``layers``)."""
    model = open_faenet(Path(result["checkpoint"]))
    src = Path(next(iter(spec.splits.values())))
    found = torch.cat(list(diversity_by_layer(model, src, limit=STUDY_STRUCTURES)), dim=1)
    found = found[:, found.isfinite().all(0)]
    mean, spread = found.mean(1).tolist(), found.std(1, correction=0).tolist()
    values = {f"MAD {layer}": value for layer, value in enumerate(mean)}
    return values | {f"spread {layer}": value for layer, value in enumerate(spread)}
