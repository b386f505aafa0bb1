"""Everything the host should know of us, registered by importing this module."""

from __future__ import annotations

from fairchem.core.modules import transforms as host_transforms
from fairchem.core.trainers import ocp_trainer as host_trainer

from ocp_faenet.adapters.baseline import Baseline
from ocp_faenet.adapters.datasets import CheckedLmdbDataset
from ocp_faenet.adapters.denoising import (
    DenoisingLoss,
    FAENetDenoisingHead,
    NoisyNodesLoss,
    SpeciesLoss,
)
from ocp_faenet.adapters.frames import frame_averaging
from ocp_faenet.adapters.hydra import FAENetBackbone, FAENetEnergyHead, FAENetForceHead
from ocp_faenet.adapters.model import FAENet
from ocp_faenet.adapters.noise import denoising, noisy_nodes
from ocp_faenet.adapters.positions import FAENetPositionsHead, relaxed_positions
from ocp_faenet.adapters.relaxation import never, resumable_relax
from ocp_faenet.adapters.rewiring import graph_rewiring
from ocp_faenet.adapters.trainer import FAENetTrainer

#: What ``ocp_faenet`` exports; the decorators on the classes have registered the short names.
PUBLIC = {
    item.__name__: item
    for item in (
        FAENet,
        FAENetBackbone,
        FAENetEnergyHead,
        FAENetForceHead,
        FAENetDenoisingHead,
        FAENetPositionsHead,
        Baseline,
        NoisyNodesLoss,
        DenoisingLoss,
        SpeciesLoss,
        FAENetTrainer,
        CheckedLmdbDataset,
    )
}
#: Loader transforms: the host finds one by its name among the globals of its own module.
TRANSFORMS = {
    "frame_averaging": frame_averaging,
    "graph_rewiring": graph_rewiring,
    "noisy_nodes": noisy_nodes,
    "denoising": denoising,
    "relaxed_positions": relaxed_positions,
}

for _name, _transform in TRANSFORMS.items():
    setattr(host_transforms, _name, _transform)

#: The host's relaxations resume and see the edges of the moment; see `adapters.relaxation`.
host_trainer.check_traj_files = never
host_trainer.ml_relax = resumable_relax
