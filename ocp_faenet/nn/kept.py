"""Values computed from parameters, kept between calls while the parameters stay what they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Kept:
    """One value that depends on parameters alone, for inference on the CPU: tensors.

    It is made anew whenever a parameter differs in any bit from the copy that is stored with it:
    however it was changed (an optimiser, averaged weights swapped in, a loaded state), the value
    is never stale. Where gradients are enabled, or off the CPU, nothing is kept. Copies of a
    module and pickles of it start empty.

    Autocast is off while it is made: what passes with and without autocast share must not depend
    on which of them came first, and a table is not worth rounding.
    """

    def __init__(self) -> None:
        self._state: tuple[tuple[Tensor, ...], tuple[object, ...], Any] | None = None

    def get(
        self,
        parameters: Sequence[Tensor],
        constants: Sequence[object],
        make: Callable[[], T],
    ) -> T:
        """The value of ``make()``.

        Args:
            parameters: what it depends on; compared by value.
            constants: what else it depends on and is never changed in place; by identity.
            make: computes it.
        """
        keep = not torch.is_grad_enabled() and all(p.device.type == "cpu" for p in parameters)
        state = self._state if keep else None
        if state is not None and _same(parameters, state[0]) and _are(constants, state[1]):
            found: T = state[2]
            return found
        with torch.autocast(parameters[0].device.type, enabled=False):
            value = make()
        if keep:
            self._state = (tuple(p.clone() for p in parameters), tuple(constants), value)
        return value

    def __deepcopy__(self, memo: dict[int, Any]) -> Kept:
        return Kept()

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()


def _same(now: Sequence[Tensor], then: Sequence[Tensor]) -> bool:
    return len(now) == len(then) and all(
        a.dtype is b.dtype and a.shape == b.shape and torch.equal(a, b)
        for a, b in zip(now, then, strict=True)
    )


def _are(now: Sequence[object], then: Sequence[object]) -> bool:
    return len(now) == len(then) and all(a is b for a, b in zip(now, then, strict=True))
