"""The choices of a FAENet's configuration, each with its published names."""

from __future__ import annotations

from enum import Enum


class MPType(str, Enum):
    """Form of message passing."""

    BASE = "base"
    SIMPLE = "simple"
    UPDOWNSCALE = "updownscale"
    UPDOWNSCALE_BASE = "updownscale_base"
    UPDOWN_LOCAL_ENV = "updown_local_env"


class SkipConnection(str, Enum):
    """How the layers' outputs reach the energy."""

    ADD = "add"
    CONCAT = "concat"
    CONCAT_ATOM = "concat_atom"


class EnergyHeadType(str, Enum):
    """Embeddings from which the atoms' weights in the energy are learned."""

    INITIAL = "weighted-av-initial-embeds"
    FINAL = "weighted-av-final-embeds"


class NormScope(str, Enum):
    """Over what graph norm takes its statistics."""

    GRAPH = "graph"
    BATCH = "batch"


class ForceMode(str, Enum):
    """How forces are predicted."""

    DIRECT = "direct"
    FROM_ENERGY = "from_energy"
    DIRECT_WITH_GRADIENT_TARGET = "direct_with_gradient_target"


class DecoderType(str, Enum):
    """Form of the force decoder."""

    SIMPLE = "simple"
    MLP = "mlp"
    RES = "res"
    RES_UPDOWN = "res_updown"


class DecoderNorm(str, Enum):
    """Normalisation inside the force decoder."""

    BATCH = "batch1d"
    LAYER = "layer"


class FrameAveraging(str, Enum):
    """Space of the frames: in the plane of the slab, full, or random rotations instead."""

    PLANE = "2D"
    SPACE = "3D"
    DATA_AUGMENTATION = "DA"


class FAMethod(str, Enum):
    """Which frames are used; ``se3-`` forms keep proper rotations only."""

    ALL = "all"
    STOCHASTIC = "stochastic"
    DET = "det"
    SE3_ALL = "se3-all"
    SE3_STOCHASTIC = "se3-stochastic"
    SE3_DET = "se3-det"
    LEARNED = "learned"
    SE3_LEARNED = "se3-learned"

    @property
    def is_learned(self) -> bool:
        """Whether a network chooses the frame."""
        return self in (FAMethod.LEARNED, FAMethod.SE3_LEARNED)

    @property
    def is_proper(self) -> bool:
        """Whether frames are rotations only."""
        return self.value.startswith("se3")


class Subgroup(str, Enum):
    """What a learned canonicalisation leaves to an average over frames."""

    REFLECTION = "reflection"
    SIGNS = "signs"


class FrameSource(str, Enum):
    """What frames are read from; all but ``positions`` are blind to the periodic image."""

    POSITIONS = "positions"
    EDGES = "edges"
    LATTICE = "lattice"


class GraphRewiring(str, Enum):
    """Which atoms the network does not see."""

    REMOVE_TAG_0 = "remove-tag-0"


class Augmentation(str, Enum):
    """Group of the random rotations of ``frame_averaging: DA``."""

    PLANE = "2D"
    SPACE = "3D"
