"""What may be said of the noise of Noisy Nodes and of denoising.

Sources: report, sections 4.1 and 4.2; Noisy Nodes, Godwin et al. (arXiv 2106.07971); denoising,
Zaidi et al. (arXiv 2206.00133).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ocp_faenet.nn.elements import MAX_ATOMIC_NUMBER


class NoiseTarget(str, Enum):
    """What the auxiliary head of Noisy Nodes is asked for."""

    RELAXED = "relaxed"
    INITIAL = "initial"
    NOISE = "noise"


@dataclass(frozen=True)
class NoisyNodesConfig:
    """How ``noisy_nodes`` corrupts structures, and what its head is to give back.

    Attributes:
        target: ``relaxed``: the displacement to the relaxed position; ``initial``: that back to
            the position without noise; ``noise``: the noise itself, in units of ``std``.
        std: of the Gaussian noise on each coordinate, Å.
        interpolate: with ``relaxed``, start from a point drawn evenly on the way from the
            initial to the relaxed structure, one for all atoms of a structure.
        probability: share of structures that are corrupted; the others are trained on as they
            are, with the same target.
        scale: Å that count as 1 in the target; ``std`` for ``noise``, 1 Å otherwise.
        tags: only atoms with one of these tags; ``None`` for all.
        free_atoms_only: leave fixed atoms alone.
        species_probability: share of the selected atoms that take a random species.
        species_classes: atomic numbers that the species head tells apart, and random ones are
            drawn from; needed as soon as there is a species head.

    Raises:
        ValueError: a value out of range, or keys that contradict each other.
    """

    target: NoiseTarget = NoiseTarget.RELAXED
    std: float = 0.1
    interpolate: bool = True
    probability: float = 1.0
    scale: float | None = None
    tags: tuple[int, ...] | None = None
    free_atoms_only: bool = True
    species_probability: float = 0.0
    species_classes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _not_negative("std", self.std)
        for name in ("probability", "species_probability"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: {getattr(self, name)} is not in [0, 1]")
        if self.scale is not None and not self.scale > 0:
            raise ValueError(f"scale: {self.scale} Å is not positive")
        if self.target is NoiseTarget.NOISE and self.std == 0:
            raise ValueError("std: 0 with target: noise, which is measured in units of it")
        _check_tags(self.tags)
        if self.species_classes is not None:
            check_classes(self.species_classes)
        elif self.species_probability > 0:
            raise ValueError(
                f"species_probability: {self.species_probability} without species_classes; give "
                "the atomic numbers that occur"
            )

    @property
    def unit(self) -> float:
        """Å that count as 1 in the target."""
        if self.scale is not None:
            return self.scale
        return self.std if self.target is NoiseTarget.NOISE else 1.0


@dataclass(frozen=True)
class DenoisingConfig:
    """How ``denoising`` corrupts structures (report, equation 17).

    Attributes:
        std: of the Gaussian noise on each coordinate, Å.
        positions: which of a record's positions are corrupted: ``pos`` or ``pos_relaxed``.
        tags: only atoms with one of these tags; ``None`` for all.
        free_atoms_only: leave fixed atoms alone.
        seed: the same noise for a record at all times, from this and its ``sid`` and ``fid``:
            for validation. ``None``: fresh noise each time.

    Raises:
        ValueError: a value out of range.
    """

    std: float = 0.1
    positions: str = "pos"
    tags: tuple[int, ...] | None = None
    free_atoms_only: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        _not_negative("std", self.std)
        if self.std == 0:
            raise ValueError("std: 0 leaves nothing to denoise; OC20's bonds bear 0.05 to 0.3 Å")
        if self.positions not in ("pos", "pos_relaxed"):
            raise ValueError(f"positions: {self.positions!r}; 'pos' or 'pos_relaxed'")
        _check_tags(self.tags)


def check_classes(classes: tuple[int, ...]) -> None:
    """Refuse species that are no elements, too few, or named twice.

    Raises:
        ValueError: which says so.
    """
    if len(classes) < 2:
        raise ValueError(f"species_classes: {list(classes)}; at least two are needed")
    if len(set(classes)) < len(classes):
        raise ValueError(f"species_classes: {list(classes)} names one twice")
    if wrong := [z for z in classes if not 1 <= z <= MAX_ATOMIC_NUMBER]:
        raise ValueError(f"species_classes: {wrong[0]} is not in 1 to {MAX_ATOMIC_NUMBER}")


def _not_negative(name: str, value: float) -> None:
    if not value >= 0:
        raise ValueError(f"{name}: {value} Å; a standard deviation is not negative")


def _check_tags(tags: tuple[int, ...] | None) -> None:
    if tags is not None and (not tags or not set(tags) <= {0, 1, 2}):
        raise ValueError(f"tags: {list(tags)}; some of 0 subsurface, 1 surface, 2 adsorbate")
