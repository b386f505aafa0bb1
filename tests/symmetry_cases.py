"""Structures and errors for the symmetry tests: float64, neighbours by brute force."""

from __future__ import annotations

import itertools
import math

import torch

from ocp_faenet.models import AtomGraph, FAENetConfig, FAENetCore, transforms
from ocp_faenet.models.config import (
    DecoderConfig,
    DecoderType,
    EnergyHeadType,
    FAMethod,
    ForceMode,
    FrameAveraging,
)

CUTOFF = 4.0
TINY = {
    "hidden_channels": 32,
    "num_filters": 16,
    "num_interactions": 2,
    "num_gaussians": 10,
    "tag_hidden_channels": 4,
    "pg_hidden_channels": 4,
    "cutoff": CUTOFF,
    "regress_forces": ForceMode.DIRECT,
    "energy_head": EnergyHeadType.FINAL,
    "force_decoder_model_config": {DecoderType.MLP: DecoderConfig(16)},
}


def model(seed=0, dtype=torch.float64, **choices):
    """A small FAENet in evaluation mode; the same seed gives the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        core = FAENetCore(FAENetConfig(**{**TINY, **choices}))
        for parameter in core.parameters():  # no zero biases: generic weights
            if parameter.dim() == 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return core.to(dtype).eval()


def framed(space, method, **choices):
    """A model evaluated with one frame method (2D or 3D)."""
    return model(frame_averaging=FrameAveraging(space), eval_fa_method=FAMethod(method), **choices)


def neighbours(positions, cell=None, cutoff=CUTOFF, reach=(2, 2, 0)):
    """All directed edges by brute force: ``edge_index`` (2, E) and offsets (E, 3)."""
    n = len(positions)
    ranges = [range(-r, r + 1) if cell is not None else [0] for r in reach]
    found = []
    for offset in itertools.product(*ranges):
        shift = torch.tensor(offset, dtype=positions.dtype)
        moved = positions if cell is None else positions + shift @ cell
        vectors = moved[:, None] - positions[None]  # source j, target i
        squared = vectors.square().sum(-1)
        near = (squared <= cutoff**2) & (squared > 1e-12)
        j, i = near.nonzero().T
        found.append((torch.stack([j, i]), shift.expand(len(j), 3)))
    index = torch.cat([f[0] for f in found], 1) if n else torch.zeros(2, 0, dtype=torch.long)
    return index, torch.cat([f[1] for f in found])


def structure(positions, numbers, cell=None, tags=None, cutoff=CUTOFF, reach=(2, 2, 0)):
    """One structure as a graph."""
    positions = torch.as_tensor(positions, dtype=torch.float64).reshape(-1, 3)
    numbers = torch.as_tensor(numbers)
    edges, offsets = neighbours(positions, cell, cutoff, reach)
    return AtomGraph.build(
        positions,
        numbers,
        torch.zeros(len(numbers), dtype=torch.long),
        1,
        edges,
        cell=None if cell is None else cell.unsqueeze(0),
        cell_offsets=None if cell is None else offsets,
        tags=tags,
        cutoff=cutoff,
    )


def slab(seed, rows=(2, 2), layers=2, adsorbate=(6, 8), skew=0.35, rattle=0.15, edge=2.7):
    """A rattled slab with an adsorbate in a skewed cell: no symmetry left."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.tensor([edge, 0.0, 0.0], dtype=torch.float64)
    b = torch.tensor([edge * skew, edge * 0.95, 0.0], dtype=torch.float64)
    cell = torch.stack(
        [a * rows[0], b * rows[1], torch.tensor([0.3, -0.2, 18.0], dtype=torch.float64)]
    )
    points, numbers, tags = [], [], []
    for layer, i, j in itertools.product(range(layers), range(rows[0]), range(rows[1])):
        points.append((i + 0.5 * layer) * a + (j + 0.5 * layer) * b)
        points[-1] = points[-1] + torch.tensor([0.0, 0.0, 2.0 * layer], dtype=torch.float64)
        numbers.append([29, 78, 47][int(torch.randint(0, 3, (), generator=generator))])
        tags.append(min(layer, 1))
    top = 2.0 * (layers - 1)
    for k, z in enumerate(adsorbate):
        offset = [0.6 + 0.5 * k, 0.4 + 0.2 * k, top + 1.7 + 0.9 * k]
        points.append(torch.tensor(offset, dtype=torch.float64))
        numbers.append(z)
        tags.append(2)
    positions = torch.stack(points)
    noise = torch.randn(positions.shape, generator=generator, dtype=torch.float64)
    return structure(positions + rattle * noise, numbers, cell, torch.tensor(tags))


def mixed_batch():
    """Unlike graphs: sizes, cells and adsorbates differ."""
    return transforms.joined(
        [
            slab(1),
            slab(2, rows=(3, 2), adsorbate=(1,), skew=0.1),
            slab(3, rows=(2, 1), layers=3, adsorbate=(8, 1), skew=-0.4, edge=3.0),
            slab(4, rows=(1, 1), layers=4, adsorbate=(7, 7, 1)),
        ]
    )


def random_poses(count, about_z, reflections, seed=0):
    """Rotation matrices, times a reflection in the last half where asked for."""
    from ocp_faenet.geometry.rotations import random_rotations, random_rotations_about_z

    generator = torch.Generator().manual_seed(seed)
    draw = random_rotations_about_z if about_z else random_rotations
    poses = draw(count, dtype=torch.float64, generator=generator)
    if reflections:
        poses = torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)) @ poses
    return poses


@torch.no_grad()
def pose_errors(core, graph, poses):
    """Worst energy and force errors of ``core`` over poses (P, 3, 3)."""
    base = core(graph)
    energy = force = 0.0
    for pose in poses:
        matrices = pose.expand(graph.num_graphs, 3, 3)
        out = core(transforms.turned(graph, matrices))
        energy = max(energy, float((out["energy"] - base["energy"]).abs().max()))
        force = max(force, float((out["forces"] - base["forces"] @ pose).abs().max()))
    return energy, force


def slope(core, graph, atom, axis, step=1e-5):
    """A force by its definition: minus the central difference of the energy."""
    nudge = torch.zeros_like(graph.positions)
    nudge[atom, axis] = step
    up = core(graph.with_positions(graph.positions + nudge))["energy"]
    down = core(graph.with_positions(graph.positions - nudge))["energy"]
    return float(-(up - down) / (2 * step))


def polygon(n, radius=2.0, z=0.0, phase=0.1):
    """Corners of a regular polygon, (n, 3)."""
    angles = phase + 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    flat = torch.stack([angles.cos(), angles.sin()], -1) * radius
    return torch.cat([flat, torch.full((n, 1), z, dtype=torch.float64)], -1)


def cloud(kind, seed=0):
    """Positions of awkward clouds."""
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(6, 3, dtype=torch.float64, generator=generator)
    flat = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    line = torch.tensor([[0.3, -0.7, 0.2]], dtype=torch.float64)
    cube = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    steps = torch.arange(5, dtype=torch.float64)
    kinds = {
        "one atom": torch.zeros(1, 3, dtype=torch.float64),
        "one atom off centre": torch.full((1, 3), 7.3, dtype=torch.float64),
        "two atoms": random[:2],
        "three atoms": random[:3],
        "planar in xy": random * flat,
        "planar tilted": random[:, :1] * line + random[:, 1:2] * line.roll(1, -1),
        "linear along z": steps[:, None] * line.new_tensor([[0.0, 0.0, 1.1]]),
        "linear along x": steps[:, None] * line.new_tensor([[1.1, 0.0, 0.0]]),
        "linear tilted": steps[:, None] * line * 1.7,
        "triangle": polygon(3),
        "square": polygon(4),
        "hexagon": polygon(6),
        "pyramid": torch.cat([polygon(4), line.new_tensor([[0.0, 0.0, 1.5]])]),
        "cube": cube,
        "octahedron": torch.cat([torch.eye(3), -torch.eye(3)]).double() * 1.8,
        "far apart": random * 100,
        "inverted pair": torch.cat([random[:3], -random[:3]]),
        "coincident": random[:1].expand(3, 3),
    }
    return kinds[kind]


KINDS = [
    "one atom", "one atom off centre", "two atoms", "three atoms", "planar in xy",
    "planar tilted", "linear along z", "linear along x", "linear tilted", "triangle", "square",
    "hexagon", "pyramid", "cube", "octahedron", "far apart", "inverted pair", "coincident",
]  # fmt: skip


def perfect_slab(facet, site, species=(29, 8)):
    """Two layers of an ideal slab with one atom on a symmetric site."""
    a = 2.6
    second = {
        "square": [0.0, a, 0.0],
        "hexagonal": [a / 2, a * 3**0.5 / 2, 0.0],
        "rectangular": [0.0, a * 2**0.5, 0.0],
    }[facet]
    rows = torch.tensor([[a, 0.0, 0.0], second, [0.0, 0.0, 1.0]], dtype=torch.float64)
    stacking = {"square": [0.5, 0.5], "hexagonal": [1 / 3, 1 / 3], "rectangular": [0.5, 0.5]}
    shift = stacking[facet]
    sites = {"top": [0.0, 0.0], "bridge": [0.5, 0.0], "hollow": shift}
    fractional = [
        [i + shift[0] * (1 - layer), j + shift[1] * (1 - layer), 1.9 * layer]
        for layer, i, j in itertools.product(range(2), range(2), range(2))
    ]
    fractional.append([*sites[site], 1.9 + 1.3])
    positions = torch.tensor(fractional, dtype=torch.float64) @ rows
    cell = torch.diag(torch.tensor([2.0, 2.0, 20.0], dtype=torch.float64)) @ rows
    numbers = [species[0]] * 8 + [species[1]]
    return structure(positions, numbers, cell, torch.tensor([0] * 4 + [1] * 4 + [2]))
