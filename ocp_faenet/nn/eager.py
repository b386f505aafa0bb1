"""Functions that ``torch.compile`` leaves as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., object])


def eager(function: F) -> F:
    """``function`` without tracing: it hands addresses to compiled code, which have no values."""
    return cast(F, torch.compiler.disable(function))
