"""A signal that ends a run, kept until the run stands between two training steps.

submitit's own handler saves wherever the signal strikes: after the step was counted and before
the optimizer moved, say, and a run that resumes there has lost one step. Here the handler only
makes a note while training, and the trainer obeys it where its state is whole.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

#: Called with the signal's number; does not return.
Leave = Callable[[int], None]


class RunInterruptedError(Exception):
    """Raised inside a training loop that has been asked to stop."""


class Interruption:
    """What a process knows of signals that ask it to stop."""

    def __init__(self) -> None:
        self._leave: Leave | None = None
        self._waiting = False
        self.signum: int | None = None

    def listen(self, signals: list[signal.Signals], leave: Leave) -> None:
        """From now on, ``leave`` is what ``signals`` lead to."""
        self._leave, self._waiting, self.signum = leave, False, None
        for signum in signals:
            signal.signal(signum, self._handle)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A signal within this block only sets `signum`; the block has to look at it."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    @property
    def asked(self) -> bool:
        """Whether a block that defers signals has been asked to stop."""
        return self._waiting and self.signum is not None

    def leave(self) -> None:
        """Do what was to be done on the signal; a second one changes nothing."""
        if self._leave is not None and self.signum is not None:
            self._leave(self.signum)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        if not self._waiting:
            self.leave()


#: The one of this process; without `Interruption.listen` it does nothing.
INTERRUPTION = Interruption()
