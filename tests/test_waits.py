"""How often a pass makes the host wait for the device: counted on the CPU, by what would."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from plugin_cases import batch_of, faenet

#: Operations whose result, or its size, the host must know.
WAITING = {
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "bincount", "masked_select",
    "_unique2", "unique_dim", "unique_consecutive",
}  # fmt: skip
#: Those of a batch that is checked, and of frames: none of them depends on the network.
MOST = 18


class Waits(TorchDispatchMode):
    """Counts them while it is active."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function._schema.name.removeprefix("aten::")
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        masked = any(i is not None and i.dtype is torch.bool for i in indices)
        unsized = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in WAITING or masked or unsized:
            self.seen[name] += 1
        return function(*args, **kwargs)


def waits(training=False, **config):
    """Of one pass on a batch with edges."""
    network = faenet(otf_graph=False, regress_forces="direct", **config).train(training)
    batch = batch_of(0, 1, edges=True)
    with Waits() as counted:
        network(batch)
    return counted.seen


@pytest.mark.parametrize("method", ["det", "all"])
@pytest.mark.parametrize("training", [False, True])
def test_layers_do_not_wait(training, method):
    """Atoms are counted once for all graph norms, training passes beside their buffer."""
    few = waits(training, eval_fa_method=method, num_interactions=1)
    assert waits(training, eval_fa_method=method, num_interactions=5) == few
    assert 0 < sum(few.values()) <= MOST
    assert few["bincount"] == 0


def test_what_waits_is_counted():
    """Negative control."""
    values = torch.arange(5)
    with Waits() as counted:
        assert int(values.sum()) == 10
        values[values > 2]
        torch.bincount(values)
        torch.repeat_interleave(values)
    assert counted.seen == {
        "_local_scalar_dense": 1,
        "index": 1,
        "bincount": 1,
        "repeat_interleave": 1,
    }
