"""Ragged batches as a few dense ones: structures of about the same size padded together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PaddedGroup:
    """``G`` structures with their atoms in ``n`` slots each.

    Attributes:
        structures: their numbers in the batch.
        atoms: ``(G, n)`` int64, the atom of each slot; empty slots repeat the last one.
        real: ``(G, n)`` bool, slots that hold an atom of their own.
    """

    structures: tuple[int, ...]
    atoms: Tensor
    real: Tensor


def like_sizes(*sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Structures grouped so that within a group no size is twice another.

    Padding a group to its largest then at most doubles each size, whatever else is in the batch.

    Args:
        sizes: one or more sizes of each structure.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, size in enumerate(zip(*sizes, strict=True)):
        groups.setdefault(tuple(s.bit_length() for s in size), []).append(index)
    return [tuple(group) for group in groups.values()]


def pad_atoms(
    natoms: Sequence[int], structures: Sequence[int], device: torch.device
) -> PaddedGroup:
    """Slots of the atoms of some structures of a batch, whose atoms are contiguous.

    Args:
        natoms: atoms of every structure of the batch.
        structures: those to be padded together.
    """
    firsts = torch.tensor([0, *natoms]).cumsum(0)
    chosen = torch.tensor(structures)
    size = firsts[chosen + 1] - firsts[chosen]
    slots = torch.arange(int(size.max()))
    atoms = firsts[chosen, None] + torch.minimum(slots, (size - 1).clamp(min=0)[:, None])
    real = slots < size[:, None]
    return PaddedGroup(tuple(structures), atoms.to(device), real.to(device))


def slot_of_atoms(groups: Sequence[PaddedGroup], num_atoms: int) -> Tensor:
    """``(N,)`` where each atom is when the slots of all groups are laid end to end."""
    place = torch.empty(num_atoms, dtype=torch.int64, device=groups[0].atoms.device)
    start = 0
    for group in groups:
        slots = torch.arange(start, start + group.real.numel(), device=place.device)
        place[group.atoms[group.real]] = slots[group.real.flatten()]
        start += group.real.numel()
    return place
