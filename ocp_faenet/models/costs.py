"""Work, memory traffic and memory of a training step, counted operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import AdamW
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ocp_faenet.models.config import FAENetConfig
from ocp_faenet.models.contenders import without_tag_0
from ocp_faenet.models.faenet import FAENetCore
from ocp_faenet.models.graph import AtomGraph
from ocp_faenet.models.synthetic import oc20_like
from ocp_faenet.models.timing import count_work

#: Batches from which costs of a step and costs of a sample are told apart. Smaller ones take
#: another way through the radial basis.
SMALL, LARGE = 8, 16
#: In place of the published ``swish``, for which a CPU has a form of its own: of the same cost,
#: and in the plain form that a GPU takes.
PLAIN_ACTIVATION = "gelu"


class Traffic(TorchDispatchMode):
    """Counts operations, and the bytes of what each takes and makes.

    A tensor counts once for every operation that takes it: nothing is fused, nothing stays in
    cache between operations. Views are free.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        taken = list(_tensors((args, kwargs)))
        made = [tensor for tensor in _tensors(out) if all(tensor is not t for t in taken)]
        storages = {tensor.untyped_storage().data_ptr() for tensor in taken}
        fresh = [t for t in made if t.untyped_storage().data_ptr() not in storages]
        if fresh or func._schema.is_mutable:
            self.operations += 1
            self.bytes += sum(t.numel() * t.element_size() for t in (*taken, *fresh))
        return out


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


@dataclass(frozen=True)
class Costs:
    """Of one pass over a batch of ``B`` samples: a fixed part, and one that grows with ``B``.

    Attributes:
        gflop: of matrix products, a sample.
        bytes_fixed, bytes: traffic a pass (weights, optimiser) and a sample.
        memory_fixed, memory: most bytes held at once, likewise, without the weights.
        operations: launched in a pass, whatever ``B``.
    """

    gflop: float
    bytes_fixed: float
    bytes: float
    memory_fixed: float
    memory: float
    operations: int


@dataclass(frozen=True)
class Subject:
    """A configuration on structures of one size.

    Attributes:
        config: the model.
        atoms: of a structure, before tag-0 atoms go.
        neighbors: most neighbours of an atom.
    """

    config: FAENetConfig
    atoms: int
    neighbors: int

    def batch(self, size: int) -> AtomGraph:
        """``size`` structures without their tag-0 atoms."""
        return without_tag_0(oc20_like(self.atoms, size, max_neighbors=self.neighbors))

    def module(self) -> FAENetCore:
        """The model in its plain form."""
        return FAENetCore(replace(self.config, act=PLAIN_ACTIVATION))


def training_step(module: FAENetCore, graph: AtomGraph) -> Callable[[], None]:
    """One step with every loss that the outputs allow, and AdamW."""
    optimizer = AdamW(module.parameters(), lr=1e-12)

    def run() -> None:
        module.train()
        optimizer.zero_grad()
        out = module(graph)
        loss = out["energy"].square().mean()
        if "forces" in out:
            loss = loss + out["forces"].square().mean()
        if "forces_grad_target" in out:
            loss = loss + (out["forces"] - out["forces_grad_target"]).square().mean()
        loss.backward()
        optimizer.step()

    return run


def inference(module: FAENetCore, graph: AtomGraph) -> Callable[[], None]:
    """One forward pass without gradients."""

    def run() -> None:
        module.eval()
        with torch.no_grad():
            module(graph)

    return run


def count(
    subject: Subject, make: Callable[[FAENetCore, AtomGraph], Callable[[], None]] = training_step
) -> Costs:
    """Costs of a pass, from two sizes of batch."""
    module = subject.module()
    seen = []
    for size in (SMALL, LARGE):
        run = make(module, subject.batch(size))
        run()  # the optimiser makes its state once
        with Traffic() as traffic:
            run()
        gflop, memory = count_work(run, torch.device("cpu"))
        seen.append((gflop, float(traffic.bytes), float(memory), traffic.operations))
    (_, bytes_small, memory_small, _), (gflop, bytes_large, memory_large, operations) = seen
    each, held = (
        (large - small) / (LARGE - SMALL)
        for small, large in ((bytes_small, bytes_large), (memory_small, memory_large))
    )
    return Costs(
        gflop=gflop / LARGE,
        bytes_fixed=bytes_large - LARGE * each,
        bytes=each,
        memory_fixed=memory_large - LARGE * held,
        memory=held,
        operations=operations,
    )
