"""FAENet under each frame method as a subject of `ocp_faenet.models.expressivity`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import (  # type: ignore[attr-defined]
    functional_call,
    stack_module_state,
    vmap,
)
from torch.nn import functional as F

from ocp_faenet.geometry.counterexamples import CUTOFF
from ocp_faenet.models.config import FAENetConfig, FAMethod, FrameAveraging
from ocp_faenet.models.expressive_subjects import Pose, Subject
from ocp_faenet.models.faenet import FAENetCore
from ocp_faenet.models.graph import AtomGraph
from ocp_faenet.models.principal_frames import AllFrames
from ocp_faenet.models.published import IS2RE

#: The published IS2RE configuration, small, for atoms without tags and cell.
SMALL = replace(
    IS2RE,
    cutoff=CUTOFF,
    use_pbc=False,
    hidden_channels=32,
    num_filters=32,
    num_gaussians=16,
    tag_hidden_channels=0,
    pg_hidden_channels=4,
    phys_embeds=False,
)

SPACE, PLANE = FrameAveraging.SPACE, FrameAveraging.PLANE
#: Name -> space, method, graph norm.
KINDS: dict[str, tuple[FrameAveraging | None, FAMethod | None, bool]] = {
    "FAENet, no frames": (None, None, True),
    **{f"FAENet, 3D {method.value}": (SPACE, method, True) for method in FAMethod},
    **{f"FAENet, 2D {method.value}": (PLANE, method, True) for method in FAMethod},
    "FAENet, 3D all, no graph norm": (SPACE, FAMethod.ALL, False),
}

#: Whether frames lie in the plane, and are rotations alone -> what they make no matter.
POSES = {
    (False, False): Pose.SPACE,
    (False, True): Pose.PROPER,
    (True, False): Pose.PLANE,
    (True, True): Pose.PROPER_PLANE,
}


def config_of(
    space: FrameAveraging | None, method: FAMethod | None, graph_norm: bool, layers: int
) -> FAENetConfig:
    """The small FAENet; what it draws in training it draws in evaluation."""
    return replace(
        SMALL,
        num_interactions=layers,
        graph_norm=graph_norm,
        frame_averaging=space,
        fa_method=method,
        eval_fa_method=method,
    )


def faenet_subject(
    name: str, space: FrameAveraging | None, method: FAMethod | None, graph_norm: bool
) -> Subject:
    """FAENet of one frame method."""
    random = method in (FAMethod.STOCHASTIC, FAMethod.SE3_STOCHASTIC)
    proper = method is not None and method.is_proper
    pose = POSES[space is PLANE, proper]

    def make(layers: int) -> nn.Module:
        return FAENetCore(config_of(space, method, graph_norm, layers))

    answers = _in_every_frame if random else _answers
    exact = method is not None and not random
    learned = method is not None and method.is_learned
    return Subject(name, make, _energy, answers, pose, exact, None if learned else Stacked)


class Stacked:
    """FAENets with weights of their own in the same frames, as one computation.

    Frames are made once for all; frames that are learned depend on the weights, and are not
    for this.

    Args:
        networks: at least one; all of the same configuration.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self._networks = networks
        self._weights, self._buffers = stack_module_state(list(networks))
        self.weights: list[Tensor] = list(self._weights.values())
        self._form = copy.deepcopy(networks[0]).train()
        for module in self._form.modules():
            if getattr(module, "act", None) is F.silu:
                module.act = _silu  # type: ignore[assignment]

    def energy(self, graph: AtomGraph) -> Tensor:
        """``(S, B)``."""
        form = self._form
        if not isinstance(form, FAENetCore):
            raise TypeError(f"expected a FAENetCore, got {type(form).__name__}")
        rotations = form.backbone.train_frames.frames(graph).rotations

        def one(weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            out = functional_call(form, (weights, buffers), (graph,), {"rotations": rotations})
            energy: Tensor = out["energy"].squeeze(-1)
            return energy

        energies: Tensor = vmap(one)(self._weights, self._buffers)
        return energies

    def networks(self) -> Sequence[nn.Module]:
        """Each network, the weights as they are now copied into it."""
        with torch.no_grad():
            for index, network in enumerate(self._networks):
                for name, weight in network.named_parameters():
                    weight.copy_(self._weights[name][index])
        return self._networks


def _silu(x: Tensor) -> Tensor:
    """Under a name of its own it leaves convolutions in the plain form, which `vmap` can take."""
    return F.silu(x)


def all_faenets() -> dict[str, Subject]:
    """Every kind by its name."""
    return {name: faenet_subject(name, *kind) for name, kind in KINDS.items()}


def _energy(network: nn.Module, graph: AtomGraph) -> Tensor:
    energy: Tensor = network(graph)["energy"]
    return energy.squeeze(-1)


def _answers(network: nn.Module, graph: AtomGraph) -> Tensor:
    return _energy(network, graph).unsqueeze(-1)


def _in_every_frame(network: nn.Module, graph: AtomGraph) -> Tensor:
    """``(B, F)``: the energy in each frame that might be drawn.

    ``F`` is the largest number of frames; of a structure with fewer of them, some come again.
    """
    if not isinstance(network, FAENetCore):
        raise TypeError(f"expected a FAENetCore, got {type(network).__name__}")
    method = network.config.fa_method
    proper = method is not None and method.is_proper
    frames = AllFrames(network.config, proper=proper, exact=True).frames(graph)
    copies, _ = frames.copies(graph)
    energies = [
        network(copies, rotations=rotation.unsqueeze(1))["energy"]  # (R, 1)
        for rotation in frames.rotations.unbind(1)
    ]
    each = torch.cat(energies, dim=-1)  # (R, F)
    if frames.rows is None:
        return each
    counts = torch.bincount(frames.rows) * each.shape[1]
    sets = each.flatten().split(counts.tolist())
    slots = torch.arange(int(counts.max()), device=each.device)
    return torch.stack([found[slots % len(found)] for found in sets])
