"""What a configured FAENet promises under each change that leaves a structure what it is.

Promises are about evaluation, with any weights. `ocp_faenet.metrics.symmetry` measures them.
"""

from __future__ import annotations

from enum import Enum

from ocp_faenet.models.config import (
    Augmentation,
    FAENetConfig,
    FAMethod,
    FrameAveraging,
    FrameSource,
    NormScope,
)
from ocp_faenet.models.ewald_config import EwaldForm
from ocp_faenet.models.frames import DEFAULT_EVAL


class Symmetry(str, Enum):
    """Changes of a batch under which energies stay and forces turn along."""

    ROTATION_Z = "rotation about z"
    ROTATION = "rotation in space"
    REFLECTION_Z = "reflection in a vertical plane"
    REFLECTION = "reflection in any plane"
    TRANSLATION = "translation"
    IMAGE = "translation and wrap"
    CELL = "other cell of the lattice"
    ORDER = "order of atoms"
    MATES = "batch-mates"


class Claim(str, Enum):
    """How far a model goes."""

    EXACT = "exact"  #: to rounding, whatever the weights
    APPROXIMATE = "approximate"  #: trained for, by frames or rotations drawn at random
    NONE = "none"  #: nothing is done about it


def declared_symmetries(config: FAENetConfig) -> dict[Symmetry, Claim]:
    """The promise of a model in evaluation, for every `Symmetry`."""
    claims = dict.fromkeys(Symmetry, Claim.EXACT)
    if config.graph_norm and config.graph_norm_scope is NormScope.BATCH:
        claims[Symmetry.MATES] = Claim.NONE
    claims |= _of_pose(config)
    framed = config.frame_averaging in (FrameAveraging.PLANE, FrameAveraging.SPACE)
    if framed and config.frame_source is FrameSource.POSITIONS:
        claims[Symmetry.IMAGE] = Claim.NONE
    if config.ewald is not None and config.ewald.form is EwaldForm.BOX:
        claims[Symmetry.CELL] = Claim.NONE  # a filter for each index of the cell as it is given
    method = _evaluation(config)
    if framed and method in (FAMethod.STOCHASTIC, FAMethod.SE3_STOCHASTIC):
        # Two predictions of the very same batch differ: nothing can be better than that.
        claims = {s: Claim.APPROXIMATE if c is Claim.EXACT else c for s, c in claims.items()}
    return claims


def _of_pose(config: FAENetConfig) -> dict[Symmetry, Claim]:
    """Rotations and reflections."""
    space = config.frame_averaging
    claims = dict.fromkeys(_POSE, Claim.NONE)
    if space is None:
        return claims
    if space is FrameAveraging.DATA_AUGMENTATION:
        claims[Symmetry.ROTATION_Z] = Claim.APPROXIMATE
        if config.augmentation is Augmentation.SPACE:
            claims[Symmetry.ROTATION] = Claim.APPROXIMATE
        return claims
    proper = _evaluation(config).is_proper
    claims[Symmetry.ROTATION_Z] = Claim.EXACT
    if space is FrameAveraging.SPACE:
        claims[Symmetry.ROTATION] = Claim.EXACT
    if not proper:
        claims[Symmetry.REFLECTION_Z] = Claim.EXACT
    if not proper and space is FrameAveraging.SPACE:
        claims[Symmetry.REFLECTION] = Claim.EXACT
    return claims


_POSE = (
    Symmetry.ROTATION_Z,
    Symmetry.ROTATION,
    Symmetry.REFLECTION_Z,
    Symmetry.REFLECTION,
)


def _evaluation(config: FAENetConfig) -> FAMethod:
    return config.eval_fa_method or DEFAULT_EVAL[config.fa_method or FAMethod.STOCHASTIC]
