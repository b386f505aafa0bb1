"""What it takes to load a record of OC20's size."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from fairchem.core.datasets import data_list_collater
from torch_geometric.data import Data

from ocp_faenet.adapters.datasets import CheckedLmdbDataset
from ocp_faenet.adapters.rewiring import graph_rewiring
from ocp_faenet.data.lmdb_io import record_bytes, write_lmdb
from ocp_faenet.models.graph import AtomGraph
from ocp_faenet.models.synthetic import oc20_like

REPEATS, REWIRING = 5, "remove-tag-0"


def record_costs(atoms: int, *, edges: bool, count: int = 32) -> tuple[float, float]:
    """Milliseconds of one core to read, rewire (remove-tag-0) and collate a record; its bytes.

    Args:
        atoms: of a structure.
        edges: whether records hold their 50 nearest neighbours within 6 Å.
        count: records, which are one batch.
    """
    records = [_record(oc20_like(atoms, 1, seed=seed), seed, edges) for seed in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.lmdb"
        write_lmdb(path, records)
        dataset = CheckedLmdbDataset({"src": str(path)})
        best = float("inf")
        for _ in range(REPEATS):
            start = time.process_time()
            batch = [graph_rewiring(dataset[i], REWIRING) for i in range(count)]
            data_list_collater(batch, otf_graph=not edges)
            best = min(best, time.process_time() - start)
    return 1e3 * best / count, sum(len(record_bytes(record)) for record in records) / count


def _record(graph: AtomGraph, sid: int, edges: bool) -> Data:
    n = graph.num_atoms
    if graph.tags is None or graph.cell is None or graph.cell_offsets is None:
        raise ValueError("a record needs tags and periodic edges")
    data = Data(
        pos=graph.positions,
        pos_relaxed=graph.positions.clone(),
        cell=graph.cell,
        atomic_numbers=graph.atomic_numbers.float(),
        tags=graph.tags,
        fixed=(graph.tags == 0).float(),
        force=torch.zeros(n, 3),
        natoms=n,
        sid=sid,
        y_relaxed=0.0,
        y_init=0.0,
    )
    if edges:
        data.edge_index = graph.edge_index
        data.cell_offsets = graph.cell_offsets.long()
        data.distances = graph.edge_vectors.norm(dim=-1)
    return data
