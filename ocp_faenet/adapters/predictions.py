"""Predictions of a checkpoint for every record of an LMDB, forces of all its atoms included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ocp_faenet.adapters.host_model import batches, open_model, open_records


def predict_lmdb(
    checkpoint: Path,
    src: Path,
    *,
    forces: bool,
    batch_size: int = 32,
    cpu: bool = True,
    progress: Callable[[int], Any] | None = None,
) -> dict[str, np.ndarray]:
    """What ``fairchem --mode predict`` would write, but with the forces of fixed atoms too.

    Args:
        checkpoint: of the host's trainers.
        src: LMDB; the structural transforms that the model was trained with are applied.
        forces: whether forces are wanted.
        batch_size: records at a time.
        cpu: whether to run on the CPU.
        progress: told how many records each batch had.

    Returns:
        ``ids`` (n,), ``energy`` (n,) in eV, float32, and, if wanted, ``forces`` (N, 3) in eV/Å
        with ``chunk_idx`` (n - 1,). Atoms that a transform removes have no row.

    Raises:
        ValueError: an unreadable checkpoint or LMDB, or a model without forces where they are
            wanted.
    """
    model = open_model(checkpoint, cpu=cpu)
    dataset = open_records(src, model)
    ids: list[str] = []
    found: dict[str, list[torch.Tensor]] = {"energy": [], "forces": []}
    sizes: list[torch.Tensor] = []
    for graph, names in batches(dataset, model, batch_size):
        out = model(graph)
        if forces and "forces" not in out:
            raise ValueError(f"{checkpoint}: the model predicts no forces; S2EF needs them")
        ids += names
        found["energy"].append(out["energy"].reshape(-1))
        if forces:
            found["forces"].append(out["forces"])
            sizes.append(torch.bincount(graph.batch, minlength=graph.num_graphs))
        if progress is not None:
            progress(len(names))
    arrays = {"ids": np.array(ids), "energy": _floats(found["energy"])}
    if forces:
        arrays["forces"] = _floats(found["forces"])
        arrays["chunk_idx"] = torch.cat(sizes).cumsum(0)[:-1].numpy()
    return arrays


def _floats(parts: list[torch.Tensor]) -> np.ndarray:
    return torch.cat(parts).detach().cpu().numpy().astype(np.float32)
