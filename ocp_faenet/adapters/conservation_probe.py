"""Curl and drift of the forces of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.constraints import FixAtoms
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from fairchem.core import OCPCalculator

from ocp_faenet.adapters.host_model import (
    HostModel,
    as_seen,
    batches,
    open_model,
    open_records,
)
from ocp_faenet.adapters.runs import RunSpec
from ocp_faenet.metrics.conservation import drift, random_path, work
from ocp_faenet.models.graph import AtomGraph
from ocp_faenet.models.transforms import joined


@dataclass(frozen=True)
class ProbeSettings:
    """What is tried.

    Attributes:
        structures: how many, spread over the data set.
        loops: closed paths about each.
        points: on each path.
        radius: of a path, root mean square over the atoms that move, Å.
        steps: of each trajectory.
        timestep: fs.
        temperature: of the velocities at the start, K.
        seed: of paths and velocities.
    """

    structures: int = 8
    loops: int = 4
    points: int = 16
    radius: float = 0.1
    steps: int = 200
    timestep: float = 1.0
    temperature: float = 300.0
    seed: int = 0


#: Of every checkpoint of a study: a few seconds each.
IN_STUDIES = ProbeSettings(structures=4, steps=100)


def probe(
    checkpoint: Path,
    src: Path,
    settings: ProbeSettings,
    progress: Callable[[], Any] = lambda: None,
) -> dict[str, float]:
    """Work around random closed paths, and drift of the energy in NVE dynamics.

    Along a path the edges of a FAENet, or of a model that reads stored ones, are those of its
    middle, without those that could cross the cutoff: the steps of an energy whose edges come and
    go are another matter than a curl. Trajectories make their own edges at each step, as
    `OCPCalculator` does, and show these steps.

    Returns:
        ``work``: mean of its absolute value, meV; ``work_share``: of the work that forces do along
        the path without regard to sign, %; ``drift``: mean absolute slope of the total energy,
        meV/ps for each atom that moves; ``deviation``: largest change of the total energy of a
        trajectory, mean over trajectories, meV.

    Raises:
        ValueError: an unreadable checkpoint or LMDB, a model without forces, or only structures
            that cannot move.
    """
    model = open_model(checkpoint)
    dataset = open_records(src, model)
    made_here = model.config is not None and not model.stored_edges
    fixed = replace(model, stored_edges=True) if made_here else model
    if made_here:
        for part in model.trainer._unwrapped_model.modules():
            if hasattr(part, "otf_graph"):
                part.otf_graph = False
    chosen = np.linspace(0, len(dataset) - 1, min(settings.structures, len(dataset))).astype(int)
    calculator = OCPCalculator(checkpoint_path=str(checkpoint), cpu=True)
    generator = np.random.default_rng(settings.seed)
    works, shares, slopes, deviations = [], [], [], []
    for index in chosen.tolist():
        record = dataset[index]
        free = (record.fixed == 0).numpy()
        if free.any():
            ((graph, _),) = batches(_One(dataset, index), model, 1)  # type: ignore[arg-type]
            graph = _with_edges(graph, model) if made_here else graph
            for around, along in _loops(fixed, graph, free, settings, generator):
                works.append(abs(around))
                shares.append(abs(around) / max(along, 1e-12))
            times, energies = trajectory(atoms_of(record), calculator, settings, generator)
            slopes.append(abs(drift(energies, times)) / free.sum())
            deviations.append(np.abs(energies - energies[0]).max())
        progress()
    if not works:
        raise ValueError(f"{src}: every atom of the structures chosen is fixed; nothing can move")
    return {
        "work": 1e3 * float(np.mean(works)),
        "work_share": 1e2 * float(np.mean(shares)),
        "drift": 1e3 * float(np.mean(slopes)),
        "deviation": 1e3 * float(np.mean(deviations)),
    }


def conservation_of(spec: RunSpec, result: Mapping[str, Any]) -> dict[str, float]:
    """What `probe` finds on the first validation split with `IN_STUDIES`, for a study's table."""
    src = Path(next(iter(spec.splits.values())))
    found = probe(Path(result["checkpoint"]), src, IN_STUDIES)
    return {
        "closed path (meV)": found["work"],
        "closed path (%)": found["work_share"],
        "NVE drift (meV/atom/ps)": found["drift"],
    }


def _loops(
    model: HostModel,
    graph: AtomGraph,
    free: Any,
    settings: ProbeSettings,
    generator: np.random.Generator,
) -> list[tuple[float, float]]:
    """Work around and along each path about one structure, eV."""
    found = []
    for _ in range(settings.loops):
        path = random_path(
            graph.positions.numpy(),
            free,
            radius=settings.radius,
            points=settings.points,
            generator=generator,
        )
        inside = graph
        if model.config is not None:
            moved = torch.from_numpy(path.positions) - graph.positions.double()
            reach = model.config.cutoff - 2 * float(moved.norm(dim=-1).max())
            inside = graph.keep_edges(graph.edge_vectors.norm(dim=-1) < reach)
        found.append(work(path, _forces(model, inside, path.positions)))
    return found


def _with_edges(graph: AtomGraph, model: HostModel) -> AtomGraph:
    """The graph with the edges that the model would make."""
    seen = as_seen(graph, model)
    return replace(
        graph,
        edge_index=seen.edge_index,
        edge_vectors=seen.edge_vectors,
        cell_offsets=seen.cell_offsets,
    )


def _forces(model: HostModel, graph: AtomGraph, positions: Any) -> Any:
    """``(P, N, 3)``, eV/Å, at positions ``(P, N, 3)``."""
    points = [graph.with_positions(torch.from_numpy(p).to(graph.positions)) for p in positions]
    out = model(joined(points))
    if "forces" not in out:
        raise ValueError("the model predicts no forces; give a checkpoint trained for S2EF")
    return out["forces"].detach().view(positions.shape).double().numpy()


class _One:
    """One record of a dataset as a dataset."""

    def __init__(self, dataset: Any, index: int) -> None:
        self.dataset, self.index = dataset, index

    def __len__(self) -> int:
        return 1

    def __getitem__(self, place: int) -> Any:
        return self.dataset[self.index]


def atoms_of(record: Any) -> Atoms:
    """A record as ASE knows it, its fixed atoms constrained."""
    return Atoms(
        numbers=record.atomic_numbers.long().numpy(),
        positions=record.pos.double().numpy(),
        cell=record.cell.view(3, 3).double().numpy(),
        tags=record.tags.numpy(),
        pbc=True,
        constraint=FixAtoms(mask=(record.fixed == 1).numpy()),
    )


def trajectory(
    atoms: Atoms, calculator: Calculator, settings: ProbeSettings, generator: np.random.Generator
) -> tuple[Any, Any]:
    """Times (ps) and total energies (eV) of an NVE run by velocity Verlet."""
    atoms.calc = calculator
    MaxwellBoltzmannDistribution(atoms, temperature_K=settings.temperature, rng=generator)
    energies = [atoms.get_total_energy()]
    dynamics = VelocityVerlet(atoms, timestep=settings.timestep * units.fs)
    for _ in range(settings.steps):
        dynamics.run(1)
        energies.append(atoms.get_total_energy())
    return 1e-3 * settings.timestep * np.arange(len(energies)), np.array(energies)
