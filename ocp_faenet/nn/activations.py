"""Activations by the names that published configurations use."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]

#: Name in a configuration -> function. ``swish`` is the published choice.
ACTIVATIONS: dict[str, Activation] = {
    "swish": F.silu,
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
    "softplus": F.softplus,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}

#: Activations with no kink: functions built of them can be interpolated.
SMOOTH: frozenset[Activation] = frozenset({F.silu, F.gelu, F.softplus, torch.tanh, torch.sigmoid})


def activation(name: str) -> Activation:
    """The activation called ``name``.

    Raises:
        ValueError: no activation of that name.
    """
    try:
        return ACTIVATIONS[name]
    except KeyError:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"act: unknown activation {name!r}; one of {known}") from None
