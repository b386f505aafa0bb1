"""Any checkpoint of the host as a function of an `AtomGraph`, and records as its input."""

from __future__ import annotations

import copy
import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports, update_config
from fairchem.core.datasets import data_list_collater
from torch import Tensor
from torch_geometric.data import Batch

from ocp_faenet.adapters.datasets import CheckedLmdbDataset
from ocp_faenet.adapters.unpack import unpack
from ocp_faenet.models.config import FAENetConfig
from ocp_faenet.models.graph import AtomGraph

#: Loader transforms that make another structure of a record, and so belong to the model.
STRUCTURAL = ("graph_rewiring",)
#: What the host writes into every checkpoint's configuration.
_SECTIONS = ("model", "dataset", "outputs", "loss_functions", "evaluation_metrics", "optim")


@dataclass(frozen=True)
class HostModel:
    """A trained model behind the host's trainer, which denormalises what it predicts.

    Attributes:
        trainer: the host's, in inference mode.
        dtype: of positions and cells.
        stored_edges: whether the model reads the edges of records or makes its own.
        config: ours, or ``None`` for a model of the host's.
    """

    trainer: Any
    dtype: torch.dtype
    stored_edges: bool
    config: FAENetConfig | None

    @torch.no_grad()
    def __call__(self, graph: AtomGraph) -> Mapping[str, Tensor]:
        """``energy`` ``(B, 1)``, eV, and ``forces`` ``(N, 3)``, eV/Å, where predicted."""
        batch = to_batch(graph, edges=self.stored_edges)
        # Not the host's `predict`: with an average of weights it leaves that in their place.
        found = self.trainer._forward(batch)
        return {
            key: self.trainer._denorm_preds(key, found[key], batch).cpu()
            for key in ("energy", "forces")
            if key in found
        }


def open_model(
    path: Path, *, double: bool = False, cpu: bool = True, needs: str | None = "energy"
) -> HostModel:
    """The model of a checkpoint, as `OCPCalculator` would build it but with its own edges.

    Args:
        path: a checkpoint of the host's trainers.
        double: run in float64.
        cpu: whether to run on the CPU.
        needs: an output that the model must have.

    Raises:
        ValueError: no such file, no checkpoint, or a model without the output ``needs``.
    """
    checkpoint = read_checkpoint(path)
    # A model of the host's may have been trained with transforms of ours, which go by name.
    importlib.import_module("ocp_faenet.adapters.plugin")
    setup_imports()
    config = update_config(copy.deepcopy(checkpoint["config"]))
    if needs is not None and needs not in config["outputs"]:
        raise ValueError(f"{path}: its outputs are {', '.join(config['outputs'])}, not {needs}")
    trainer = registry.get_trainer_class(config.get("trainer", "ocp"))(
        task=config.get("task", {}),
        model=config["model"],
        dataset=[{k: v for k, v in config["dataset"].items() if k != "src"}],
        outputs=config["outputs"],
        loss_functions=config["loss_functions"],
        evaluation_metrics=config["evaluation_metrics"],
        optimizer=config["optim"],
        identifier="",
        local_rank=0,
        is_debug=True,
        cpu=cpu,
        amp=False,
        inference_only=True,
    )
    trainer.load_checkpoint(str(path), checkpoint, inference_only=True)
    trainer.model.eval()
    if trainer.ema is not None:
        trainer.ema.copy_to()
    if double:
        trainer.model.double()
    return live_model(trainer)


def live_model(trainer: Any) -> HostModel:
    """The model that a trainer holds, as it is now."""
    network = trainer._unwrapped_model
    network = getattr(network, "backbone", network)
    ours = getattr(network, "config", None)
    return HostModel(
        trainer,
        next(network.parameters()).dtype,
        stored_edges=not getattr(network, "otf_graph", False),
        config=ours if isinstance(ours, FAENetConfig) else None,
    )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What the host's trainers saved, on the CPU.

    Raises:
        ValueError: no such file, or no checkpoint of the host's.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint; give the .pt file of a finished run")
    try:
        # It may hold any Python object, and reading those may fail in any way.
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read as a checkpoint ({reason})") from error
    config = checkpoint.get("config") if isinstance(checkpoint, dict) else None
    if not isinstance(config, dict) or "state_dict" not in checkpoint:
        raise ValueError(
            f"{path}: not a checkpoint of the host (no config and state_dict); convert weights "
            "of the faenet package with: ocp-faenet convert"
        )
    if absent := [key for key in _SECTIONS if key not in config]:
        raise ValueError(f"{path}: not a checkpoint of the host (no config.{absent[0]})")
    return checkpoint


def open_records(src: Path, model: HostModel) -> CheckedLmdbDataset:
    """The records of an LMDB, with the structural transforms the model was trained with.

    Raises:
        ValueError: see `CheckedLmdbDataset`; records without the edges that the model reads.
    """
    section = model.trainer.config["dataset"]
    wanted = (section or {}).get("transforms") or {}
    transforms = {key: wanted[key] for key in STRUCTURAL if key in wanted}
    dataset = CheckedLmdbDataset({"src": str(src), "transforms": transforms})
    if model.stored_edges and "edge_index" not in dataset[0]:
        raise ValueError(
            f"{src}: records without edges, but the model reads stored ones (otf_graph: false)"
        )
    return dataset


def batches(
    dataset: CheckedLmdbDataset, model: HostModel, batch_size: int, limit: int | None = None
) -> Iterator[tuple[AtomGraph, list[str]]]:
    """Graphs of ``batch_size`` records at a time and their sids (``sid_fid`` for S2EF)."""
    count = len(dataset) if limit is None else min(limit, len(dataset))
    for start in range(0, count, batch_size):
        records = [dataset[i] for i in range(start, min(start + batch_size, count))]
        batch = data_list_collater(records, otf_graph=not model.stored_edges)
        yield to_graph(batch, model), [_record_id(record) for record in records]


def to_graph(batch: Batch, model: HostModel) -> AtomGraph:
    """A collated batch as an `AtomGraph`, with edges where the model reads them."""
    positions = batch.pos.to(model.dtype)
    edges = torch.zeros(2, 0, dtype=torch.int64)
    offsets = positions.new_zeros(0, 3)
    if model.stored_edges:
        edges, offsets = batch.edge_index, batch.cell_offsets.to(model.dtype)
    return AtomGraph.build(
        positions,
        batch.atomic_numbers.long(),
        batch.batch,
        batch.num_graphs,
        edges,
        cell=batch.cell.view(-1, 3, 3).to(model.dtype),
        cell_offsets=offsets,
        tags=batch.tags if "tags" in batch else None,
    )


def to_batch(graph: AtomGraph, *, edges: bool) -> Batch:
    """An `AtomGraph` as the host's models take a batch."""
    natoms = torch.bincount(graph.batch, minlength=graph.num_graphs)
    none = torch.zeros_like(graph.atomic_numbers)
    batch = Batch(
        pos=graph.positions,
        atomic_numbers=graph.atomic_numbers.to(graph.positions.dtype),
        natoms=natoms,
        batch=graph.batch,
        ptr=torch.cat([natoms.new_zeros(1), natoms.cumsum(0)]),
        tags=none if graph.tags is None else graph.tags,
        fixed=none,
        sid=list(range(graph.num_graphs)),
    )
    batch._num_graphs = graph.num_graphs
    if graph.cell is not None:
        batch.cell = graph.cell
    if edges and graph.cell_offsets is not None:
        batch.edge_index = graph.edge_index
        batch.cell_offsets = graph.cell_offsets
        edge_graph = graph.batch[graph.edge_index[1]]
        batch.neighbors = torch.bincount(edge_graph, minlength=graph.num_graphs)
    return batch


def as_seen(graph: AtomGraph, model: HostModel) -> AtomGraph:
    """The graph with the edges that our model would take: made here where it makes its own."""
    if model.config is None:
        raise TypeError("a model of the host's own has no configuration of ours")
    config = replace(model.config, otf_graph=not model.stored_edges, tag_hidden_channels=0)
    return unpack(to_batch(graph, edges=model.stored_edges), config, model.dtype)


def _record_id(record: Any) -> str:
    parts = [record[key] for key in ("sid", "fid") if key in record]
    return "_".join(str(part.item() if torch.is_tensor(part) else part) for part in parts) or "?"


def quiet_host() -> None:
    """Less of the host's log, and none of its own use of PyTorch."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="fairchem")
    logging.getLogger().setLevel(logging.ERROR)
