"""Frames of a batch, and the providers that look at no structure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ocp_faenet.geometry.rotations import random_rotations, random_rotations_about_z
from ocp_faenet.geometry.segments import segment_mean
from ocp_faenet.models.config import Augmentation
from ocp_faenet.models.graph import AtomGraph
from ocp_faenet.models.transforms import atoms_of_rows, repeated


@dataclass(frozen=True)
class Origin:
    """Where the copies come from that a network is run on: one for each row of frames.

    Attributes:
        structures: ``(R,)`` the structure of each copy.
        atoms: ``(N',)`` the atom of each atom of the copies.
        num_graphs, num_atoms: ``B`` and ``N`` of the batch that was copied.
    """

    structures: Tensor
    atoms: Tensor
    num_graphs: int
    num_atoms: int

    def of_structures(self, values: Tensor) -> Tensor:
        """Mean over the copies of each structure: ``(R, D)`` to ``(B, D)``."""
        return segment_mean(values, self.structures, self.num_graphs)

    def of_atoms(self, values: Tensor) -> Tensor:
        """Mean over the copies of each atom: ``(N', D)`` to ``(N, D)``."""
        return segment_mean(values, self.atoms, self.num_atoms)


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

    def rectangular(self) -> Tensor:
        """``(B, F', 3, 3)``, all frames of each structure.

        Raises:
            ValueError: structures of the batch have different numbers of frames.
        """
        if self.rows is None:
            return self.rotations
        counts = torch.bincount(self.rows)
        if not bool((counts == counts[0]).all()):
            found = sorted(set((counts * self.rotations.shape[1]).tolist()))
            raise ValueError(f"frames: structures have {found} of them; take them one by one")
        return self.rotations.reshape(len(counts), -1, 3, 3)

    def copies(self, graph: AtomGraph) -> tuple[AtomGraph, Origin | None]:
        """Each structure once for each of its rows: what a network should be run on.

        ``None`` where that is the graph itself.
        """
        if self.rows is None:
            return graph, None
        atoms = atoms_of_rows(graph, self.rows)
        origin = Origin(self.rows, atoms, graph.num_graphs, graph.num_atoms)
        return repeated(graph, self.rows), origin


class FrameProvider(nn.Module):
    """Rotations of each structure, ``(B, F, 3, 3)``, columns the axes of the frame."""

    def forward(self, graph: AtomGraph, generator: torch.Generator | None = None) -> Tensor:
        """Frames from the positions as they are now; see `Frames.rectangular`."""
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
