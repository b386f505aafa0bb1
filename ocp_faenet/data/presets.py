"""Sizes of the embedded data set."""

from __future__ import annotations

from dataclasses import dataclass

from ocp_faenet.data.systems import Split


@dataclass(frozen=True)
class Preset:
    """How much of everything.

    Attributes:
        train, val: relaxations of `train` and of each validation split.
        train_frames, val_frames: S2EF frames per relaxation, taken along its trajectory.
        rattled: S2EF frames per relaxation made by displacing atoms.
        dense_systems: dense systems of each of the four kinds (ID, and OOD adsorbate, catalyst,
            both).
        dense_configs: placements of each dense system.
    """

    name: str
    train: int
    val: int
    train_frames: int
    val_frames: int
    rattled: int
    dense_systems: int
    dense_configs: int

    def relaxations(self, split: Split) -> int:
        """Relaxations of a split."""
        return self.train if split is Split.TRAIN else self.val

    def frames(self, split: Split) -> int:
        """Trajectory frames per relaxation of a split."""
        return self.train_frames if split is Split.TRAIN else self.val_frames


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("tiny", 48, 16, 2, 2, 1, 2, 10),
        Preset("demo", 1000, 200, 3, 2, 1, 10, 30),
        Preset("full", 10000, 1000, 3, 2, 1, 40, 60),
    )
}
