"""Trajectories of finished relaxations: ``<sid>.traj`` whole and ending where it ended, or none."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import ase.io.ulm
import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.geometry import find_mic
from torch import Tensor

#: Under what a last frame says that it is one.
MARK = "ocp_faenet_relaxed"


@dataclass(frozen=True)
class Relaxed:
    """Where a relaxation ended.

    Attributes:
        positions: ``(n, 3)``, Å, on the side of the cell where the atoms started.
        energy: scalar, eV.
        forces: ``(n, 3)``, eV/Å, as the host leaves them: zero on fixed atoms.
    """

    positions: Tensor
    energy: Tensor
    forces: Tensor


class Trajectories:
    """A folder of trajectories.

    Args:
        folder: made when needed.
        mark: what a relaxation depends on besides its start; others' files are not taken.
        rank: of this process. A system that fills up the share of a rank is relaxed by two at once:
            each writes in a place of its own.
    """

    def __init__(self, folder: Path, mark: Mapping[str, Any], rank: int = 0) -> None:
        self.folder = folder
        self.mark = dict(mark)
        self.unfinished = folder / (f"unfinished-{rank}" if rank else "unfinished")

    def load(self, name: str, record: Any) -> Relaxed | None:
        """Where the system ended in an earlier run, or ``None`` if it has to be relaxed.

        Raises:
            ValueError: the file holds other atoms than ``record``.
        """
        path = self.folder / f"{name}.traj"
        if not path.is_file():
            return None
        frames = _frames(path)
        if frames and not np.array_equal(frames[0].numbers, _numbers(record)):
            raise ValueError(
                f"{path}: {frames[0].get_chemical_formula()}, which is not the structure with "
                f"sid {name}; set task.relax_opt.traj_dir to an empty folder"
            )
        if not frames or frames[-1].info.get(MARK) != self.mark:
            return None
        last = frames[-1]
        cell = record.cell.view(3, 3).double().cpu().numpy()
        start = record.pos.double().cpu().numpy()
        moved, _ = find_mic(last.positions - start, cell, pbc=True)
        return Relaxed(
            torch.from_numpy(start + moved).to(record.pos.dtype),
            torch.tensor(last.calc.results["energy"], dtype=torch.float32),
            torch.from_numpy(last.calc.results["forces"]).to(record.pos.dtype),
        )

    def save(self, name: str, record: Any, end: Relaxed) -> None:
        """Take the trajectory that the host has just written, end it as it ended, publish it."""
        written = self.unfinished / f"{name}.traj"
        frames = _frames(written) or []
        last = self._frame(record, end)
        if frames and np.allclose(frames[-1].positions, last.positions, atol=1e-6):
            frames.pop()
        whole = self.unfinished / f"{name}.whole"
        ase.io.write(whole, [*frames, last], format="traj")
        whole.replace(self.folder / written.name)
        written.unlink()
        with contextlib.suppress(OSError):  # others may still be there
            self.unfinished.rmdir()

    def _frame(self, record: Any, end: Relaxed) -> Atoms:
        """The last frame, wrapped into the cell like the host's, with the mark."""
        fixed = record.fixed.bool().cpu().numpy()
        atoms = Atoms(
            numbers=_numbers(record),
            positions=end.positions.double().numpy(),
            cell=record.cell.view(3, 3).double().cpu().numpy(),
            tags=record.tags.cpu().numpy() if "tags" in record else None,
            constraint=FixAtoms(mask=fixed),
            pbc=True,
            info={MARK: self.mark},
        )
        atoms.wrap(eps=1e-7)
        atoms.calc = SinglePointCalculator(
            atoms, energy=float(end.energy), forces=end.forces.double().numpy()
        )
        return atoms


def _frames(path: Path) -> list[Atoms] | None:
    """Every frame; ``None`` where the file was cut short."""
    try:
        return list(ase.io.iread(path, ":", format="traj")) if path.stat().st_size else []
    except (ase.io.ulm.InvalidULMFileError, ValueError, OSError, EOFError, KeyError):
        return None


def _numbers(record: Any) -> Any:
    return record.atomic_numbers.long().cpu().numpy()
