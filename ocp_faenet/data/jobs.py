"""Units of work of a data set, and their results.

A job is a pure function of the seed, the preset and its own place; its result is plain arrays and
numbers. Each record has its own random stream, so results do not depend on how jobs are cut,
ordered or shared out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from ocp_faenet.data.anomalies import Outcome
from ocp_faenet.data.emt import EmtPotential
from ocp_faenet.data.presets import PRESETS, Preset
from ocp_faenet.data.records import Arrays, pack_edges
from ocp_faenet.data.simulate import (
    Relaxed,
    draw_system,
    heuristic_placement,
    random_placement,
    rattle,
    relax_placement,
    round32,
)
from ocp_faenet.data.systems import Split

_SPLITS = tuple(Split)
_DENSE_STREAM = 1000
_PLACEMENTS = 25  # tried on a system before another is drawn
_DENSE_VALID = (Outcome.VALID, Outcome.MIGRATED)
_SID_BLOCK = 10_000_000
CHUNK = 8  # records of one job


@dataclass(frozen=True)
class Job:
    """`count` records of a split from `start` on, or one dense system (`split` is its kind)."""

    preset: str
    seed: int
    split: Split
    start: int
    count: int
    dense: bool = False

    @property
    def name(self) -> str:
        """File name of its cached result."""
        return f"{'dense' if self.dense else 'relax'}_{self.split.value}_{self.start:06d}"


@dataclass(frozen=True)
class Result:
    """Records of a job and what became of the relaxations behind them."""

    is2re: list[Arrays]
    s2ef: list[Arrays]
    mapping: list[dict[str, Any]]  # one entry for each is2re record
    outcomes: dict[str, int]
    system: dict[str, Any]  # dense only: tags, reference energy, targets, compute


def plan(preset: Preset, seed: int) -> list[Job]:
    """All jobs of a data set, in the order of its files."""
    jobs = []
    for split in Split:
        total = preset.relaxations(split)
        for start in range(0, total, CHUNK):
            jobs.append(Job(preset.name, seed, split, start, min(CHUNK, total - start)))
    for split in _SPLITS[1:]:
        jobs += [
            Job(preset.name, seed, split, k, preset.dense_configs, dense=True)
            for k in range(preset.dense_systems)
        ]
    return jobs


def run_job(job: Job) -> Result:
    """Compute a job."""
    return _dense_job(job) if job.dense else _relax_job(job)


def _generator(job: Job, index: int) -> np.random.Generator:
    stream = _SPLITS.index(job.split) + (_DENSE_STREAM if job.dense else 0)
    return np.random.default_rng([job.seed, stream, index])


def _relax_job(job: Job) -> Result:
    preset = PRESETS[job.preset]
    outcomes: Counter[str] = Counter()
    result = Result([], [], [], outcomes, {})
    for index in range(job.start, job.start + job.count):
        rng = _generator(job, index)
        relaxed = _valid_relaxation(rng, job.split, outcomes)
        sid = (1 + _SPLITS.index(job.split)) * _SID_BLOCK + index
        result.is2re.append(_is2re_arrays(relaxed, sid))
        result.mapping.append(_oc20_mapping(relaxed))
        frames = _frames(rng, relaxed, preset.frames(job.split), preset.rattled)
        result.s2ef.extend(_s2ef_arrays(relaxed, sid, frames))
    return result


def _valid_relaxation(
    rng: np.random.Generator, split: Split, outcomes: Counter[str]
) -> Relaxed:
    while True:
        system = draw_system(rng, split)
        for _ in range(_PLACEMENTS):
            relaxed = relax_placement(system, heuristic_placement(rng, system))
            outcomes[relaxed.outcome.value] += 1
            if relaxed.outcome is Outcome.VALID:
                return relaxed


def _common(relaxed: Relaxed, positions: np.ndarray, sid: int) -> Arrays:
    return {
        "pos": positions.astype(np.float32),
        "cell": relaxed.cell.astype(np.float32),
        "atomic_numbers": relaxed.numbers.astype(np.uint8),
        "tags": relaxed.tags.astype(np.uint8),
        "fixed": (relaxed.tags == 0).astype(np.uint8),
        "sid": sid,
        **pack_edges(positions, relaxed.cell),
    }


def _is2re_arrays(relaxed: Relaxed, sid: int) -> Arrays:
    return {
        **_common(relaxed, relaxed.frames[0], sid),
        "pos_relaxed": relaxed.frames[-1].astype(np.float32),
        "y_init": relaxed.y_init,
        "y_relaxed": relaxed.y_relaxed,
        "force": relaxed.force_init.astype(np.float32),
    }


#: `fid` of rattled frames start here, those of a trajectory are step numbers.
RATTLED_FID = 10_000


def _frames(
    rng: np.random.Generator, relaxed: Relaxed, along: int, rattled: int
) -> list[tuple[int, np.ndarray]]:
    """(fid, positions): evenly spread steps of the trajectory, then rattled ones."""
    steps = sorted({round(s) for s in np.linspace(0, relaxed.steps, along)})
    frames = [(step, round32(relaxed.frames[step])) for step in steps]
    for k in range(rattled):
        origin = relaxed.frames[int(rng.integers(len(relaxed.frames)))]
        frames.append((RATTLED_FID + k, rattle(rng, origin, relaxed.tags > 0)))
    return frames


def _s2ef_arrays(
    relaxed: Relaxed, sid: int, frames: list[tuple[int, np.ndarray]]
) -> list[Arrays]:
    potential = EmtPotential(relaxed.numbers, relaxed.cell)
    records = []
    for fid, positions in frames:
        label = potential(positions)
        records.append(
            {
                **_common(relaxed, positions, sid),
                "y": label.energy - relaxed.reference,
                "force": label.forces.astype(np.float32),
                "fid": fid,
            }
        )
    return records


def _oc20_mapping(relaxed: Relaxed) -> dict[str, Any]:
    """An entry as in `oc20_data_mapping.pkl`."""
    surface = relaxed.system.surface
    return {
        "bulk_mpid": surface.catalyst.bulk_id,
        "bulk_symbols": surface.catalyst.name,
        "ads_symbols": f"*{relaxed.system.adsorbate.name}",
        "miller_index": surface.termination.miller,
        "shift": 0.0,
        "top": True,
        "adsorption_site": (tuple(float(x) for x in relaxed.site),),
        "ref_energy": relaxed.reference,
        "steps": relaxed.steps,
    }


def _dense_job(job: Job) -> Result:
    rng = _generator(job, job.start)
    kind = _SPLITS.index(job.split)
    while True:
        system = draw_system(rng, job.split)
        placements = []
        for k in range(job.count):
            heuristic = k < job.count // 2
            draw = heuristic_placement if heuristic else random_placement
            config = f"heur{k}" if heuristic else f"rand{k - job.count // 2}"
            placements.append((config, relax_placement(system, draw(rng, system))))
        valid = [r for _, r in placements if r.outcome in _DENSE_VALID]
        if len(valid) >= max(3, job.count // 4):
            return _dense_result(job, kind, placements)


def _dense_result(job: Job, kind: int, placements: list[tuple[str, Relaxed]]) -> Result:
    outcomes = Counter(r.outcome.value for _, r in placements)
    first = placements[0][1]
    system_id = f"{kind}_{job.start}"
    targets = [(c, r.y_relaxed) for c, r in placements if r.outcome in _DENSE_VALID]
    system = {
        "system_id": system_id,
        "targets": targets,
        "ref_energy": first.reference,
        "tags": first.tags.astype(np.int64),
        "compute": {c: {"ionic": r.steps + 1, "scf": r.steps + 1} for c, r in placements},
    }
    result = Result([], [], [], dict(outcomes), system)
    for k, (config, relaxed) in enumerate(placements):
        sid = (10 + kind) * _SID_BLOCK + job.start * 1000 + k
        result.is2re.append(_common(relaxed, relaxed.frames[0], sid))
        surface = relaxed.system.surface
        result.mapping.append(
            {
                "system_id": system_id,
                "config_id": config,
                "mpid": surface.catalyst.bulk_id,
                "miller_idx": surface.termination.miller,
                "shift": 0.0,
                "top": True,
                "adsorbate": f"*{relaxed.system.adsorbate.name}",
                "adsorption_site": (tuple(float(x) for x in relaxed.site),),
            }
        )
    return result
