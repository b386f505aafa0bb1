"""IS2RE and S2EF records of one stretch of a split."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from ocp_faenet.data.anomalies import Outcome
from ocp_faenet.data.edges import Arrays
from ocp_faenet.data.emt import EmtPotential
from ocp_faenet.data.jobs import SPLITS, Job, Result, site_of, structure
from ocp_faenet.data.pairs import Floats
from ocp_faenet.data.simulate import (
    Relaxed,
    draw_adsorbate,
    draw_system,
    heuristic_placement,
    rattle,
    relax_placement,
    round32,
)
from ocp_faenet.data.systems import Split

#: `fid` of rattled frames start here; those of a trajectory are step numbers.
RATTLED_FID = 10_000

_MAX_FORCE = 25.0  # eV/Å, of rattled frames: float32 then holds forces to 1e-6
_PLACEMENTS = 4  # tried on a surface before another is drawn
_SID_BLOCK = 10_000_000


def run_relax_job(job: Job) -> Result:
    """Draw, place and relax until every record of the job has a valid relaxation."""
    outcomes: Counter[str] = Counter()
    result = Result([], [], [], outcomes, {})
    for index in range(job.start, job.start + job.count):
        rng = job.generator(index)
        relaxed = _valid_relaxation(rng, job.split, outcomes)
        sid = (1 + SPLITS.index(job.split)) * _SID_BLOCK + index
        result.is2re.append(_is2re(relaxed, sid))
        result.mapping.append(_mapping(relaxed))
        frames = _frames(rng, relaxed, job.preset.frames(job.split), job.preset.rattled)
        result.s2ef.extend(_s2ef(relaxed, sid, frames))
    return result


def _valid_relaxation(rng: np.random.Generator, split: Split, outcomes: Counter[str]) -> Relaxed:
    adsorbate = draw_adsorbate(rng, split)
    while True:
        system = draw_system(rng, split, adsorbate)
        for _ in range(_PLACEMENTS):
            relaxed = relax_placement(system, heuristic_placement(rng, system))
            outcomes[relaxed.outcome.value] += 1
            if relaxed.outcome is Outcome.VALID:
                return relaxed


def _is2re(relaxed: Relaxed, sid: int) -> Arrays:
    return {
        **structure(relaxed, relaxed.frames[0], sid),
        "pos_relaxed": relaxed.frames[-1].astype(np.float32),
        "y_init": relaxed.y_init,
        "y_relaxed": relaxed.y_relaxed,
        "force": relaxed.force_init.astype(np.float32),
    }


def _frames(
    rng: np.random.Generator, relaxed: Relaxed, along: int, rattled: int
) -> list[tuple[int, Floats]]:
    """(fid, positions): evenly spread steps of the trajectory, then rattled ones."""
    steps = sorted({round(s) for s in np.linspace(0, relaxed.steps, along)})
    frames = [(step, round32(relaxed.frames[step])) for step in steps]
    for k in range(rattled):
        frames.append((RATTLED_FID + k, _rattled(rng, relaxed)))
    return frames


def _rattled(rng: np.random.Generator, relaxed: Relaxed) -> Floats:
    """A random step of the trajectory with its atoms displaced, no force above the limit."""
    potential = EmtPotential(relaxed.numbers, relaxed.cell)
    while True:
        origin = relaxed.frames[int(rng.integers(len(relaxed.frames)))]
        moved = rattle(rng, origin, relaxed.tags > 0)
        if np.abs(potential(moved).forces).max() < _MAX_FORCE:
            return moved


def _s2ef(relaxed: Relaxed, sid: int, frames: list[tuple[int, Floats]]) -> list[Arrays]:
    potential = EmtPotential(relaxed.numbers, relaxed.cell)
    records = []
    for fid, positions in frames:
        label = potential(positions)
        records.append(
            {
                **structure(relaxed, positions, sid),
                "y": label.energy - relaxed.reference,
                "force": label.forces.astype(np.float32),
                "fid": fid,
            }
        )
    return records


def _mapping(relaxed: Relaxed) -> dict[str, Any]:
    """An entry as in OC20's `oc20_data_mapping.pkl`, with the reference energy in eV besides."""
    surface = relaxed.system.surface
    return {
        "bulk_mpid": surface.catalyst.bulk_id,
        "bulk_symbols": surface.catalyst.name,
        "ads_symbols": f"*{relaxed.system.adsorbate.name}",
        "miller_index": surface.termination.miller,
        "shift": 0.0,
        "top": True,
        "adsorption_site": site_of(relaxed),
        "ref_energy": relaxed.reference,
        "steps": relaxed.steps,
    }
