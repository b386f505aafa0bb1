"""Corrupted structures for Noisy Nodes and for denoising, on plain tensors.

Sources: report, sections 4.1 and 4.2; Noisy Nodes, Godwin et al. (arXiv 2106.07971); denoising,
Zaidi et al. (arXiv 2206.00133).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ocp_faenet.geometry.images import minimum_image
from ocp_faenet.models.noise_config import NoiseTarget, NoisyNodesConfig


@dataclass(frozen=True)
class NoisyAtoms:
    """Corrupted positions and what is to be made of them.

    Attributes:
        positions: ``(N, 3)``, Å.
        target: ``(N, 3)``, in the configuration's unit; NaN for atoms that were not selected.
        offset: ``(N, 3)``, to be added to what the network says before the comparison with
            ``target``. So ``target`` does not depend on the noise, and is there for structures
            without noise too.
    """

    positions: Tensor
    target: Tensor
    offset: Tensor


def corrupted(
    positions: Tensor,
    selected: Tensor,
    config: NoisyNodesConfig,
    generator: torch.Generator | None,
    *,
    relaxed: Tensor | None = None,
    cell: Tensor | None = None,
) -> NoisyAtoms:
    """One structure with the noise of Noisy Nodes.

    With positions ``x``, relaxed ones ``y`` (of each atom the periodic image nearest to ``x``),
    ``g ~ U(0, 1)`` for the structure and ``eps ~ N(0, 1)``, the network sees
    ``x' = x + g (y - x) + std eps`` (``g = 0`` without interpolation) and is asked for
    ``(y - x') / scale``, for ``(x - x') / scale`` or for ``eps``.

    Args:
        positions: ``(N, 3)``, Å.
        selected: ``(N,)`` mask of the atoms that may be corrupted and have a target.
        config: which noise.
        generator: on the CPU; ``None`` for no noise at all.
        relaxed: ``(N, 3)``, Å; needed for ``relaxed``.
        cell: ``(1, 3, 3)``, Å, or ``None``.

    Raises:
        ValueError: no relaxed positions where they are the target.
    """
    mask, displacement = selected.unsqueeze(-1), torch.zeros_like(positions)
    if config.target is NoiseTarget.RELAXED:
        if relaxed is None:
            raise ValueError("target: 'relaxed' needs relaxed positions")
        batch = torch.zeros(len(positions), dtype=torch.int64, device=positions.device)
        displacement = minimum_image(relaxed - positions, cell, batch)
    target = torch.where(mask, displacement / config.unit, torch.nan)
    g, eps = _drawn(positions, config, generator)
    moved = (config.std * eps + g * displacement) * mask
    # The head says (target - x') / unit, and meets `target` with x' - x added to it. For `noise`
    # it says eps, which has the opposite sign.
    offset = moved / config.unit
    if config.target is NoiseTarget.NOISE:
        offset = -offset
    return NoisyAtoms(positions + moved, target, offset)


def _drawn(
    positions: Tensor, config: NoisyNodesConfig, generator: torch.Generator | None
) -> tuple[float, Tensor]:
    """``g`` and ``eps``; zeros for a structure that stays as it is."""
    if generator is None:
        return 0.0, torch.zeros_like(positions)
    g, draw = torch.rand(2, generator=generator).tolist()
    eps = torch.randn(positions.shape, generator=generator).to(positions)
    if draw >= config.probability:
        return 0.0, torch.zeros_like(positions)
    interpolated = config.target is NoiseTarget.RELAXED and config.interpolate
    return g if interpolated else 0.0, eps


def with_noise(
    positions: Tensor, selected: Tensor, std: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """``x + std eps`` and ``eps ~ N(0, 1)``, NaN where not selected (report, equation 17)."""
    eps = torch.randn(positions.shape[0], 3, generator=generator).to(positions)
    mask = selected.unsqueeze(-1)
    return positions + std * eps * mask, torch.where(mask, eps, torch.nan)


def selection(
    tags: Tensor | None,
    fixed: Tensor | None,
    *,
    wanted: tuple[int, ...] | None,
    free_atoms_only: bool,
    num_atoms: int,
) -> Tensor:
    """``(N,)`` mask of the atoms with ``wanted`` tags that are not fixed.

    Raises:
        ValueError: tags or fixed flags are asked for and there are none.
    """
    keep = torch.ones(num_atoms, dtype=torch.bool)
    if wanted is not None:
        if tags is None:
            raise ValueError(f"no 'tags', which tags: {list(wanted)} needs; add them or drop it")
        keep &= torch.isin(tags.long().cpu(), torch.tensor(wanted))
    if free_atoms_only:
        if fixed is None:
            raise ValueError("no 'fixed', which free_atoms_only needs; set free_atoms_only: false")
        keep &= fixed.view(-1).cpu() == 0
    return keep


def corrupted_species(
    numbers: Tensor,
    selected: Tensor,
    classes: tuple[int, ...],
    probability: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Atomic numbers, some of them random, and the mask of those, ``(N,)`` each."""
    drawn = torch.rand(len(numbers), generator=generator) < probability
    hit = drawn & selected
    other = torch.tensor(classes)[torch.randint(len(classes), (len(numbers),), generator=generator)]
    return torch.where(hit, other.to(numbers), numbers), hit


def species_target(numbers: Tensor, hit: Tensor, classes: tuple[int, ...]) -> Tensor:
    """``(N, classes)`` one-hot rows of the atoms in ``hit``, NaN for the others.

    Raises:
        ValueError: an element that is not among the classes.
    """
    known = torch.tensor(classes)
    same = numbers.long().unsqueeze(-1) == known  # (N, classes)
    missing = hit & ~same.any(-1)
    if bool(missing.any()):
        z = int(numbers[missing][0])
        raise ValueError(f"atomic number {z} is not among species_classes {list(classes)}; add it")
    return torch.where(hit.unsqueeze(-1), same.to(torch.float32), torch.nan)
