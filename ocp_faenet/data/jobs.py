"""Units of work of a data set.

A job is a pure function of the seed, the preset and its own place; its result is plain arrays and
numbers. Each record has its own random stream, so results do not depend on how jobs are cut,
ordered or shared out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ocp_faenet.data.edges import Arrays, pack_edges
from ocp_faenet.data.pairs import Floats
from ocp_faenet.data.presets import Preset
from ocp_faenet.data.simulate import Relaxed
from ocp_faenet.data.systems import Split

SPLITS = tuple(Split)
DENSE_SPLITS = SPLITS[1:]  # dense systems come in the four kinds of the validation splits
CHUNK = 8  # records of one job
_DENSE_STREAM = 1000


@dataclass(frozen=True)
class Job:
    """`count` records of a split from `start` on, or dense system `start` of the split's kind."""

    preset: Preset
    seed: int
    split: Split
    start: int
    count: int
    dense: bool = False

    @property
    def name(self) -> str:
        """File name of its cached result."""
        return f"{'dense' if self.dense else 'relax'}_{self.split.value}_{self.start:06d}"

    def generator(self, index: int) -> np.random.Generator:
        """The random stream of one record or dense system."""
        stream = SPLITS.index(self.split) + (_DENSE_STREAM if self.dense else 0)
        return np.random.default_rng([self.seed, stream, index])


@dataclass(frozen=True)
class Result:
    """Records of a job and what became of the relaxations behind them.

    Attributes:
        is2re, s2ef: structures in the order of their files.
        mapping: what the mapping file says of each IS2RE record.
        outcomes: relaxations by outcome.
        system: of a dense system: `system_id`, `targets`, `ref_energy`, `tags`, `compute`.
    """

    is2re: list[Arrays]
    s2ef: list[Arrays]
    mapping: list[dict[str, Any]]
    outcomes: dict[str, int]
    system: dict[str, Any]


def plan(preset: Preset, seed: int) -> list[Job]:
    """All jobs of a data set, in the order of its files."""
    jobs = []
    for split in SPLITS:
        total = preset.relaxations(split)
        for start in range(0, total, CHUNK):
            jobs.append(Job(preset, seed, split, start, min(CHUNK, total - start)))
    for split in DENSE_SPLITS:
        jobs += [
            Job(preset, seed, split, k, preset.dense_configs, dense=True)
            for k in range(preset.dense_systems)
        ]
    return jobs


def structure(relaxed: Relaxed, positions: Floats, sid: int) -> Arrays:
    """What every record of a system holds, at `positions` (N, 3) in Å (float32-exact)."""
    return {
        "pos": positions.astype(np.float32),
        "cell": relaxed.cell.astype(np.float32),
        "atomic_numbers": relaxed.numbers.astype(np.uint8),
        "tags": relaxed.tags.astype(np.uint8),
        "fixed": (relaxed.tags == 0).astype(np.uint8),
        "sid": sid,
        **pack_edges(positions, relaxed.cell),
    }


def site_of(relaxed: Relaxed) -> tuple[tuple[float, ...], ...]:
    """`adsorption_site` of the mapping files: where the binding atom was put down, in Å."""
    return (tuple(float(x) for x in relaxed.site),)
