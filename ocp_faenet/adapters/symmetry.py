"""Symmetry errors of a model in training."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from ocp_faenet.adapters.host_model import live_model, to_graph
from ocp_faenet.metrics.symmetry import SymmetryTable, symmetry_errors


def validation_errors(trainer: Any, split: str = "val", *, limit: int = 4) -> dict[str, float]:
    """Symmetry errors over the first batches of a split, for the trainer's log.

    The same random changes at every validation. Weights and training mode stay as they are.

    Args:
        trainer: the host's, with its loaders.
        split: ``val`` or ``test``.
        limit: batches to look at.

    Returns:
        The mean as ``symmetry/<change>_energy_mev`` and, with forces,
        ``symmetry/<change>_forces_mev_per_a``; the worst with ``_worst`` behind the name.
    """
    model, table = live_model(trainer), SymmetryTable()
    generator = torch.Generator().manual_seed(0)
    training = trainer.model.training
    trainer.model.eval()
    try:
        for batch in itertools.islice(getattr(trainer, f"{split}_loader"), limit):
            graph = to_graph(batch, model)
            ids = [str(k) for k in range(graph.num_graphs)]
            table.add(symmetry_errors(model, graph, generator=generator), ids)
    finally:
        trainer.model.train(training)
    parts = ((table.energy(), "energy_mev"), (table.forces(), "forces_mev_per_a"))
    return {
        f"symmetry/{kind.name.lower()}_{unit}{ending}": value
        for scores, unit in parts
        for kind, score in scores.items()
        for ending, value in (("", score.mean), ("_worst", score.worst))
    }
