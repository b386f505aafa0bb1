"""Learned canonicalisation: a shallow equivariant network that chooses the frame."""

from __future__ import annotations

import torch
from torch import Tensor

from ocp_faenet.geometry.clouds import FRAME_RADIUS
from ocp_faenet.geometry.frames import sign_patterns
from ocp_faenet.geometry.orthogonal import gram_schmidt
from ocp_faenet.models.config import FAENetConfig, FrameAveraging, Subgroup
from ocp_faenet.models.frame_provider import FrameProvider, Frames
from ocp_faenet.models.graph import AtomGraph
from ocp_faenet.models.principal_frames import DeterministicFrame
from ocp_faenet.nn.vector_neurons import VectorNetwork


class LearnedFrames(FrameProvider):
    """``learned``, ``se3-learned`` (report, section 2.3; Kaba et al., arXiv 2211.06489).

    Vectors ``a_k = u_k + VN_k(x)``, the deterministic principal axes plus the output of a Vector
    Neurons network on periodic neighbour vectors, are orthonormalised. The network's last layer
    starts at zero, so training starts at the frames of ``det``. Where the vectors come to be
    dependent, the principal axes are the fallback.

    With a subgroup ``K`` the canonicalisation is partial: ``zeta(g x) = g zeta(x) k``, and the
    prediction is averaged over ``K``, which makes it equivariant to what is left open:
    ``reflection`` takes a proper frame and its mirror image, ``signs`` all signs of its axes.

    Args:
        config: ``frame_averaging`` (2D, 3D), ``canonical_channels``, ``canonical_subgroup``.
        proper: the ``se3-`` form.
    """

    patterns: Tensor

    def __init__(self, config: FAENetConfig, *, proper: bool) -> None:
        super().__init__()
        self.planar = config.frame_averaging is FrameAveraging.PLANE
        subgroup = config.canonical_subgroup
        self.right_handed = proper or subgroup is not None
        self.train_start = DeterministicFrame(config, proper=proper, exact=False)
        self.eval_start = DeterministicFrame(config, proper=proper, exact=True)
        vectors = (2 if self.planar else 3) - (1 if self.right_handed else 0)
        self.network = VectorNetwork(
            min(config.cutoff, FRAME_RADIUS), config.canonical_channels, vectors
        )
        patterns = _patterns(subgroup, planar=self.planar, proper=proper)
        self.register_buffer("patterns", patterns, persistent=False)

    def frames(self, graph: AtomGraph, generator: torch.Generator | None = None) -> Frames:
        """``|K|`` for each frame of ``det``; in training, for one drawn from them."""
        principal = self.train_start if self.training else self.eval_start
        start = principal.frames(graph, generator)
        with torch.autocast(graph.positions.device.type, enabled=False):
            learned = self.network(graph.edge_vectors, graph.atomic_numbers, graph.topology)
            base = start.rotations  # (R, F, 3, 3)
            if start.rows is not None:
                learned = learned[start.rows]
            count = learned.shape[1]
            columns = base[..., :count] + learned.mT.unsqueeze(1)
            vectors = torch.cat([columns, base[..., count:]], dim=-1)
            frame = gram_schmidt(vectors, base, planar=self.planar, proper=self.right_handed)
            rotations = frame.unsqueeze(2) * self.patterns.to(frame).unsqueeze(-2)
        return Frames(rotations.flatten(1, 2), start.rows)


def _patterns(subgroup: Subgroup | None, *, planar: bool, proper: bool) -> Tensor:
    """``(|K|, 3)`` signs of the axes that make up the subgroup."""
    if subgroup is None:
        return torch.ones(1, 3)
    patterns = sign_patterns(planar, proper)
    if subgroup is Subgroup.SIGNS:
        return patterns
    last = 1 if planar else 2
    kept = [k for k in range(3) if k != last]
    return patterns[(patterns[:, kept] > 0).all(-1)]
