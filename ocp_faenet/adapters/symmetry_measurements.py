"""What a study measures of a checkpoint's symmetry and frames, on its first validation split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ocp_faenet.adapters.host_model import HostModel, as_seen, batches, open_model, open_records
from ocp_faenet.adapters.runs import RunSpec
from ocp_faenet.geometry.rotations import random_rotations_about_z
from ocp_faenet.metrics.symmetry import SymmetryTable, symmetry_errors
from ocp_faenet.models import transforms
from ocp_faenet.models.config import FrameAveraging
from ocp_faenet.models.frame_quality import frame_quality
from ocp_faenet.models.graph import AtomGraph
from ocp_faenet.models.symmetries import Symmetry

#: Structures that are looked at, from the first on, and how many at a time.
LIMIT, BATCH = 200, 25
#: What the table calls the mean change of the energy.
COLUMNS = {
    Symmetry.ROTATION_Z: "rotation about z (meV)",
    Symmetry.REFLECTION_Z: "reflection (meV)",
    Symmetry.IMAGE: "translate and wrap (meV)",
}
#: Å: farthest translation along each axis.
FARTHEST = 10.0
FRAMED = (FrameAveraging.PLANE, FrameAveraging.SPACE)


def symmetry_of(spec: RunSpec, result: Mapping[str, Any]) -> dict[str, float]:
    """Mean changes of the energy, meV, and the MAE, eV, on structures in another pose and image.

    Double precision; the same random changes for every checkpoint. A structure is *moved* when it
    is turned about z, translated and wrapped, all at random.
    """
    model, records = _open(spec, result)
    generator = torch.Generator().manual_seed(0)
    table = SymmetryTable()
    off: list[float] = []
    for graph, ids in batches(records, model, BATCH, LIMIT):
        table.add(symmetry_errors(model, graph, COLUMNS, generator=generator), ids)
        found = model(_moved(graph, generator))["energy"].flatten().tolist()
        off += [abs(energy - _label(records[len(off) + k])) for k, energy in enumerate(found)]
    scores = {COLUMNS[kind]: score.mean for kind, score in table.energy().items()}
    return {**scores, f"{next(iter(spec.splits))} moved MAE (eV)": sum(off) / len(off)}


def frames_of(spec: RunSpec, result: Mapping[str, Any]) -> dict[str, float]:
    """Shares of structures in %: axes that second moments leave open, signs that third moments
    do, and frames that nothing decides, so that `det` averages over several.

    Nothing for a model without frames.
    """
    model, records = _open(spec, result)
    if model.config is None or model.config.frame_averaging not in FRAMED:
        return {}
    parts = [
        frame_quality(as_seen(graph, model), model.config)
        for graph, _ in batches(records, model, BATCH, LIMIT)
    ]
    equal = torch.cat([part.equal_eigenvalues for part in parts])
    sign = torch.cat([part.ambiguous_sign for part in parts])
    several = torch.cat([part.frames for part in parts]) > 1
    return {
        "equal axes (%)": 100 * float(equal.double().mean()),
        "open sign (%)": 100 * float(sign.double().mean()),
        "several frames (%)": 100 * float(several.double().mean()),
    }


def _open(spec: RunSpec, result: Mapping[str, Any]) -> tuple[HostModel, Any]:
    model = open_model(Path(result["checkpoint"]), double=True)
    return model, open_records(Path(next(iter(spec.splits.values()))), model)


def _moved(graph: AtomGraph, generator: torch.Generator) -> AtomGraph:
    """Every structure turned about z, translated and wrapped, at random."""
    options: dict[str, Any] = {"dtype": torch.float64, "generator": generator}
    turned = transforms.turned(graph, random_rotations_about_z(graph.num_graphs, **options))
    by = (2 * torch.rand(graph.num_graphs, 3, **options) - 1) * FARTHEST
    return transforms.translated(turned, by)


def _label(record: Any) -> float:
    """The label, eV: of the relaxed structure for IS2RE, of this one for S2EF."""
    return float(record["y_relaxed"] if "y_relaxed" in record else record["y"])
