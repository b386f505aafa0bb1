"""Time and memory of training on many GPUs, derived from what one sample costs."""

from __future__ import annotations

from dataclasses import dataclass

from ocp_faenet.models.config import FAENetConfig
from ocp_faenet.models.costs import Costs
from ocp_faenet.models.published import IS2RE, S2EF

#: Atoms and neighbours of the structures whose costs are counted: six real OC20 systems have 87
#: atoms each in the mean.
ATOMS = 87
#: Bytes of weights, gradients and AdamW's two moments, for each parameter.
STATE_BYTES = 16
GPUS_PER_NODE = 8


@dataclass(frozen=True)
class Gpu:
    """What its maker says of a GPU.

    Attributes:
        gflops: single-precision operations, 1e9/s, without tensor cores.
        bandwidth: of its memory, bytes/s.
        memory: bytes.
        link: to the other GPUs of its node, one way, bytes/s.
        network: to other nodes, one way, bytes/s.
    """

    name: str
    gflops: float
    bandwidth: float
    memory: float
    link: float
    network: float


#: NVIDIA's data sheets; the network of their DGX machines: 200 and 400 Gb/s a GPU.
GPUS = {
    "a100": Gpu("A100 SXM 80 GB", 19_500, 2.039e12, 80e9, 300e9, 25e9),
    "h200": Gpu("H200 SXM 141 GB", 67_000, 4.8e12, 141e9, 450e9, 50e9),
}


@dataclass(frozen=True)
class Workload:
    """A published training.

    Attributes:
        samples: structures of the training set (OC20, arXiv 2010.09990).
        epochs: as published, or one where no FAENet was.
        batch: of all GPUs together, as published.
        neighbors: most neighbours of an atom in the graph.
    """

    name: str
    config: FAENetConfig
    samples: int
    epochs: int
    batch: int
    neighbors: int


WORKLOADS = (
    Workload("IS2RE-all", IS2RE, 460_328, 12, 256, 50),
    Workload("S2EF-2M", S2EF, 2_000_000, 12, 192, 30),
    Workload("S2EF-134M", S2EF, 133_934_018, 1, 192, 30),
)


@dataclass(frozen=True)
class Projection:
    """One training on a number of GPUs; times in s.

    Attributes:
        gpus: how many.
        batch: of each GPU.
        work, traffic, launches: of a step, which hide each other.
        exchange: of gradients after it, hidden by nothing.
        steps: in the whole training.
        memory: bytes of each GPU.
    """

    gpus: int
    batch: int
    work: float
    traffic: float
    launches: float
    exchange: float
    steps: float
    memory: float

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return max(self.work, self.traffic, self.launches) + self.exchange

    @property
    def total(self) -> float:
        """Seconds of the training."""
        return self.steps * self.step

    @property
    def hours(self) -> float:
        """Of the training."""
        return self.total / 3600

    @property
    def rate(self) -> float:
        """Samples per second of all GPUs."""
        return self.gpus * self.batch / self.step

    @property
    def limit(self) -> str:
        """What takes longest."""
        times = {
            "arithmetic": self.work,
            "memory traffic": self.traffic,
            "launching": self.launches,
            "exchange of gradients": self.exchange,
        }
        return max(times, key=lambda name: times[name])


def project(
    work: Workload,
    costs: Costs,
    parameters: int,
    gpu: Gpu,
    gpus: int,
    *,
    launch: float,
    batch: int | None = None,
    share: float = 1.0,
) -> Projection:
    """``work`` on ``gpus`` GPUs.

    With ``share`` 1 all times are lower bounds. Gradients are exchanged by a ring,
    ``2 (G - 1) / G`` times their bytes over the slowest link.

    Args:
        work: what is trained.
        costs: of a training step.
        parameters: of the model.
        gpu: of which all are.
        gpus: how many, in nodes of `GPUS_PER_NODE`.
        launch: seconds of processor time that an operation takes to launch.
        batch: of each GPU; by default the published batch is shared out.
        share: of the GPU's arithmetic and bandwidth that is reached.
    """
    each = batch or max(1, work.batch // gpus)
    slowest = gpu.link if gpus <= GPUS_PER_NODE else gpu.network
    return Projection(
        gpus=gpus,
        batch=each,
        work=each * costs.gflop / gpu.gflops / share,
        traffic=(costs.bytes_fixed + each * costs.bytes) / gpu.bandwidth / share,
        launches=costs.operations * launch,
        exchange=2 * (gpus - 1) / gpus * 4 * parameters / slowest,
        steps=work.epochs * work.samples / (each * gpus),
        memory=STATE_BYTES * parameters + costs.memory_fixed + each * costs.memory,
    )
