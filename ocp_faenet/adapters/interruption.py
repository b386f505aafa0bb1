"""A signal that ends a run, kept until the run stands between two training steps.

submitit's own handler saves wherever the signal strikes: after the step was counted and before
the optimizer moved, say, and a run that resumes there has lost one step. Here the handler only
makes a note while training, and the trainer obeys it where its state is whole.
"""

from __future__ import annotations

import multiprocessing.context
import os
import signal
import threading
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
        self._signals: list[signal.Signals] = []
        self.signum: int | None = None

    def listen(self, signals: list[signal.Signals], leave: Leave) -> None:
        """From now on, ``leave`` is what ``signals`` lead to."""
        self._leave, self._waiting, self.signum = leave, False, None
        self._signals = list(signals)
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

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Signals that come within this block are obeyed after it.

        A process that is forked in it begins with them held back, and for good.
        """
        if self._leave is None:
            yield
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {*self._signals, signal.SIGTERM})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def leave_to_parent(self) -> None:
        """In a process forked while signals were `held_back`: end on its parent's SIGTERM alone.

        A thread takes the signal: only so is it known who sent it. The parent sends one where it
        fails or its loaders hang.
        """
        if self._leave is not None:
            threading.Thread(target=_end_as_the_parent_asks, daemon=True).start()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        if not self._waiting:
            self.leave()


#: The one of this process; without `Interruption.listen` it does nothing.
INTERRUPTION = Interruption()


class _LoaderProcess(multiprocessing.context.ForkProcess):
    """A process of a loader: the signals of `Interruption.listen` are its parent's to obey.

    SLURM signals all processes of a job, a shell all of a group. PyTorch's loader processes end
    on any SIGTERM, and the process that trains fails then, wherever it is. From the first moment
    on, for the signal may come while they start.
    """

    def start(self) -> None:
        with INTERRUPTION.held_back():
            super().start()


class LoaderContext(multiprocessing.context.ForkContext):
    """``multiprocessing_context`` of the loaders, beside `prepare_loader_process`."""

    Process = _LoaderProcess


def prepare_loader_process(worker_id: int) -> None:
    """``worker_init_fn`` of the loaders: see `Interruption.leave_to_parent`."""
    INTERRUPTION.leave_to_parent()


def _end_as_the_parent_asks() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
