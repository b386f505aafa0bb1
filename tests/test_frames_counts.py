"""Structures with unlike numbers of frames in one batch: each in its own, none in more."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fairchem.core.datasets import data_list_collater
from torch_geometric.data import Data

from ocp_faenet.metrics.diversity import mean_average_distance
from ocp_faenet.models import frame_provider, transforms
from ocp_faenet.models.config import (
    EnergyHeadType,
    FAMethod,
    ForceMode,
    FrameAveraging,
    FrameSource,
    GraphRewiring,
    SkipConnection,
    Subgroup,
)
from ocp_faenet.models.denoising import DenoisingHead
from ocp_faenet.models.ewald_config import EwaldConfig
from ocp_faenet.models.expressive_faenets import all_faenets
from plugin_cases import faenet, hydra_like
from symmetry_cases import CUTOFF, cloud, mixed_batch, model, perfect_slab, polygon, structure

EXACT = 1e-12
KINDS = ["three atoms", "hexagon", "triangle", "square", "one atom", "cube", "inverted pair"]
NAMES = ["all", "det", "se3-all", "learned", "learned, signs", "se3-learned"]


def ring(n, radius=2.0):
    """A regular polygon of carbon: 2 n frames in the plane, a square only 8."""
    return structure(polygon(n, radius), [6] * n)


def rings(*sizes):
    return transforms.joined([ring(n) for n in sizes])


def unlike():
    """Structures with 1 to 48 frames."""
    kinds = [structure(cloud(kind), [6] * len(cloud(kind))) for kind in KINDS]
    return [*kinds, ring(5), ring(7)]


def core_of(space, name, **choices):
    method, _, subgroup = name.partition(", ")
    evaluation = None if "learned" in method else FAMethod(method)
    core = model(
        frame_averaging=FrameAveraging(space), fa_method=FAMethod(method),
        eval_fa_method=evaluation, canonical_subgroup=Subgroup(subgroup) if subgroup else None,
        **{"tag_hidden_channels": 0, "skip_co": SkipConnection.CONCAT, **choices},
    )  # fmt: skip
    if evaluation is None:
        with torch.no_grad():
            core.backbone.eval_frames.network.last.weight.normal_()
    return core


def frames_of(core, graph):
    """All frames of a structure alone, ``(1, F, 3, 3)``."""
    return core.backbone.eval_frames(graph)


def one_by_one(core, graph):
    """The definition: a forward pass for each frame of one structure, and plain means."""
    passes = [core.backbone(graph, rotations=one) for one in frames_of(core, graph).split(1, dim=1)]
    assert all(embedding.origin is None for embedding in passes)
    out = {
        "energy": torch.stack([core.energy_head(embedding) for embedding in passes]),
        "hidden_state": torch.stack([embedding.mean() for embedding in passes]),
    }
    if core.force_head is not None:
        out["forces"] = torch.stack([core.force_head(embedding) for embedding in passes])
    return {key: value.mean(0) for key, value in out.items()}


def worst(found, graphs, expected):
    """Largest difference of the predictions of a batch from those of its structures, by key."""
    assert sum(graph.num_atoms for graph in graphs) == len(found["forces"])
    return {
        key: float((value - torch.cat([one[key] for one in expected])).abs().max())
        for key, value in found.items()
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("space", ["2D", "3D"])
@torch.no_grad()
def test_a_batch_is_its_structures_alone_and_frame_by_frame(space, name):
    graphs, core = unlike(), core_of(space, name, energy_head=EnergyHeadType.INITIAL)
    counts = [frames_of(core, graph).shape[1] for graph in graphs]
    assert len(set(counts)) > 3
    batch = transforms.joined(graphs)
    embedding = core.backbone(batch)
    rows, width = embedding.rotations.shape[:2]
    assert rows * width == sum(counts)
    found = core(batch)
    for expected in ([core(graph) for graph in graphs], [one_by_one(core, g) for g in graphs]):
        assert max(worst(found, graphs, expected).values()) < EXACT
    # Negative control: rows of one structure are credited to the next.
    origin = embedding.origin
    shifted = replace(origin, structures=origin.structures.roll(1), atoms=origin.atoms.roll(1))
    wrong = replace(embedding, origin=shifted)
    assert float((core.energy_head(wrong) - found["energy"]).abs().max()) > 1e-6
    assert float((core.force_head(wrong) - found["forces"]).abs().max()) > 1e-6


@pytest.mark.parametrize("name", ["all", "det", "learned, signs"])
def test_gradients_of_a_batch_are_those_of_its_structures_through_their_frames(name):
    graphs = unlike()
    core = core_of("2D", name, regress_forces=ForceMode.FROM_ENERGY)
    batch = transforms.joined(graphs)
    found = core(batch)
    expected = []
    for graph in graphs:
        x = graph.positions.clone().requires_grad_(True)
        one = one_by_one(core, graph.with_positions(x))
        (slope,) = torch.autograd.grad(one["energy"].sum(), x)
        expected.append({**one, "forces": -slope})
    for alone in ([core(graph) for graph in graphs], expected):
        errors = worst(found, graphs, alone)
        scale = max(1.0, float(found["forces"].abs().max()))
        assert max(errors["energy"], errors["forces"] / scale) < EXACT
    fixed = [core(graph, rotations=frames_of(core, graph).detach()) for graph in graphs]
    assert worst(found, graphs, fixed)["forces"] > 1e-4  # the frames do move


def rows_of(core, graph):
    """Rows (atom and frame) of the first interaction's update."""
    sizes = []
    hook = core.backbone.interactions[0].register_forward_hook(
        lambda _, args, out: sizes.append(out.shape[0] * out.shape[1])
    )
    with torch.no_grad():
        out = core(graph)
    hook.remove()
    assert all(bool(torch.isfinite(value).all()) for value in out.values())
    return sizes


@pytest.mark.parametrize("method", ["all", "det"])
def test_cost_is_a_sum_over_structures(method):
    core = core_of("2D", method, frame_source=FrameSource.POSITIONS)
    sizes = range(3, 13)
    alone = {n: rows_of(core, ring(n))[0] for n in sizes}
    assert alone == {n: n * 2 * n for n in sizes}
    assert rows_of(core, rings(5, 7, 9, 11)) == [2 * (25 + 49 + 81 + 121)]
    assert rows_of(core, rings(*sizes)) == [sum(alone.values())]
    embedding = core.backbone(rings(*sizes))
    kept = {h.shape[0] * h.shape[1] for h in (*embedding.layers[1:], embedding.final)}
    assert kept == {sum(alone.values())}


def test_usual_structures_keep_as_many_frames_together_as_divide_all():
    core = core_of("2D", "all", tag_hidden_channels=4)
    batch = transforms.joined([mixed_batch(), perfect_slab("hexagonal", "top")])
    counts = [frames_of(core, transforms.alone(batch, k)).shape[1] for k in range(5)]
    assert counts == [4, 4, 4, 4, 6]
    assert core.backbone(batch).rotations.shape[:2] == (4 * 2 + 3, 2)


@pytest.mark.parametrize("method", ["all", "det"])
@pytest.mark.parametrize("space", ["2D", "3D"])
@torch.no_grad()
def test_equal_numbers_of_frames_are_no_copies(space, method, monkeypatch):
    def refuse(*args):
        raise AssertionError("copied")

    monkeypatch.setattr(frame_provider, "repeated", refuse)
    core, batch = core_of(space, method, tag_hidden_channels=4), mixed_batch()
    frames = core.backbone.eval_frames(batch)
    count = {"all": {"2D": 4, "3D": 8}[space], "det": 1}[method]
    embedding = core.backbone(batch)
    assert embedding.origin is None
    assert embedding.rotations.shape[:2] == (batch.num_graphs, count)
    assert embedding.final.shape == (count, batch.num_atoms, 32)
    given = core(batch, rotations=frames)
    for key, value in core(batch).items():
        assert torch.equal(value, given[key]), key
    # Ambiguous structures too, as long as none has another number.
    other = core_of(space, method, frame_source=FrameSource.POSITIONS)
    assert other.backbone(rings(5, 5)).final.shape == ({"2D": 10, "3D": 20}[space], 10, 32)
    with pytest.raises(AssertionError, match="copied"):
        other(rings(3, 5))


def test_frames_of_unlike_numbers_are_no_tensor():
    provider = core_of("2D", "all", frame_source=FrameSource.POSITIONS).backbone.eval_frames
    assert provider(rings(5, 5)).shape == (2, 10, 3, 3)
    with pytest.raises(ValueError, match=r"structures have \[10, 14\] of them"):
        provider(rings(5, 7))


@torch.no_grad()
def test_atoms_left_out_and_species_of_the_denoising_head():
    graphs = [perfect_slab(facet, "top") for facet in ("square", "hexagonal", "rectangular")]
    core = core_of("2D", "det", tag_hidden_channels=4, graph_rewiring=GraphRewiring.REMOVE_TAG_0)
    head = DenoisingHead(core.config, num_species=3).double().eval()
    graph = transforms.joined(graphs)
    embedding = core.backbone(graph)
    assert embedding.origin is not None
    vectors, logits = head(embedding)
    alone = [head(core.backbone(one)) for one in graphs]
    assert float((vectors - torch.cat([one[0] for one in alone])).abs().max()) < EXACT
    assert float((logits - torch.cat([one[1] for one in alone])).abs().max()) < EXACT
    assert not vectors[graph.tags == 0].any()
    found = core(graph)
    assert max(worst(found, graphs, [core(one) for one in graphs]).values()) < EXACT


@torch.no_grad()
def test_waves_of_voxels_follow_the_frames_of_each_structure():
    graphs = unlike()
    ewald = EwaldConfig(k_cutoff=1.2, voxel=0.4)
    core = core_of("3D", "all", ewald=ewald, use_pbc=False, frame_source=FrameSource.POSITIONS)
    found = core(transforms.joined(graphs))
    assert max(worst(found, graphs, [one_by_one(core, g) for g in graphs]).values()) < 1e-11


def test_a_diversity_for_each_structure():
    core = core_of("2D", "all")
    graphs = [ring(5), ring(7), structure(cloud("three atoms"), [6, 6, 8])]
    embedding = core.backbone(transforms.joined(graphs))
    topology = embedding.topology
    mad = mean_average_distance(embedding.final, topology.batch, topology.num_graphs)
    found = embedding.of_structures(mad.unsqueeze(-1)).squeeze(-1)
    for index, graph in enumerate(graphs):
        one = core.backbone(graph)
        alone = mean_average_distance(one.final, one.topology.batch, 1).mean()
        assert abs(float(found[index] - alone)) < EXACT


def test_energies_in_every_frame_that_might_be_drawn():
    subject = all_faenets()["FAENet, 2D stochastic"]
    network = subject.make(1).double().eval()
    graphs = [ring(5), ring(7)]
    found = subject.answers(network, transforms.joined(graphs))
    assert found.shape == (2, 14)
    for index, graph in enumerate(graphs):
        alone = subject.answers(network, graph)[0]
        slots = torch.arange(14) % len(alone)
        torch.testing.assert_close(found[index], alone[slots], rtol=0, atol=EXACT)


@pytest.mark.parametrize("mode", ["direct", "from_energy"])
def test_hydra_form_gives_the_same_numbers(mode):
    options = {
        "regress_forces": mode, "fa_method": "all", "use_pbc": False, "cutoff": CUTOFF,
        "frame_source": "positions", "force_decoder_model_config": {"mlp": {"norm": "layer"}},
    }  # fmt: skip
    network = faenet(**options)
    hydra = hydra_like(network, **options).eval()
    records = [
        Data(
            pos=polygon(n).float(), atomic_numbers=torch.full((n,), 6), natoms=n, sid=n,
            tags=torch.full((n,), 2), cell=20 * torch.eye(3).unsqueeze(0),
        )
        for n in (5, 7, 9, 11)
    ]  # fmt: skip
    batch = data_list_collater(records, otf_graph=True)
    expected, found = network(batch), hydra(batch)
    for key, value in found.items():
        assert torch.equal(value, expected[key]), key
    state = hydra.backbone(batch)
    assert state["node_embedding"].shape[0] == 32
    embedding = state["faenet"].embedding
    assert embedding.final.shape[:2] == (2, 25 + 49 + 81 + 121)
