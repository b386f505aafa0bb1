"""Randomness inside a forward pass that a resumed run repeats exactly.

The host's checkpoint holds no state of any random generator, and a resumed process starts its
own from ``--seed`` again. So nothing random in a model of ours comes from the process's running
state: each *training* forward pass gets a seed of its own,

    hash(run's seed, training passes so far, rank),

and the number of passes is a buffer of the model, so it is in every checkpoint, the stock
trainer's included. Frames, dropped edges and dropout are all drawn under that seed, and the
process's generator is put back afterwards: the data order does not depend on the model.

Run k steps, stop, resume with the same ``--seed``: the same weights as without stopping. What is
drawn by loader transforms (`fresh_generator`) is outside the model, so it is outside this promise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fairchem.core.common import distutils
from torch import Tensor, nn


class PassSeeds(nn.Module):
    """A seed for each training pass, from the run's own: the one the host gave torch before
    it built the model.

    The count is a buffer, for checkpoints, and a number beside it: to read the buffer in every
    pass would make the host wait for the device.
    """

    training_passes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.run_seed = torch.initial_seed()
        self.register_buffer("training_passes", torch.zeros((), dtype=torch.int64))
        self._passes: int | None = 0
        self.register_load_state_dict_post_hook(_forget_passes)

    @property
    def passes(self) -> int:
        """Training passes so far."""
        if self._passes is None:
            self._passes = int(self.training_passes)
        return self._passes

    def restart(self) -> None:
        """Count from the beginning."""
        self.training_passes.zero_()
        self._passes = 0

    def forward(self) -> int:
        """Count one training pass and return its seed, different on every rank."""
        done = self.passes
        self.training_passes += 1
        self._passes = done + 1
        return derive_seed(self.run_seed, done, distutils.get_rank())


def _forget_passes(module: Any, incompatible: Any) -> None:
    """The count has been loaded: it is read anew."""
    module._passes = None


def derive_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers, unrelated for neighbouring ones."""
    text = ",".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def fresh_generator() -> torch.Generator:
    """A generator for one draw of a loader transform.

    Its seed comes from PyTorch's generator of this process, which the host's ``--seed`` starts
    and which a loader starts anew for every worker and epoch, and from the rank, which neither
    of them knows.
    """
    drawn = int(torch.randint(2**62, ()))
    return torch.Generator().manual_seed(derive_seed(drawn, distutils.get_rank()))


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Draw from generators started at ``seed``, then put the process's own back.

    Args:
        seed: ``None`` changes nothing.
        device: where the model runs; its generator is started too.
    """
    if seed is None:
        yield
        return
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield
