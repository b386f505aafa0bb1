"""Relaxation steps a second: models as ASE calculators under one optimiser, in turn.

The weights are random and the path is meaningless: what is timed is a step, that is the neighbour
search, the model's energy and forces, and the optimiser's own work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixAtoms
from ase.optimize import FIRE
from fairchem.core.datasets import data_list_collater
from fairchem.core.preprocessing import AtomsToGraphs

from ocp_faenet.adapters.model import FAENet
from ocp_faenet.adapters.peers import host_model
from ocp_faenet.models.graph import AtomGraph
from ocp_faenet.models.published import S2EF
from ocp_faenet.models.timing import Timing, one_line, synchronise

#: FAENet as published for S2EF, beside the host's models as trained there.
PEERS = ("SchNet", "PaiNN")
NAME = "FAENet S2EF, det"
#: A step moves no atom further than this, Å: a slab driven by random weights stays a slab.
MAX_STEP = 0.01


class ModelCalculator(Calculator):
    """A host model that finds its own neighbours, as an ASE calculator."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 (ASE declares a list)

    def __init__(self, module: torch.nn.Module, device: torch.device) -> None:
        super().__init__()
        self.module = module.to(device).eval()
        self.device = device
        self.to_graph = AtomsToGraphs(r_edges=False, r_pbc=True)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: tuple[str, ...] = ("energy", "forces"),
        system_changes: Any = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        batch = data_list_collater([self.to_graph.convert(self.atoms)], otf_graph=True)
        with torch.no_grad():
            out = self.module(batch.to(self.device))
        self.results = {
            "energy": float(out["energy"]),
            "forces": out["forces"].detach().double().cpu().numpy(),
        }


def to_atoms(graph: AtomGraph) -> Atoms:
    """The only structure of ``graph``, subsurface atoms fixed."""
    if graph.num_graphs != 1 or graph.cell is None or graph.tags is None:
        raise ValueError(f"relaxations take one periodic, tagged structure; {graph.num_graphs}")
    tags = graph.tags.cpu().numpy()
    return Atoms(
        numbers=graph.atomic_numbers.cpu().numpy(), positions=graph.positions.cpu().numpy(),
        cell=graph.cell[0].cpu().numpy(), pbc=True, tags=tags,
        constraint=FixAtoms(mask=tags == 0),
    )  # fmt: skip


def modules() -> dict[str, Callable[[], torch.nn.Module]]:
    """Models with forces, by name, made when called."""
    fields = {name: getattr(S2EF, name) for name in S2EF.__dataclass_fields__}
    given = {name: getattr(value, "value", value) for name, value in fields.items()}
    del given["force_decoder_model_config"], given["ewald"]
    found: dict[str, Callable[[], torch.nn.Module]] = {
        NAME: lambda: FAENet(**given | {"otf_graph": True, "eval_fa_method": "det"})
    }
    for name in PEERS:
        found[name] = partial(host_model, name, regress_forces=True, otf_graph=True)
    return found


def relaxation_steps(
    made: dict[str, torch.nn.Module],
    graph: AtomGraph,
    steps: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    warmup: int = 2,
    progress: Callable[[int], object] = lambda n: None,
) -> dict[str, Timing]:
    """Time ``steps`` optimiser steps of each model on the one structure of ``graph``, in turn."""
    device = graph.positions.device
    timings = {name: Timing() for name in made}
    runs = {
        name: _relaxation(module, to_atoms(graph), device, steps + warmup)
        for name, module in made.items()
    }
    for step in range(steps + warmup):
        for name, run in list(runs.items()):
            synchronise(device)
            start = clock()
            try:
                next(run)
            except Exception as error:  # the other models go on
                timings[name] = Timing(error=one_line(error))
                del runs[name]
                progress(steps - max(0, step - warmup))
                continue
            synchronise(device)
            if step >= warmup:
                timings[name].seconds.append(clock() - start)
                progress(1)
    return timings


def _relaxation(
    module: torch.nn.Module, atoms: Atoms, device: torch.device, steps: int
) -> Iterator[object]:
    atoms.calc = ModelCalculator(module, device)
    # Steps go on as long as any atom feels more than fmax; random weights do not end them.
    optimizer = FIRE(atoms, logfile=None, maxstep=MAX_STEP, dt=0.01)
    found: Iterator[object] = optimizer.irun(fmax=0.0, steps=steps)
    return found
