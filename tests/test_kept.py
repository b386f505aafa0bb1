"""Values that are kept between passes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from ocp_faenet.nn.kept import Kept


class TestKept:
    """Values are kept while parameters stay the same, and never longer."""

    def make(self):
        linear, kept, calls = nn.Linear(3, 2), Kept(), []

        def value(constant="a"):
            def make():
                calls.append(1)
                return 2 * linear.weight

            return kept.get((linear.weight,), (constant,), make)

        return linear, kept, calls, value

    def test_kept(self):
        _, _, calls, value = self.make()
        with torch.no_grad():
            assert value() is value()
            assert len(calls) == 1
            assert value("b") is not value("a")

    @pytest.mark.parametrize("how", ["in place", "through .data", "loaded", "one bit"])
    def test_made_anew_however_a_parameter_changes(self, how):
        linear, _, _, value = self.make()
        with torch.no_grad():
            value()
            if how == "in place":
                linear.weight.add_(1)
            elif how == "through .data":
                linear.weight.data.copy_(torch.ones(2, 3))
            elif how == "loaded":
                linear.load_state_dict({k: v + 1 for k, v in linear.state_dict().items()})
            else:
                linear.weight.data[1, 2].copy_(torch.nextafter(linear.weight[1, 2], torch.ones(())))
            assert torch.equal(value(), 2 * linear.weight)

    def test_nothing_is_kept_with_gradients(self):
        _, _, calls, value = self.make()
        assert value().requires_grad
        value()
        assert len(calls) == 2

    @pytest.mark.parametrize("grad", [True, False])
    def test_made_without_autocast(self, grad):
        """What passes with and without autocast share must not depend on which came first."""
        linear, kept = nn.Linear(3, 2), Kept()

        def value():
            return kept.get((linear.weight,), (), lambda: linear.weight @ linear.weight.T)

        with torch.set_grad_enabled(grad):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert (linear.weight @ linear.weight.T).dtype == torch.bfloat16
                first = value()
            assert torch.equal(first, linear.weight @ linear.weight.T)
            assert torch.equal(value(), first)

    def test_copies_start_empty(self):
        _, kept, _, value = self.make()
        with torch.no_grad():
            value()
        assert copy.deepcopy(kept)._state is None
        assert pickle.loads(pickle.dumps(kept))._state is None
