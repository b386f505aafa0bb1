"""How far predictions change under what should not change them.

For each `Symmetry` a batch is changed at random, predicted again, and the prediction taken back:

.. math:: \\Delta E_g = |E(T x_g) - E(x_g)|, \\quad
          \\Delta F_g = \\max_i \\| T^{-1} F_i(T x) - F_i(x) \\|

Each structure is compared with itself alone: errors are absolute, never summed with signs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ocp_faenet.geometry.rotations import (
    random_rotations,
    random_rotations_about_z,
)
from ocp_faenet.geometry.transforms import random_cell_changes, turn
from ocp_faenet.models import transforms
from ocp_faenet.models.graph import AtomGraph
from ocp_faenet.models.symmetries import Symmetry

#: A batch -> ``energy`` ``(B, 1)`` or ``(B,)`` in eV and, where there are any, ``forces``
#: ``(N, 3)`` in eV/Å.
Predict = Callable[[AtomGraph], Mapping[str, Tensor]]
#: A batch changed and predicted; forces brought back to the batch as it was.
Changed = Callable[[Predict, AtomGraph, torch.Generator], Mapping[str, Tensor]]

#: Å: translations are drawn up to this length along each axis.
_FARTHEST = 10.0


def _pose(draw: Callable[..., Tensor], *, mirrored: bool) -> Changed:
    def changed(
        predict: Predict, graph: AtomGraph, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        matrices = draw(graph.num_graphs, dtype=torch.float64, generator=generator)
        if mirrored:  # a mirror plane through z, turned at random
            matrices = torch.diag(matrices.new_tensor([-1.0, 1.0, 1.0])) @ matrices
        out = predict(transforms.turned(graph, matrices.to(graph.positions.device)))
        return _with_forces(out, lambda f: turn(f, matrices.mT.to(f), graph.batch.to(f.device)))

    return changed


def _translated(*, wrap: bool) -> Changed:
    def changed(
        predict: Predict, graph: AtomGraph, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        size = (graph.num_graphs, 3)
        by = (2 * torch.rand(size, generator=generator, dtype=torch.float64) - 1) * _FARTHEST
        return predict(transforms.translated(graph, by, wrap=wrap))

    return changed


def _recelled(
    predict: Predict, graph: AtomGraph, generator: torch.Generator
) -> Mapping[str, Tensor]:
    changes = random_cell_changes(graph.num_graphs, generator=generator)
    return predict(transforms.recelled(graph, changes.to(graph.positions.device)))


def _reordered(
    predict: Predict, graph: AtomGraph, generator: torch.Generator
) -> Mapping[str, Tensor]:
    order = transforms.random_order(graph, generator)
    out = predict(transforms.permuted(graph, order))
    back = torch.argsort(order)
    return _with_forces(out, lambda f: f[back.to(f.device)])


def _in_other_company(
    predict: Predict, graph: AtomGraph, generator: torch.Generator
) -> Mapping[str, Tensor]:
    """Every structure beside a random half of the batch instead of all of it."""
    if graph.num_graphs < 2:
        return predict(graph)
    shuffled = torch.randperm(graph.num_graphs, generator=generator).to(graph.batch.device)
    halves = [half.sort().values for half in shuffled.tensor_split(2)]
    parts = [predict(transforms.repeated(graph, half)) for half in halves]
    place = torch.argsort(torch.cat(halves))
    merged = {"energy": torch.cat([part["energy"] for part in parts])[place]}
    if "forces" in parts[0]:
        atoms = [_atoms_of(graph, half) for half in halves]
        merged["forces"] = torch.cat([p["forces"] for p in parts])[torch.cat(atoms).argsort()]
    return merged


def _atoms_of(graph: AtomGraph, structures: Tensor) -> Tensor:
    return torch.isin(graph.batch, structures).nonzero().flatten()


CHANGES: dict[Symmetry, Changed] = {
    Symmetry.ROTATION_Z: _pose(random_rotations_about_z, mirrored=False),
    Symmetry.ROTATION: _pose(random_rotations, mirrored=False),
    Symmetry.REFLECTION_Z: _pose(random_rotations_about_z, mirrored=True),
    Symmetry.REFLECTION: _pose(random_rotations, mirrored=True),
    Symmetry.TRANSLATION: _translated(wrap=False),
    Symmetry.IMAGE: _translated(wrap=True),
    Symmetry.CELL: _recelled,
    Symmetry.ORDER: _reordered,
    Symmetry.MATES: _in_other_company,
}
#: Those that need a periodic cell.
PERIODIC = (Symmetry.IMAGE, Symmetry.CELL)


def _with_forces(
    out: Mapping[str, Tensor], back: Callable[[Tensor], Tensor]
) -> Mapping[str, Tensor]:
    return {**out, "forces": back(out["forces"])} if "forces" in out else out


@dataclass(frozen=True)
class Errors:
    """Change of each structure's prediction: ``(B,)`` eV, and eV/Å or ``None`` without forces."""

    energy: Tensor
    forces: Tensor | None


def symmetry_errors(
    predict: Predict,
    graph: AtomGraph,
    symmetries: Iterable[Symmetry] = tuple(Symmetry),
    *,
    generator: torch.Generator,
    trials: int = 1,
) -> dict[Symmetry, list[Errors]]:
    """Errors of a batch, one entry a trial.

    Args:
        predict: see `Predict`.
        graph: the batch.
        symmetries: which to try; those that need a cell are left out where there is none.
        generator: of the random changes, on the CPU.
        trials: random changes for each.
    """
    base = predict(graph)
    periodic = graph.cell is not None
    return {
        symmetry: [
            _difference(CHANGES[symmetry](predict, graph, generator), base, graph)
            for _ in range(trials)
        ]
        for symmetry in symmetries
        if periodic or symmetry not in PERIODIC
    }


def _difference(
    found: Mapping[str, Tensor], base: Mapping[str, Tensor], graph: AtomGraph
) -> Errors:
    energy = (found["energy"] - base["energy"]).detach().abs().double().cpu()
    energy = energy.reshape(graph.num_graphs, -1).amax(-1)
    if "forces" not in base:
        return Errors(energy, None)
    off = (found["forces"] - base["forces"]).detach().double().cpu().norm(dim=-1)
    worst = torch.zeros(graph.num_graphs, dtype=off.dtype)
    return Errors(energy, worst.scatter_reduce(0, graph.batch.cpu(), off, "amax"))


@dataclass(frozen=True)
class Score:
    """Errors over a data set, in meV or meV/Å, and which structure is the worst."""

    mean: float
    worst: float
    worst_id: str


@dataclass
class SymmetryTable:
    """Collects `symmetry_errors` of batch after batch."""

    _energy: dict[Symmetry, list[tuple[float, str]]] = field(default_factory=dict)
    _forces: dict[Symmetry, list[tuple[float, str]]] = field(default_factory=dict)

    def add(self, errors: Mapping[Symmetry, Sequence[Errors]], ids: Sequence[str]) -> None:
        """Errors of one batch whose structures are called ``ids``."""
        for symmetry, trials in errors.items():
            for trial in trials:
                for table, values in ((self._energy, trial.energy), (self._forces, trial.forces)):
                    if values is not None:
                        rows = zip(values.tolist(), ids, strict=True)
                        table.setdefault(symmetry, []).extend(rows)

    def energy(self) -> dict[Symmetry, Score]:
        """Scores of energies, meV."""
        return {symmetry: _score(rows) for symmetry, rows in self._energy.items()}

    def forces(self) -> dict[Symmetry, Score]:
        """Scores of forces, meV/Å: the atom that changes most counts for its structure."""
        return {symmetry: _score(rows) for symmetry, rows in self._forces.items()}


def _score(rows: Sequence[tuple[float, str]]) -> Score:
    value, name = max(rows, key=lambda row: row[0])
    return Score(1e3 * sum(error for error, _ in rows) / len(rows), 1e3 * value, name)
