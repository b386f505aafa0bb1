"""Frame providers: where a structure's canonical poses come from. One class a method."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ocp_faenet.geometry import frames as geometry
from ocp_faenet.geometry.rotations import random_rotations, random_rotations_about_z
from ocp_faenet.models.config import Augmentation, FAENetConfig, FAMethod, FrameAveraging
from ocp_faenet.models.graph import AtomGraph


class FrameProvider(nn.Module):
    """Rotations of each structure, ``(B, F, 3, 3)``, columns the axes of the frame."""

    def forward(self, graph: AtomGraph, generator: torch.Generator | None = None) -> Tensor:
        """Frames from the positions as they are now; random ones drawn from ``generator``."""
        raise TypeError(f"{type(self).__name__} has no frames")


class IdentityFrames(FrameProvider):
    """``frame_averaging: null``: the pose as given. No symmetry at all beyond translations."""

    def forward(self, graph: AtomGraph, generator: torch.Generator | None = None) -> Tensor:
        """``(B, 1, 3, 3)`` identities."""
        eye = torch.eye(3, dtype=graph.positions.dtype, device=graph.positions.device)
        return eye.expand(graph.num_graphs, 1, 3, 3)


class RandomFrames(FrameProvider):
    """``frame_averaging: DA``: a fresh random rotation of each structure.

    Turning edge vectors in and predicted vectors back out is the same as rotating positions,
    cell and targets together.
    """

    def __init__(self, augmentation: Augmentation) -> None:
        super().__init__()
        about_z = augmentation is Augmentation.PLANE
        self.draw = random_rotations_about_z if about_z else random_rotations

    def forward(self, graph: AtomGraph, generator: torch.Generator | None = None) -> Tensor:
        """``(B, 1, 3, 3)`` random rotations."""
        x = graph.positions
        rotations = self.draw(graph.num_graphs, dtype=x.dtype, device=x.device, generator=generator)
        return rotations.unsqueeze(1)


class PrincipalFrames(FrameProvider):
    """Base of the frames from principal axes (report, equation 2).

    Args:
        planar: principal axes in the xy plane, z kept (``2D``); otherwise ``3D``.
        proper: rotations only, no reflections (``se3-``).
    """

    patterns: Tensor

    def __init__(self, *, planar: bool, proper: bool) -> None:
        super().__init__()
        self.planar = planar
        self.proper = proper
        self.axes = geometry.principal_axes_2d if planar else geometry.principal_axes_3d
        self.register_buffer("patterns", geometry.sign_patterns(planar, proper), persistent=False)

    def forward(self, graph: AtomGraph, generator: torch.Generator | None = None) -> Tensor:
        """``(B, F, 3, 3)``: the axes under each choice of signs."""
        points = geometry.centred(graph.positions, graph.batch, graph.num_graphs)
        axes = self.axes(geometry.covariance(points, graph.batch, graph.num_graphs))
        signs = self.signs(points, axes, graph, generator)  # (B, F, 3)
        return axes.unsqueeze(1) * signs.to(axes.dtype).unsqueeze(-2)

    def signs(
        self, points: Tensor, axes: Tensor, graph: AtomGraph, generator: torch.Generator | None
    ) -> Tensor:
        """``(B, F, 3)`` signs of the axes."""
        raise TypeError(f"{type(self).__name__} chooses no signs")


class AllFrames(PrincipalFrames):
    """``all``, ``se3-all``: every sign pattern, the exact average of equation (1)."""

    def signs(
        self, points: Tensor, axes: Tensor, graph: AtomGraph, generator: torch.Generator | None
    ) -> Tensor:
        """``(B, F, 3)``, the same patterns for each structure."""
        return self.patterns.expand(graph.num_graphs, -1, -1)


class StochasticFrame(PrincipalFrames):
    """``stochastic``, ``se3-stochastic``: one pattern a structure, all equally likely."""

    def signs(
        self, points: Tensor, axes: Tensor, graph: AtomGraph, generator: torch.Generator | None
    ) -> Tensor:
        """``(B, 1, 3)`` random patterns."""
        choice = torch.randint(0, len(self.patterns), (graph.num_graphs,), generator=generator)
        return self.patterns[choice.to(self.patterns.device)].unsqueeze(1)


class DeterministicFrame(PrincipalFrames):
    """``det``, ``se3-det``: the pattern with positive third moments along the axes."""

    def signs(
        self, points: Tensor, axes: Tensor, graph: AtomGraph, generator: torch.Generator | None
    ) -> Tensor:
        """``(B, 1, 3)`` signs by third moments."""
        moments = geometry.third_moments(
            points.detach(), axes.detach(), graph.batch, graph.num_graphs
        )
        return geometry.third_moment_signs(moments, self.planar, self.proper).unsqueeze(1)


#: Method -> provider and whether it keeps proper rotations only.
METHODS: dict[FAMethod, tuple[type[PrincipalFrames], bool]] = {
    FAMethod.ALL: (AllFrames, False),
    FAMethod.STOCHASTIC: (StochasticFrame, False),
    FAMethod.DET: (DeterministicFrame, False),
    FAMethod.SE3_ALL: (AllFrames, True),
    FAMethod.SE3_STOCHASTIC: (StochasticFrame, True),
    FAMethod.SE3_DET: (DeterministicFrame, True),
}

#: Evaluation that goes with a training method where none is asked for.
DEFAULT_EVAL: dict[FAMethod, FAMethod] = {
    FAMethod.ALL: FAMethod.ALL,
    FAMethod.STOCHASTIC: FAMethod.DET,
    FAMethod.DET: FAMethod.DET,
    FAMethod.SE3_ALL: FAMethod.SE3_ALL,
    FAMethod.SE3_STOCHASTIC: FAMethod.SE3_DET,
    FAMethod.SE3_DET: FAMethod.SE3_DET,
}


def frame_providers(config: FAENetConfig) -> tuple[FrameProvider, FrameProvider]:
    """The providers for training and for evaluation that ``config`` asks for.

    Evaluation is deterministic by default: ``det`` for ``stochastic``, the method itself
    otherwise; ``DA`` evaluates the pose as given.
    """
    if config.frame_averaging is None:
        return IdentityFrames(), IdentityFrames()
    if config.frame_averaging is FrameAveraging.DATA_AUGMENTATION:
        return RandomFrames(config.augmentation), IdentityFrames()
    planar = config.frame_averaging is FrameAveraging.PLANE
    train = config.fa_method or FAMethod.STOCHASTIC
    evaluation = config.eval_fa_method or DEFAULT_EVAL[train]
    providers = []
    for method in (train, evaluation):
        provider, proper = METHODS[method]
        providers.append(provider(planar=planar, proper=proper))
    return providers[0], providers[1]
