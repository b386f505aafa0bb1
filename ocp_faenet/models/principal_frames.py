"""Frames from principal axes. One class a method."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ocp_faenet.geometry.ambiguity import (
    TIE,
    axial_candidates,
    isotropic_candidates,
    tied_frames,
)
from ocp_faenet.geometry.clouds import Cloud
from ocp_faenet.geometry.frames import (
    POINT,
    PrincipalAxes,
    Shape,
    lone_axis,
    principal_axes_2d,
    principal_axes_3d,
    sign_patterns,
    third_moment_signs,
)
from ocp_faenet.models.config import FAENetConfig, FrameAveraging
from ocp_faenet.models.frame_provider import FrameProvider, Frames
from ocp_faenet.models.frame_sources import SOURCES, FrameClouds
from ocp_faenet.models.graph import AtomGraph


class PrincipalFrames(FrameProvider):
    """Base of the frames from principal axes (report, equation 2).

    Most structures get the frames of `usual`. Those whose axes or signs are ambiguous get the
    equivariant set that `ocp_faenet.geometry.ambiguity` describes instead.

    Args:
        config: ``frame_averaging`` ``2D`` keeps z, ``frame_source`` says what is looked at.
        proper: rotations only, no reflections (``se3-``).
        exact: average over all frames of an ambiguous structure; otherwise (training) draw from
            them, so that the number of frames is the same for all.
    """

    patterns: Tensor

    def __init__(self, config: FAENetConfig, *, proper: bool, exact: bool) -> None:
        super().__init__()
        self.config = config
        self.planar = config.frame_averaging is FrameAveraging.PLANE
        self.proper = proper
        self.exact = exact
        self.source = SOURCES[config.frame_source]
        patterns = sign_patterns(self.planar, proper)
        self.register_buffer("patterns", patterns, persistent=False)

    def frames(self, graph: AtomGraph, generator: torch.Generator | None = None) -> Frames:
        """The axes under each choice of signs."""
        with torch.autocast(graph.positions.device.type, enabled=False):
            clouds, principal = self.look(graph)
            signs, ambiguous = self.usual(clouds, principal, generator)
            usual = principal.axes.unsqueeze(1) * signs.to(principal.axes).unsqueeze(-2)
            ambiguous = ambiguous | (principal.shape != Shape.DISTINCT)
            frames = Frames(usual)
            if bool(ambiguous.any()):
                sets = self.ambiguous_sets(clouds, principal, ambiguous)
                merge = self._all_rows if self.exact else self._drawn
                frames = merge(usual, sets, generator)
        return Frames(frames.rotations.to(graph.positions.dtype), frames.rows)

    def look(self, graph: AtomGraph) -> tuple[FrameClouds, PrincipalAxes]:
        """Clouds of the structures, and principal axes in the plane or in space."""
        clouds = self.source(graph, self.config)
        cov = clouds.axes.second_moments()
        return clouds, principal_axes_2d(cov) if self.planar else principal_axes_3d(cov)

    def usual(
        self, clouds: FrameClouds, principal: PrincipalAxes, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Signs ``(B, F, 3)`` of distinct axes, and ``(B,)`` where they are ambiguous."""
        raise TypeError(f"{type(self).__name__} chooses no signs")

    def ambiguous_sets(
        self, clouds: FrameClouds, principal: PrincipalAxes, ambiguous: Tensor
    ) -> dict[int, Tensor]:
        """Frames ``(T, 3, 3)`` of each ambiguous structure, by its number in the batch."""
        axes_bounds, signs_bounds = clouds.axes.bounds(), clouds.signs.bounds()
        spread = sign_spread(clouds, principal)
        sets = {}
        for index in ambiguous.nonzero().flatten().tolist():
            cloud = clouds.axes.one(axes_bounds[index], axes_bounds[index + 1])
            signs = clouds.signs.one(signs_bounds[index], signs_bounds[index + 1])
            shape = Shape(int(principal.shape[index]))
            candidates = self._candidates(cloud, principal.axes[index], shape)
            sets[index] = tied_frames(signs, candidates, float(spread[index]))
        return sets

    def _candidates(self, cloud: Cloud, axes: Tensor, shape: Shape) -> Tensor:
        """``(C, 3, 3)`` frames that the second moments cannot tell apart."""
        if shape is Shape.DISTINCT:
            return axes * self.patterns.to(axes).unsqueeze(-2)
        if shape is Shape.ISOTROPIC:
            return isotropic_candidates(cloud, proper=self.proper)
        about = 0 if shape is Shape.ABOUT_FIRST else 2
        if not self.planar and cloud.vectors.requires_grad:
            u = lone_axis(cloud.second_moments()[0], axes, about)
            axes = torch.cat([axes[:, :about], u.unsqueeze(-1), axes[:, about + 1 :]], dim=-1)
        return axial_candidates(cloud, axes, about, both_ends=not self.planar, proper=self.proper)

    @staticmethod
    def _all_rows(
        usual: Tensor, sets: dict[int, Tensor], generator: torch.Generator | None
    ) -> Frames:
        """All frames of every structure, each once, in the widest rows that hold them evenly."""
        parts = [sets.get(index, frames) for index, frames in enumerate(usual.unbind(0))]
        width = math.gcd(*map(len, parts))
        rotations = torch.cat(parts).view(-1, width, 3, 3)
        if len(rotations) == len(parts):
            return Frames(rotations)
        rows = [index for index, part in enumerate(parts) for _ in range(len(part) // width)]
        return Frames(rotations, torch.tensor(rows, device=usual.device))

    @staticmethod
    def _drawn(usual: Tensor, sets: dict[int, Tensor], generator: torch.Generator | None) -> Frames:
        """For ambiguous structures, frames drawn from their sets: an unbiased mean."""
        parts = list(usual.unbind(0))
        for index, frames in sets.items():
            choice = torch.randint(0, len(frames), (usual.shape[1],), generator=generator)
            parts[index] = frames[choice.to(frames.device)]
        return Frames(torch.stack(parts))


class AllFrames(PrincipalFrames):
    """``all``, ``se3-all``: every sign pattern, the exact average of equation (1)."""

    def usual(
        self, clouds: FrameClouds, principal: PrincipalAxes, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """The same patterns for each structure."""
        signs = self.patterns.expand(len(principal.axes), -1, -1)
        return signs, torch.zeros_like(principal.shape, dtype=torch.bool)


class StochasticFrame(PrincipalFrames):
    """``stochastic``, ``se3-stochastic``: one pattern a structure, all equally likely."""

    def __init__(self, config: FAENetConfig, *, proper: bool, exact: bool) -> None:
        super().__init__(config, proper=proper, exact=False)

    def usual(
        self, clouds: FrameClouds, principal: PrincipalAxes, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Random patterns ``(B, 1, 3)``."""
        size = (len(principal.axes),)
        choice = torch.randint(0, len(self.patterns), size, generator=generator)
        signs = self.patterns[choice.to(self.patterns.device)].unsqueeze(1)
        return signs, torch.zeros_like(principal.shape, dtype=torch.bool)


class DeterministicFrame(PrincipalFrames):
    """``det``, ``se3-det``: the pattern with positive third moments along the axes."""

    def usual(
        self, clouds: FrameClouds, principal: PrincipalAxes, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Signs ``(B, 1, 3)`` by third moments; ambiguous where one that decides vanishes."""
        moments = clouds.signs.third_moments(principal.axes)
        signs = third_moment_signs(moments, self.planar, self.proper)
        return signs.unsqueeze(1), self.margins(moments) <= TIE

    def margins(self, moments: Tensor) -> Tensor:
        """``(B,)`` smallest of the third moments ``(B, 3)`` that decide a sign."""
        deciding = (2 if self.planar else 3) - (1 if self.proper else 0)
        return moments[:, :deciding].abs().amin(-1)


def sign_spread(clouds: FrameClouds, principal: PrincipalAxes) -> Tensor:
    """``(B,)`` Å, the length unit of waves: the axes' spread, or the other cloud's own."""
    if clouds.signs is clouds.axes:
        return principal.spread
    with torch.no_grad():
        square = torch.diagonal(clouds.signs.second_moments(), dim1=-2, dim2=-1).sum(-1)
        return torch.where(square > POINT**2, square, 1.0).sqrt()
