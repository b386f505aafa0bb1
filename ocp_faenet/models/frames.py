"""Which frame provider goes with which configuration."""

from __future__ import annotations

from ocp_faenet.models.config import FAENetConfig, FAMethod, FrameAveraging
from ocp_faenet.models.frame_provider import FrameProvider, Frames, IdentityFrames, RandomFrames
from ocp_faenet.models.learned_frames import LearnedFrames
from ocp_faenet.models.principal_frames import (
    AllFrames,
    DeterministicFrame,
    PrincipalFrames,
    StochasticFrame,
)

__all__ = ["METHODS", "FrameProvider", "Frames", "frame_providers"]

#: Method -> provider and whether it keeps proper rotations only.
METHODS: dict[FAMethod, tuple[type[PrincipalFrames], bool]] = {
    FAMethod.ALL: (AllFrames, False),
    FAMethod.STOCHASTIC: (StochasticFrame, False),
    FAMethod.DET: (DeterministicFrame, False),
    FAMethod.SE3_ALL: (AllFrames, True),
    FAMethod.SE3_STOCHASTIC: (StochasticFrame, True),
    FAMethod.SE3_DET: (DeterministicFrame, True),
}

#: Evaluation that goes with a training method where none is asked for.
DEFAULT_EVAL: dict[FAMethod, FAMethod] = {
    FAMethod.ALL: FAMethod.ALL,
    FAMethod.STOCHASTIC: FAMethod.DET,
    FAMethod.DET: FAMethod.DET,
    FAMethod.SE3_ALL: FAMethod.SE3_ALL,
    FAMethod.SE3_STOCHASTIC: FAMethod.SE3_DET,
    FAMethod.SE3_DET: FAMethod.SE3_DET,
    FAMethod.LEARNED: FAMethod.LEARNED,
    FAMethod.SE3_LEARNED: FAMethod.SE3_LEARNED,
}


def frame_providers(config: FAENetConfig) -> tuple[FrameProvider, FrameProvider]:
    """The providers for training and for evaluation that ``config`` asks for.

    Evaluation is deterministic by default: ``det`` for ``stochastic``, the method itself
    otherwise; ``DA`` evaluates the pose as given. Learned frames are one provider for both.
    """
    if config.frame_averaging is None:
        return IdentityFrames(), IdentityFrames()
    if config.frame_averaging is FrameAveraging.DATA_AUGMENTATION:
        return RandomFrames(config.augmentation), IdentityFrames()
    train = config.fa_method or FAMethod.STOCHASTIC
    if train.is_learned:
        learned = LearnedFrames(config, proper=train.is_proper)
        return learned, learned
    evaluation = config.eval_fa_method or DEFAULT_EVAL[train]
    providers = []
    for method, exact in ((train, False), (evaluation, True)):
        provider, proper = METHODS[method]
        providers.append(provider(config, proper=proper, exact=exact))
    return providers[0], providers[1]
