"""Large pieces of memory that are taken again and again.

What a convolution keeps for its backward pass is tens of megabytes a layer, 150 in four frames on
a batch of six slabs. The C library takes that much from the system for every step and gives it
back, and the system clears each page of it. Here such a piece stays with the process once its
tensor is gone, and the next step writes where the last one wrote.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch
from torch import Tensor

#: Bytes below which the C library keeps the memory itself.
SMALL = 1 << 20
#: What is taken beyond what is asked for: batches differ a little in size.
SPARE = 1.125


class Workspace:
    """Pieces of memory that wait for a tensor; about as many as were in use at once."""

    def __init__(self) -> None:
        self.waiting: list[mmap.mmap] = []
        self._set_aside = False
        self._lock = Lock()

    def empty(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """A tensor ``(rows, columns)`` of the type of ``like``, its values undefined."""
        size = rows * columns * like.element_size()
        here = sys.platform == "linux" and like.device.type == "cpu" and not self._set_aside
        if size < SMALL or not here:
            return like.new_empty(rows, columns)
        memory = self._take(size)
        handle = (ctypes.c_char * size).from_buffer(memory)
        # The tensor's storage holds the handle: the memory comes back when both are gone.
        weakref.finalize(handle, self.waiting.append, memory).atexit = False
        return torch.frombuffer(handle, dtype=like.dtype).view(rows, columns)

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Within it PyTorch allocates, where a profiler is to see it."""
        before, self._set_aside = self._set_aside, True
        try:
            yield
        finally:
            self._set_aside = before

    def _take(self, size: int) -> mmap.mmap:
        # Finalizers may add to the list at any time; only one thread takes from it.
        with self._lock:
            waiting = sorted(self.waiting, key=len)
            fits = [memory for memory in waiting if len(memory) >= size]
            if fits:
                self.waiting.remove(fits[0])
                return fits[0]
            freed = 0
            for memory in waiting:  # outgrown: as much goes as comes
                self.waiting.remove(memory)
                freed += len(memory)
                if freed >= size:
                    break
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        return mmap.mmap(-1, int(size * SPARE), flags=flags)


#: That of the process.
SHARED = Workspace()
