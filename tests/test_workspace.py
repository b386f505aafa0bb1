"""Memory that is taken again: never by two tensors at once, and never in vain."""

from __future__ import annotations

import gc
import sys

import pytest
import torch
from torch.nn import functional as F

from ocp_faenet.nn import convolution, workspace
from ocp_faenet.nn.messages import Messages, Operands
from ocp_faenet.nn.workspace import Workspace

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the C library's memory is taken")
LIKE = torch.zeros(0)
MIB = 1 << 18  # numbers of four bytes


def test_memory_waits_for_the_last_tensor_that_sees_it():
    space = Workspace()
    first = space.empty(2, MIB, LIKE)
    assert first.shape == (2, MIB)
    assert first.dtype is torch.float32
    part, place = first[1:], first.data_ptr()
    del first
    gc.collect()
    assert not space.waiting
    other = space.empty(2, MIB, LIKE)
    other.fill_(1)
    part.fill_(2)
    assert bool((other == 1).all())
    del part
    gc.collect()
    assert len(space.waiting) == 1
    again = space.empty(2, MIB, LIKE)
    assert again.data_ptr() == place
    assert not space.waiting


def test_smallest_piece_that_fits_is_taken_and_outgrown_ones_go():
    space = Workspace()
    pieces = [space.empty(size, MIB, LIKE) for size in (2, 8, 4)]
    places = [piece.data_ptr() for piece in pieces]
    del pieces
    gc.collect()
    taken = space.empty(3, MIB, LIKE)
    assert taken.data_ptr() == places[2]
    large = space.empty(20, MIB, LIKE)  # none fits: both that wait go, and one comes
    assert not space.waiting
    large.fill_(1)


def test_small_ones_are_left_to_the_library():
    space = Workspace()
    space.empty(1, 1000, LIKE)
    space.empty(4, MIB, LIKE.to("meta"))
    gc.collect()
    assert not space.waiting


@pytest.mark.parametrize("shared", [True, False])
def test_two_passes_before_a_backward_pass_keep_apart(shared, monkeypatch):
    """Gradients of an early pass after a later one; wrong if both are given one piece."""
    memory = bytearray(8 * 8)

    class Broken(Workspace):
        def empty(self, rows, columns, like):
            return torch.frombuffer(memory, dtype=like.dtype).view(rows, columns)

    monkeypatch.setattr(workspace, "SMALL", 1)
    monkeypatch.setattr(convolution, "SHARED", Workspace() if shared else Broken())
    rows = torch.tensor([0, 1])
    messages = Messages(rows, 1 - rows, 1 - rows, 2, (2,))

    def out(x, weight):
        fields = (torch.eye(2).to(x), weight[None], torch.zeros(1, 4).to(x), messages.first_row)
        return convolution.convolve(Operands(x, *fields, None, messages), F.silu)

    g = torch.Generator().manual_seed(0)
    x, early, late = (torch.randn(2, 4, generator=g, dtype=torch.float64) for _ in range(3))
    x.requires_grad_()
    first = out(x, early)
    out(x, late).sum().backward()
    x.grad = None
    first.sum().backward()
    assert torch.allclose(x.grad, F.silu(early), rtol=1e-12) == shared
