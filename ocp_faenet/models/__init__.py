"""FAENet on a bare PyTorch."""

from ocp_faenet.models.backbone import Embedding, FAENetBackbone
from ocp_faenet.models.config import FAENetConfig
from ocp_faenet.models.faenet import EnergyHead, FAENetCore, ForceHead
from ocp_faenet.models.graph import AtomGraph

__all__ = [
    "AtomGraph",
    "Embedding",
    "EnergyHead",
    "FAENetBackbone",
    "FAENetConfig",
    "FAENetCore",
    "ForceHead",
]
