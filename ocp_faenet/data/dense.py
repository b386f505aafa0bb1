"""The dense set: many placements of one adsorbate on one surface, in OC20-Dense's formats.

After Lan et al., npj Comput. Mater. 9, 172 (2023). Half of the placements are heuristic (`heur0`,
`heur1`, ...), half are random in place and orientation (`rand0`, ...). Systems on which most
placements end alike are passed over: where any choice is right, nothing can be said about choosing.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from ocp_faenet.data.anomalies import Outcome
from ocp_faenet.data.jobs import SPLITS, Job, Result, site_of, structure
from ocp_faenet.data.simulate import (
    Relaxed,
    draw_adsorbate,
    draw_system,
    heuristic_placement,
    random_placement,
    relax_placement,
)

_TARGETS = (Outcome.VALID, Outcome.MIGRATED)
_PILOT = 8  # placements after which a dull system is given up
_ALIKE = 0.1  # eV, the margin of success in OC20-Dense's scores
_LARGEST_SHARE = 0.5
_SID_BLOCK = 10_000_000

Placements = list[tuple[str, Relaxed]]


def run_dense_job(job: Job) -> Result:
    """Relax every placement of one system; dull systems are drawn anew, most after a pilot."""
    rng = job.generator(job.start)
    n_heuristic = job.count // 2
    while True:
        system = draw_system(rng, job.split, draw_adsorbate(rng, job.split))
        placements: Placements = []
        for k in range(job.count):
            if k == _PILOT and _is_dull(placements):
                break
            if k < n_heuristic:
                config, placed = f"heur{k}", heuristic_placement(rng, system)
            else:
                config, placed = f"rand{k - n_heuristic}", random_placement(rng, system)
            placements.append((config, relax_placement(system, placed)))
        if len(placements) == job.count and not _is_dull(placements):
            return _result(job, placements)


def _is_dull(placements: Placements) -> bool:
    """Few valid placements, or most of them within 0.1 eV of the best."""
    energies = np.array([energy for _, energy in _targets(placements)])
    if len(energies) < max(3, len(placements) // 4):
        return True
    return bool((energies < energies.min() + _ALIKE).mean() > _LARGEST_SHARE)


def _targets(placements: Placements) -> list[tuple[str, float]]:
    return [(config, r.y_relaxed) for config, r in placements if r.outcome in _TARGETS]


def _result(job: Job, placements: Placements) -> Result:
    first = placements[0][1]
    kind = SPLITS.index(job.split)
    system: dict[str, Any] = {
        "system_id": f"{kind}_{job.start}",
        "targets": _targets(placements),
        "ref_energy": first.reference,
        "tags": first.tags.astype(np.int64),
        "compute": {c: {"ionic": r.steps + 1, "scf": r.steps + 1} for c, r in placements},
    }
    outcomes = Counter(r.outcome.value for _, r in placements)
    result = Result([], [], [], outcomes, system)
    for k, (config, relaxed) in enumerate(placements):
        sid = (10 + kind) * _SID_BLOCK + job.start * 1000 + k
        result.is2re.append(structure(relaxed, relaxed.frames[0], sid))
        result.mapping.append(_mapping(system["system_id"], config, relaxed))
    return result


def _mapping(system_id: str, config: str, relaxed: Relaxed) -> dict[str, Any]:
    surface = relaxed.system.surface
    return {
        "system_id": system_id,
        "config_id": config,
        "mpid": surface.catalyst.bulk_id,
        "miller_idx": surface.termination.miller,
        "shift": 0.0,
        "top": True,
        "adsorbate": f"*{relaxed.system.adsorbate.name}",
        "adsorption_site": site_of(relaxed),
    }


def dense_tables(systems: list[Result]) -> dict[str, dict[Any, Any]]:
    """OC20-Dense's dictionaries, by the middle part of their file names.

    `mapping`: sid to `system_id`, `config_id`, `mpid`, `miller_idx`, `shift`, `top`, `adsorbate`,
    `adsorption_site`; `targets`: system_id to [(config_id, adsorption energy in eV), ...] of the
    placements whose relaxation is valid; `ref_energies`: system_id to the energy of relaxed clean
    slab and gas reference in eV; `tags`: system_id to (N,); `compute`: system_id to config_id to
    its number of steps, `ionic` and `scf` (EMT has no self-consistency: one for each).
    """
    tables: dict[str, dict[Any, Any]] = {
        "mapping": {
            record["sid"]: entry
            for result in systems
            for record, entry in zip(result.is2re, result.mapping, strict=True)
        }
    }
    keys = {"targets": "targets", "ref_energies": "ref_energy", "tags": "tags"}
    for name, key in {**keys, "compute": "compute"}.items():
        tables[name] = {r.system["system_id"]: r.system[key] for r in systems}
    return tables
