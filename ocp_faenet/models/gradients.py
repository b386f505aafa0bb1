"""Gradients with respect to positions, wherever the model is called from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from ocp_faenet.models.graph import AtomGraph


@contextmanager
def gradients_taken() -> Iterator[None]:
    """Within it gradients are taken, under ``torch.no_grad`` and ``torch.inference_mode`` too."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def at_own_positions(graph: AtomGraph) -> tuple[AtomGraph, Tensor]:
    """The graph as a function of its positions, inside `gradients_taken`.

    Tensors that were made in inference mode are copied: autograd keeps none of those.

    Returns:
        The graph, and its positions ``(N, 3)``, by which can be differentiated.
    """
    given: dict[str, Any] = {field.name: getattr(graph, field.name) for field in fields(graph)}
    copies = {k: v.clone() for k, v in given.items() if torch.is_tensor(v) and v.is_inference()}
    graph = replace(graph, **copies)
    positions = graph.positions.detach().requires_grad_(True)
    return graph.with_positions(positions), positions
