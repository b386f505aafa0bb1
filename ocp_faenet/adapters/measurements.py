"""What a study may measure of a trained checkpoint, beyond the host's metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ocp_faenet.adapters.conservation_probe import conservation_of
from ocp_faenet.adapters.dense_residual import Runs, adsorbates_of, dense_difference, mapping_of
from ocp_faenet.adapters.dense_saving import relaxed_split_of, saving_of
from ocp_faenet.adapters.dense_study import dense_of, dense_references
from ocp_faenet.adapters.depth import last_layer_diversity, layers_diversity
from ocp_faenet.adapters.runs import RunSpec, read_json, write_json
from ocp_faenet.adapters.symmetry_measurements import frames_of, symmetry_of
from ocp_faenet.data.digests import file_digest
from ocp_faenet.metrics.bootstrap import Estimate

#: Looks at a finished run: its spec and its result (``checkpoint`` holds the path of the
#: weights). Returns numbers by the name that the table gives them, units included.
Measurement = Callable[[RunSpec, Mapping[str, Any]], dict[str, float]]

#: By the name that study files use. Raise the second when what it returns changes meaning.
MEASUREMENTS: dict[str, tuple[Measurement, int]] = {
    "conservation": (conservation_of, 2),
    "symmetry": (symmetry_of, 2),
    "frames": (frames_of, 2),
    "mad": (last_layer_diversity, 1),
    "layers": (layers_diversity, 1),
    "dense": (dense_of, 1),
    "adsorbates": (adsorbates_of, 2),
    "saving": (saving_of, 1),
}

#: The file that some read beside the run's own data, which its folder's name does not tell of.
SOURCES: dict[str, Callable[[RunSpec], Path]] = {
    "adsorbates": mapping_of,
    "saving": relaxed_split_of,
}

#: Rows that need no run, of measurements that have some: ``label``, ``splits`` and ``measured``.
REFERENCES: dict[str, Callable[[RunSpec], list[dict[str, Any]]]] = {"dense": dense_references}

#: What sets two rows apart, of measurements that can say so system by system.
DIFFERENCES: dict[str, Callable[[Runs, Runs], dict[str, Estimate]]] = {"dense": dense_difference}


def measure(name: str, spec: RunSpec, result: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """What ``name`` says of a run, from its folder if it was measured before on the same data.

    Raises:
        ValueError: no such measurement.
    """
    if name not in MEASUREMENTS:
        raise ValueError(f"measurements: no {name!r}, only {', '.join(MEASUREMENTS) or 'none'}")
    measurement, version = MEASUREMENTS[name]
    data = f"_{file_digest(SOURCES[name](spec))[:12]}" if name in SOURCES else ""
    path = folder / f"measured_{name}_{version}{data}.json"
    found = read_json(path)
    if found is None:
        found = measurement(spec, result)
        write_json(path, found)
    return found
