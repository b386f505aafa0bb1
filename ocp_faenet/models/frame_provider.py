"""Frames of a batch, and the providers that look at no structure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ocp_faenet.geometry.rotations import random_rotations, random_rotations_about_z
from ocp_faenet.models.config import Augmentation
from ocp_faenet.models.graph import AtomGraph
from ocp_faenet.models.transforms import repeated


@dataclass(frozen=True)
class Frames:
    """Frames of a batch: some structures may need more of them than others.

    A structure has one or more *rows* of ``F`` frames; its prediction is the mean over all.

    Attributes:
        rotations: ``(R, F, 3, 3)``, columns the axes.
        rows: ``(R,)`` the structure of each row, ascending; ``None`` where each has one.
    """

    rotations: Tensor
    rows: Tensor | None = None

    def slots(self) -> Tensor | None:
        """``(F', B)``: the row and frame, numbered together, of each structure in slot ``f``.

        ``F'`` is the smallest count that repeats every structure's frames evenly, so that a plain
        mean over slots is the mean over frames. ``None`` where rows are structures already.
        """
        if self.rows is None:
            return None
        width = self.rotations.shape[1]
        counts = torch.bincount(self.rows) * width  # (B,)
        first = counts.cumsum(0) - counts
        slots = torch.arange(math.lcm(*counts.tolist()), device=self.rows.device)
        return first + slots.unsqueeze(-1) % counts

    def rectangular(self) -> Tensor:
        """``(B, F', 3, 3)``: the same number of frames for each structure."""
        slots = self.slots()
        if slots is None:
            return self.rotations
        return self.rotations.flatten(0, 1)[slots].transpose(0, 1)

    def copies(self, graph: AtomGraph) -> AtomGraph:
        """Each structure once for each of its rows: what a network should be run on."""
        return graph if self.rows is None else repeated(graph, self.rows)

    def collect(self, values: Tensor, graph: AtomGraph) -> Tensor:
        """``(F, N', C)`` of the atoms of `copies` to ``(F', N, C)``, as `rectangular`.

        Values that do not depend on the frame may have a first axis of length 1.
        """
        slots = self.slots()
        if self.rows is None or slots is None:
            return values
        width = self.rotations.shape[1]
        values = values.expand(width, -1, -1)
        size = torch.bincount(graph.batch, minlength=graph.num_graphs)
        first = size.cumsum(0) - size  # (B,)
        copy_size = size[self.rows]
        copy_first = copy_size.cumsum(0) - copy_size  # (R,)
        slot = slots[:, graph.batch]  # (F', N)
        row, frame = torch.div(slot, width, rounding_mode="floor"), slot % width
        place = torch.arange(graph.num_atoms, device=slot.device) - first[graph.batch]
        return values[frame, copy_first[row] + place]


class FrameProvider(nn.Module):
    """Rotations of each structure, ``(B, F, 3, 3)``, columns the axes of the frame."""

    def forward(self, graph: AtomGraph, generator: torch.Generator | None = None) -> Tensor:
        """Frames from the positions as they are now, the same number for each structure."""
        return self.frames(graph, generator).rectangular()

    def frames(self, graph: AtomGraph, generator: torch.Generator | None = None) -> Frames:
        """Frames from the positions as they are now; random ones drawn from ``generator``."""
        raise TypeError(f"{type(self).__name__} has no frames")


class IdentityFrames(FrameProvider):
    """``frame_averaging: null``: the pose as given. No symmetry at all beyond translations."""

    def frames(self, graph: AtomGraph, generator: torch.Generator | None = None) -> Frames:
        """``(B, 1, 3, 3)`` identities."""
        eye = torch.eye(3, dtype=graph.positions.dtype, device=graph.positions.device)
        return Frames(eye.expand(graph.num_graphs, 1, 3, 3))


class RandomFrames(FrameProvider):
    """``frame_averaging: DA``: a fresh random rotation of each structure.

    Turning edge vectors in and predicted vectors back out is the same as rotating positions,
    cell and targets together.
    """

    def __init__(self, augmentation: Augmentation) -> None:
        super().__init__()
        about_z = augmentation is Augmentation.PLANE
        self.draw = random_rotations_about_z if about_z else random_rotations

    def frames(self, graph: AtomGraph, generator: torch.Generator | None = None) -> Frames:
        """``(B, 1, 3, 3)`` random rotations."""
        x = graph.positions
        rotations = self.draw(graph.num_graphs, dtype=x.dtype, device=x.device, generator=generator)
        return Frames(rotations.unsqueeze(1))
