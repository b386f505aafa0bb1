"""FAENet for fairchem-core 1.10.

Importing this package loads nothing. Touching a public name registers the whole plugin: models
``faenet``, ``faenet_backbone``, ``faenet_energy_head``, ``faenet_force_head``,
``faenet_denoising_head``, ``faenet_positions_head``, ``faenet_baseline``, trainer ``faenet``,
transforms ``frame_averaging``, ``graph_rewiring``, ``noisy_nodes``, ``denoising`` and
``relaxed_positions``, losses ``noisy_nodes``, ``denoising``, ``species_cross_entropy`` and
``energy_conservation``. A dotted name in a configuration (``model.name: ocp_faenet.FAENet``)
does so in any process.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

__all__ = [
    "Baseline",
    "CheckedLmdbDataset",
    "DenoisingLoss",
    "FAENet",
    "FAENetBackbone",
    "FAENetDenoisingHead",
    "FAENetEnergyHead",
    "FAENetForceHead",
    "FAENetPositionsHead",
    "FAENetTrainer",
    "NoisyNodesLoss",
    "SpeciesLoss",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version(__name__)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("ocp_faenet.adapters.plugin").PUBLIC[name]


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
