"""The dense set, in the file formats of OC20-Dense (Lan et al. 2023).

`data.lmdb` holds every placement, without energies, as OC20-Dense has it; `oc20dense_targets.pkl`
names those whose relaxation is valid.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ocp_faenet.data.jobs import Result
from ocp_faenet.data.records import Arrays


def write_dense(
    folder: Path,
    systems: list[Result],
    write_records: Callable[[Path, Iterator[Arrays]], int],
) -> int:
    """Write `data.lmdb`, `metadata.npz` and the five pickles.

    Returns:
        The number of placements.
    """
    count = write_records(folder, (record for result in systems for record in result.is2re))
    for name, content in dense_tables(systems).items():
        path = folder / f"oc20dense_{name}.pkl"
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_bytes(pickle.dumps(content, protocol=4))
        os.replace(temporary, path)
    return count


def dense_tables(systems: list[Result]) -> dict[str, dict[Any, Any]]:
    """OC20-Dense's dictionaries.

    mapping: sid to system_id, config_id, mpid, miller_idx, shift, top, adsorbate, adsorption_site;
    targets: system_id to [(config_id, adsorption energy in eV), ...] of the valid placements;
    ref_energies: system_id to the energy of relaxed clean slab and gas reference, in eV;
    tags: system_id to (N,); compute: system_id to config_id to steps, `ionic` and `scf` (EMT has
    no self-consistency: one each).
    """
    mapping = {
        record["sid"]: entry
        for result in systems
        for record, entry in zip(result.is2re, result.mapping, strict=True)
    }
    tables: dict[str, dict[Any, Any]] = {"mapping": mapping}
    for name, key in (
        ("targets", "targets"),
        ("ref_energies", "ref_energy"),
        ("tags", "tags"),
        ("compute", "compute"),
    ):
        tables[name] = {r.system["system_id"]: r.system[key] for r in systems}
    return tables
