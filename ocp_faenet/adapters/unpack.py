"""From the host's batch to an `AtomGraph`: read only, checked, errors that name the record."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ocp_faenet.adapters.records import graph_names
from ocp_faenet.data.schema import tagged_as_ase
from ocp_faenet.geometry.kspace import CellError
from ocp_faenet.geometry.neighbors import NeighborLimit, neighbor_list
from ocp_faenet.models.config import FAENetConfig
from ocp_faenet.models.graph import AtomGraph
from ocp_faenet.nn.elements import MAX_ATOMIC_NUMBER


def unpack(
    data: Any,
    config: FAENetConfig,
    dtype: torch.dtype = torch.float32,
    *,
    otf_graph: bool | None = None,
) -> AtomGraph:
    """The structures of a collated batch as an `AtomGraph`, edges stored or made here.

    Args:
        data: ``torch_geometric`` batch of OC20 records (a single record will do). Not changed.
        config: decides on periodicity, tags, cutoff and where edges come from.
        dtype: of the positions, hence of all that follows.
        otf_graph: overrides that of ``config``: relaxations move atoms, so they set it.

    Raises:
        ValueError: a key that the configuration needs is missing, positions are not finite,
            an atomic number is not in 1 to 118; with the ``sid`` of the record and the remedy.
    """
    positions = _require(data, "pos", "add the positions").to(dtype)
    batch, num_graphs = _batch_index(data, positions)
    _refuse(~torch.isfinite(positions).all(-1), batch, data, "positions are not finite")
    numbers = _atomic_numbers(data, batch)
    tagged = config.tag_hidden_channels or config.graph_rewiring is not None
    tags = _tags(data) if tagged else None
    if tags is not None and config.graph_rewiring is not None:
        _refuse_untagged(tags, batch, num_graphs, data)
    cell = _cell(data, num_graphs, dtype) if config.use_pbc else None
    if cell is not None and config.ewald is not None:
        _check_periodic(data, num_graphs)
    if config.otf_graph if otf_graph is None else otf_graph:
        edge_index, offsets = _search(positions, cell, data, config)
    else:
        edge_index, offsets = _stored_edges(data, config.use_pbc)
    return AtomGraph.build(
        positions, numbers, batch, num_graphs, edge_index,
        cell=cell, cell_offsets=offsets, tags=tags, cutoff=config.cutoff,
    )  # fmt: skip


def _require(data: Any, key: str, remedy: str) -> Tensor:
    value = data[key] if key in data else None  # noqa: SIM401 (a record is not a dict)
    if value is None:
        num_graphs = torch.as_tensor(data.natoms).numel() if "natoms" in data else 1
        names = graph_names(data, range(num_graphs))
        raise ValueError(f"no {key!r} in the batch ({names}); {remedy}")
    return value


def _refuse(wrong: Tensor, batch: Tensor, data: Any, what: str) -> None:
    """Raise if any atom of the mask ``wrong`` ``(N,)`` is set, naming the records."""
    if bool(wrong.any()):
        raise ValueError(f"{what}: {graph_names(data, batch[wrong].tolist())}; repair or drop it")


def _batch_index(data: Any, positions: Tensor) -> tuple[Tensor, int]:
    """``(N,)`` graph of each atom, and ``B``."""
    natoms = torch.as_tensor(
        _require(data, "natoms", "add the number of atoms"), device=positions.device
    ).view(-1)
    counted = torch.repeat_interleave(natoms)
    stored = data.batch if "batch" in data else counted
    if stored is None or stored.shape != counted.shape or not torch.equal(stored, counted):
        bad = list(range(natoms.numel()))
        if stored is not None:
            counts = torch.bincount(stored, minlength=natoms.numel())
            bad = (counts[: natoms.numel()] != natoms).nonzero().view(-1).tolist()
        raise ValueError(f"natoms is not the number of positions: {graph_names(data, bad)}")
    return counted, natoms.numel()


def _atomic_numbers(data: Any, batch: Tensor) -> Tensor:
    """``(N,)`` int64; records written by older versions hold floats."""
    stored = _require(data, "atomic_numbers", "add the atomic numbers")
    whole = stored.round()
    wrong = (whole != stored) | (whole < 1) | (whole > MAX_ATOMIC_NUMBER)
    if bool(wrong.any()):
        found = ", ".join({f"{float(z):g}": None for z in stored[wrong][:5]})
        _refuse(wrong, batch, data, f"atomic number {found} is not in 1 to {MAX_ATOMIC_NUMBER}")
    return whole.long()


def _tags(data: Any) -> Tensor:
    tags = _require(
        data, "tags", "add tags (0 subsurface, 1 surface, 2 adsorbate), or set the model's "
        "tag_hidden_channels: 0"
    )  # fmt: skip
    if not bool(tags.any()):
        _warn_untagged()
    elif torch.as_tensor(data.natoms).numel() == 1 and tagged_as_ase(data.pos, tags):
        _warn_tagged_as_ase()
    return tags.long()


def _refuse_untagged(tags: Tensor, batch: Tensor, num_graphs: int, data: Any) -> None:
    left = torch.bincount(batch[tags > 0], minlength=num_graphs)
    if bool((left == 0).any()):
        names = graph_names(data, (left == 0).nonzero().view(-1).tolist())
        raise ValueError(
            f"every tag is 0: {names}; graph_rewiring: remove-tag-0 would remove every atom. Set "
            "tags (0 subsurface, 1 surface, 2 adsorbate), or the model's graph_rewiring: null"
        )


@functools.cache
def _warn_untagged() -> None:
    logging.warning(
        "Every tag of a batch is 0 although the model embeds tags: a structure that was never "
        "tagged is read as all subsurface. Set tags (0 subsurface, 1 surface, 2 adsorbate)."
    )


@functools.cache
def _warn_tagged_as_ase() -> None:
    logging.warning(
        "The atoms of tag 0 lie on top, as with ASE's tags, whose 0 is the adsorbate: here it is "
        "read as below the surface. Set tags (0 subsurface, 1 surface, 2 adsorbate)."
    )


def _cell(data: Any, num_graphs: int, dtype: torch.dtype) -> Tensor:
    """``(B, 3, 3)``, Å."""
    stored = _require(data, "cell", "add the cell, or set the model's use_pbc: false")
    if stored.numel() != 9 * num_graphs:
        raise ValueError(f"cell: shape {tuple(stored.shape)} for {num_graphs} structures")
    cell = stored.view(num_graphs, 3, 3).to(dtype)
    bad = (~torch.isfinite(cell)).flatten(1).any(1).nonzero().view(-1).tolist()
    if bad:
        raise ValueError(f"cell is not finite: {graph_names(data, bad)}; repair or drop it")
    return cell


def _check_periodic(data: Any, num_graphs: int) -> None:
    """Refuse structures that say themselves that an axis does not repeat."""
    stored = data["pbc"] if "pbc" in data else None  # noqa: SIM401 (a record is not a dict)
    if stored is None:
        return
    pbc = torch.as_tensor(stored).bool().view(-1, 3).expand(num_graphs, 3)
    bad = (~pbc.all(-1)).nonzero().view(-1).tolist()
    if bad:
        raise ValueError(
            f"pbc is {pbc[bad[0]].tolist()}, but Ewald messages need all three axes periodic: "
            f"{graph_names(data, bad)}; set pbc along all axes (a slab repeats in its vacuum), "
            "or take the aperiodic form (use_pbc: false, ewald.voxel)"
        )


@contextlib.contextmanager
def named_cells(data: Any, graph: AtomGraph) -> Iterator[None]:
    """Add the records that have the cell to an error of the model about a cell."""
    try:
        yield
    except CellError as error:
        if graph.cell is None:
            raise
        same = (graph.cell == error.cell.to(graph.cell)).flatten(1).all(1)
        names = graph_names(data, same.nonzero().view(-1).tolist())
        raise ValueError(f"{error}: {names}") from None


def _stored_edges(data: Any, use_pbc: bool) -> tuple[Tensor, Tensor | None]:
    remedy = "set the model's otf_graph: true (hydra form: model.backbone.otf_graph)"
    edge_index = _require(data, "edge_index", remedy)
    return edge_index, _require(data, "cell_offsets", remedy) if use_pbc else None


def _search(
    positions: Tensor, cell: Tensor | None, data: Any, config: FAENetConfig
) -> tuple[Tensor, Tensor | None]:
    """Edges within the cutoff, the ``max_num_neighbors`` nearest of each atom."""
    natoms = torch.as_tensor(data.natoms, device=positions.device).view(-1)
    pbc: Tensor | bool = cell is not None
    if pbc and "pbc" in data and data.pbc is not None:
        pbc = torch.as_tensor(data.pbc).view(-1, 3)
    found = neighbor_list(
        positions,
        natoms,
        cutoff=config.cutoff,
        cell=cell,
        pbc=pbc,
        max_neighbors=config.max_num_neighbors,
        limit=NeighborLimit.SHELL,  # a cut shell would depend on the order of atoms
    )
    return found.edge_index, None if cell is None else found.cell_offsets
