"""Choices of Ewald message passing: the ``ewald`` section of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ocp_faenet.models.choices import FrameSource


class EwaldForm(Enum):
    """Where wave vectors come from."""

    BOX = "index box"
    CUTOFF = "frequency cutoff"
    VOXELS = "voxel grid"


@dataclass(frozen=True)
class EwaldConfig:
    """Long-range messages in Fourier space (report, section 4.3; arXiv 2303.04791).

    One of ``box`` and ``k_cutoff`` is given; which keys are there decides on the form.

    Attributes:
        box: periodic, a filter for each index: the largest index along each cell vector. The
            report's setting for OC20 is ``[1, 1, 3]``.
        k_cutoff: Å⁻¹, largest ``|k|``; the filter is a function of ``|k|``.
        voxel: Å⁻¹, edge of the voxels of the aperiodic form, with ``k_cutoff`` and
            ``use_pbc: false``; ``None`` for periodic structures.
        num_gaussians: radial basis of the filter in ``k_cutoff`` forms.
        down_projection: values of each wave vector, shared by all blocks.
        num_residual: residual layers after each block's message.
        residual_channels: width inside them; ``None`` for a quarter of ``hidden_channels``.

    Raises:
        ValueError: a value out of range, or keys that contradict each other.
    """

    box: tuple[int, int, int] | None = None
    k_cutoff: float | None = None
    voxel: float | None = None
    num_gaussians: int = 32
    down_projection: int = 8
    num_residual: int = 3
    residual_channels: int | None = None

    def __post_init__(self) -> None:
        if (self.box is None) == (self.k_cutoff is None):
            raise ValueError(
                f"ewald: box {self.box} and k_cutoff {self.k_cutoff}; give one of them, "
                "such as box: [1, 1, 3] or k_cutoff: 0.6"
            )
        if self.box is not None and (min(self.box) < 0 or max(self.box) < 1):
            raise ValueError(
                f"ewald.box: {list(self.box)}; three whole numbers from 0, not all of them 0"
            )
        if self.voxel is not None and self.k_cutoff is None:
            raise ValueError(f"ewald.voxel: {self.voxel} needs k_cutoff, the radius of the grid")
        for name in ("k_cutoff", "voxel", "down_projection", "residual_channels"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"ewald.{name}: {value} is not positive")
        if self.num_gaussians < 2:
            raise ValueError(f"ewald.num_gaussians: {self.num_gaussians}; at least 2 are needed")
        if self.num_residual < 0:
            raise ValueError(f"ewald.num_residual: {self.num_residual} is negative")

    @property
    def form(self) -> EwaldForm:
        """The form that the given keys ask for."""
        if self.box is not None:
            return EwaldForm.BOX
        return EwaldForm.CUTOFF if self.voxel is None else EwaldForm.VOXELS

    def check_frames(self, frame_source: FrameSource) -> None:
        """Refuse frames that a voxel grid cannot lie in.

        Edges are blind to how parts of a structure that none of them joins are turned against
        each other; a grid that lies in their frame would not be.

        Raises:
            ValueError: names both keys.
        """
        if self.form is EwaldForm.VOXELS and frame_source is not FrameSource.POSITIONS:
            raise ValueError(
                f"ewald.voxel: {self.voxel} needs the frame of the whole structure, but "
                f"frame_source is {frame_source.value!r}; set frame_source: positions"
            )

    def check_periodicity(self, use_pbc: bool) -> None:
        """Refuse a form that does not fit periodic (or free) structures.

        Raises:
            ValueError: names both keys.
        """
        if use_pbc and self.form is EwaldForm.VOXELS:
            raise ValueError(
                f"ewald.voxel: {self.voxel} is for free structures, but use_pbc is true; "
                "leave voxel out, or set use_pbc: false"
            )
        if not use_pbc and self.form is not EwaldForm.VOXELS:
            raise ValueError(
                f"ewald: the form with {self.form.value} needs use_pbc: true; for free "
                "structures give k_cutoff and voxel"
            )
