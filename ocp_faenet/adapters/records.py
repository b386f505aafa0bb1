"""How a record or the graphs of a batch are named in error messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


def record_name(data: Any) -> str:
    """``record sid=...`` (with ``fid`` for S2EF frames) of one record, or ``record``."""
    parts = [f"{key}={_plain(data[key])}" for key in ("sid", "fid") if key in data]
    return " ".join(["record", *parts])


def graph_names(batch: Any, graphs: Iterable[int], limit: int = 5) -> str:
    """The sids of the given ``graphs`` of a batch, or their places in it, the first few."""
    graphs = sorted(set(graphs))
    sids = getattr(batch, "sid", None)
    names = [_graph_name(sids, graph) for graph in graphs[:limit]]
    more = f" and {len(graphs) - limit} more" if len(graphs) > limit else ""
    return ", ".join(names) + more


def _graph_name(sids: Any, graph: int) -> str:
    if sids is not None and not hasattr(sids, "__len__"):  # a record that was never collated
        return f"sid {_plain(sids)}"
    if sids is None or graph >= len(sids):
        return f"graph {graph} of the batch"
    return f"sid {_plain(sids[graph])}"


def _plain(value: Any) -> Any:
    return value.item() if torch.is_tensor(value) and value.numel() == 1 else value
