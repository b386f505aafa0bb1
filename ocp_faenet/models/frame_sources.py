"""What frames are read from: one function for each ``frame_source``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ocp_faenet.geometry.clouds import Cloud, edge_cloud, lattice_cloud, position_cloud
from ocp_faenet.models.config import FAENetConfig, FrameAveraging, FrameSource
from ocp_faenet.models.graph import AtomGraph


@dataclass(frozen=True)
class FrameClouds:
    """Clouds of a batch: ``axes`` gives principal axes, ``signs`` orients them."""

    axes: Cloud
    signs: Cloud


#: Structures and configuration -> clouds.
CloudSource = Callable[[AtomGraph, FAENetConfig], FrameClouds]


def from_positions(graph: AtomGraph, config: FAENetConfig) -> FrameClouds:
    """``positions``: the stored positions, as published; not the same for every image."""
    cloud = position_cloud(graph.positions, graph.atomic_numbers, graph.batch, graph.num_graphs)
    return FrameClouds(cloud, cloud)


def from_edges(graph: AtomGraph, config: FAENetConfig) -> FrameClouds:
    """``edges``: edge vectors, fading out at the cutoff."""
    cloud = edge_cloud(
        graph.edge_vectors,
        graph.edge_index,
        graph.atomic_numbers,
        graph.batch,
        graph.num_graphs,
        config.cutoff,
    )
    return FrameClouds(cloud, cloud)


def from_lattice(graph: AtomGraph, config: FAENetConfig) -> FrameClouds:
    """``lattice``: axes from short lattice vectors, signs from edges.

    Raises:
        ValueError: structures without a cell.
    """
    if graph.cell is None:
        raise ValueError(
            "frame_source: 'lattice' needs structures with a cell; use edges or positions"
        )
    planar = config.frame_averaging is FrameAveraging.PLANE
    axes = lattice_cloud(graph.cell, in_plane=planar)
    return FrameClouds(axes, from_edges(graph, config).signs)


SOURCES: dict[FrameSource, CloudSource] = {
    FrameSource.POSITIONS: from_positions,
    FrameSource.EDGES: from_edges,
    FrameSource.LATTICE: from_lattice,
}
