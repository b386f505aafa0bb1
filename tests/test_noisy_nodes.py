"""Noisy Nodes and denoising: noise, targets, decoder, losses (issue 5, points 1, 2, 7 and 8)."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import ase.geometry
import numpy as np
import pytest
import torch
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import load_config
from fairchem.core.datasets import data_list_collater
from fairchem.core.models.base import HydraModel
from fairchem.core.modules.evaluator import Evaluator
from fairchem.core.modules.loss import DDPLoss
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import ocp_faenet
from ocp_faenet.adapters.frames import frame_averaging
from ocp_faenet.adapters.noise import (
    OFFSET,
    SPECIES,
    TARGET,
    check_noise,
    denoising,
    noisy_nodes,
)
from ocp_faenet.adapters.preflight import split_sections
from ocp_faenet.adapters.rewiring import graph_rewiring
from ocp_faenet.geometry.images import minimum_image
from ocp_faenet.geometry.rotations import random_rotations
from ocp_faenet.models.denoising import WeightSchedule, weighted_gradient
from plugin_fixtures import TINY, slab_record

pytestmark = pytest.mark.usefixtures("no_garbage")  # they fork

CONFIG = Path(__file__).parent.parent / "configs" / "oc20" / "emt" / "is2re" / "faenet_noisy.yml"
HEADS = {
    "energy": {"module": "ocp_faenet.FAENetEnergyHead"},
    "denoising": {
        "module": "ocp_faenet.FAENetDenoisingHead",
        "force_decoder_model_config": {"mlp": {"hidden_channels": 16, "norm": "layer"}},
    },
}


def record(seed: int = 1, *, wrap: bool = True):
    """A slab whose relaxed positions are 0.1 Å away, one of them written in the next cell."""
    data = slab_record(seed, edges=True)
    step = torch.randn(data.pos.shape, generator=torch.Generator().manual_seed(seed)) * 0.1
    data.pos_relaxed = data.pos + torch.where(data.fixed.bool()[:, None], 0.0, step)
    if wrap:
        data.pos_relaxed[-1] += data.cell[0, 0] - 2 * data.cell[0, 1]
    return data


def hydra(seed: int = 0, head: dict | None = None, **backbone) -> HydraModel:
    """A small model with an energy and a denoising head."""
    torch.manual_seed(seed)
    assert ocp_faenet.FAENetDenoisingHead is registry.get_model_class("faenet_denoising_head")
    settings = {**TINY, "frame_averaging": "3D", "fa_method": "all", **backbone}
    heads = copy.deepcopy(HEADS)
    heads["denoising"] |= head or {}
    return HydraModel(
        backbone={"model": "ocp_faenet.FAENetBackbone", **settings},
        heads=heads,
        pass_through_head_outputs=True,
        otf_graph=False,
    )


def collate(records):
    return data_list_collater(records, otf_graph=False)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=9, max_size=9), st.integers(0, 1000))
def test_minimum_image_is_ases(entries, seed):
    cell = np.array(entries).reshape(3, 3)
    lengths = np.linalg.norm(cell, axis=1)
    if lengths.min() < 0.5 or abs(np.linalg.det(cell)) < 0.05 * lengths.prod():
        return
    d = np.random.default_rng(seed).normal(scale=5.0, size=(6, 3))
    _, expected = ase.geometry.find_mic(d, cell, pbc=True)
    found = minimum_image(
        torch.tensor(d), torch.tensor(cell).unsqueeze(0), torch.zeros(6, dtype=torch.int64)
    )
    np.testing.assert_allclose(found.norm(dim=-1), expected, atol=1e-9)
    whole = (found.numpy() - d) @ np.linalg.inv(cell)
    np.testing.assert_allclose(whole, whole.round(), atol=1e-7)


def test_noise_has_the_spread_it_is_said_to_have():
    torch.manual_seed(0)
    data = record()
    free = data.fixed == 0
    made = [noisy_nodes(data, {"target": "initial", "std": 0.3}) for _ in range(300)]
    moved = torch.stack([each.pos - data.pos for each in made])
    assert float(moved[:, free].std()) == pytest.approx(0.3, rel=0.03)
    assert float(moved[:, free].mean()) == pytest.approx(0.0, abs=0.02)
    assert bool((moved[:, ~free] == 0).all()), "fixed atoms do not move"
    assert not torch.equal(made[0].pos, made[1].pos), "fresh noise each time"


@pytest.mark.parametrize("target", ["relaxed", "initial", "noise"])
def test_what_the_head_is_asked_for(target):
    """A head that knows the answer has no error; the answer is that of the definition."""
    torch.manual_seed(1)
    data = record()
    out = noisy_nodes(data, {"target": target, "std": 0.2, "tags": [1, 2]})
    chosen = (data.tags > 0) & (data.fixed == 0)
    assert bool(out[TARGET][~chosen].isnan().all())
    shift = torch.zeros_like(data.pos)
    shift[-1] = 2 * data.cell[0, 1] - data.cell[0, 0]
    answer = {
        "relaxed": data.pos_relaxed + shift - out.pos,
        "initial": data.pos - out.pos,
        "noise": (out.pos - data.pos) / 0.2,
    }[target]
    torch.testing.assert_close(
        (answer + out[OFFSET])[chosen], out[TARGET][chosen], atol=1e-5, rtol=0
    )
    assert float(out[TARGET][chosen].norm(dim=-1).max()) < 1.0, "the nearest image"


def test_interpolation_goes_from_initial_to_relaxed():
    torch.manual_seed(2)
    data, shares = record(wrap=False), []
    way = data.pos_relaxed - data.pos
    for _ in range(200):
        moved = noisy_nodes(data, {"target": "relaxed", "std": 0}).pos - data.pos
        share = float((moved * way).sum() / way.square().sum())
        torch.testing.assert_close(moved, share * way, atol=1e-5, rtol=0)
        shares.append(share)
    assert 0 <= min(shares) < 0.1
    assert 0.9 < max(shares) <= 1
    stays = noisy_nodes(data, {"target": "relaxed", "std": 0, "interpolate": False})
    assert torch.equal(stays.pos, data.pos)


def test_a_share_of_the_structures_stays_as_it_is():
    torch.manual_seed(3)
    data, setting = record(), {"target": "relaxed", "std": 0.1, "probability": 0.25}
    made = [noisy_nodes(data, setting) for _ in range(300)]
    untouched = [torch.equal(each.pos, data.pos) for each in made]
    assert np.mean(untouched) == pytest.approx(0.75, abs=0.08)
    assert all(bool((each[OFFSET] == 0).all()) for each in itertools.compress(made, untouched))


def test_evaluation_sees_no_noise_and_the_same_target():
    """The host evaluates under ``no_grad``, with train's transforms where a split has none."""
    data, setting = record(), {"target": "relaxed", "std": 0.3, "species_classes": [8, 46, 29]}
    noisy = noisy_nodes(data, setting)
    with torch.no_grad():
        clean = noisy_nodes(data, setting)
        loaded = next(iter(DataLoader([data], 1, collate_fn=lambda r: noisy_nodes(r[0], setting))))
        worker = next(
            iter(
                DataLoader(
                    [data], 1, collate_fn=lambda r: noisy_nodes(r[0], setting), num_workers=1
                )
            )
        )
    for each in (clean, loaded, worker):
        assert torch.equal(each.pos, data.pos)
        assert torch.equal(each.atomic_numbers, data.atomic_numbers)
        torch.testing.assert_close(each[TARGET], noisy[TARGET], equal_nan=True)
    assert not torch.equal(noisy.pos, data.pos), "the control: with gradients there is noise"
    model = hydra(head={"species_classes": [8, 46, 29]})
    with pytest.raises(ValueError, match=r"noise in a batch that is evaluated; load it under"):
        model.eval()(collate([noisy]))
    model.eval()(collate([clean]))


def test_same_seed_same_noise_other_rank_and_worker_other_noise(monkeypatch):
    def draw(seed: int, rank: int = 0):
        torch.manual_seed(seed)
        monkeypatch.setattr("ocp_faenet.adapters.seeding.distutils.get_rank", lambda: rank)
        return torch.cat([noisy_nodes(record(), {"std": 0.1}).pos for _ in range(2)])

    assert torch.equal(draw(5), draw(5))
    assert not torch.equal(draw(5), draw(6))
    assert not torch.equal(draw(5), draw(5, rank=1))
    monkeypatch.undo()

    def loaded(workers: int):
        torch.manual_seed(5)
        loader = DataLoader(
            [record()] * 4, 1, collate_fn=lambda r: noisy_nodes(r[0], {}), num_workers=workers
        )
        return [[each.pos for each in loader] for _ in range(2)]

    for workers in (0, 2):
        first, again = loaded(workers), loaded(workers)
        flat, flat_again = [list(itertools.chain(*each)) for each in (first, again)]
        assert all(torch.equal(a, b) for a, b in zip(flat, flat_again, strict=True))
        assert not any(torch.equal(a, b) for a, b in itertools.combinations(flat, 2)), (
            "no two records, workers or epochs share their noise"
        )


def test_edges_and_frames_are_those_of_the_noisy_structure():
    """Stored pairs, vectors from the positions as they are: as if the record had been so."""
    torch.manual_seed(4)
    noisy = noisy_nodes(record(), {"target": "initial", "std": 0.2})
    rebuilt = record()
    rebuilt.pos = noisy.pos.clone()
    model = hydra().train()
    found = model(collate([noisy]))
    for key in (TARGET, OFFSET):
        rebuilt[key] = torch.zeros_like(rebuilt.pos)
    expected = model(collate([rebuilt]))
    assert torch.equal(found["energy"], expected["energy"])
    torch.testing.assert_close(
        found["denoising"] - noisy[OFFSET], expected["denoising"], atol=1e-6, rtol=0
    )
    clean = model(collate([noisy_nodes(record(), {"target": "initial", "std": 0})]))
    assert not torch.allclose(found["energy"], clean["energy"], atol=1e-6)


def test_a_calculator_that_gives_no_edges_gets_those_within_the_cutoff():
    """The host's asks the hydra model, not its backbone, to find them."""
    model, data = hydra().eval(), slab_record(1)
    with torch.no_grad():
        found = model(data_list_collater([data], otf_graph=True))["energy"]
        expected = hydra(otf_graph=True).eval()(collate([record(1)]))["energy"]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="no 'edge_index' in the batch"):
        model.train()(data_list_collater([noisy_nodes(data, {"target": "initial"})]))


@pytest.mark.parametrize("frames", ["all", None])
def test_the_decoder_turns_with_the_structure(frames):
    """Exact with all frames, in float64; without frames it does not (the control)."""
    settings = {"fa_method": frames, "frame_averaging": frames and "3D"}
    model = hydra(**settings).double().eval()
    data, rotation = record(), random_rotations(1, dtype=torch.float64)[0]
    data.pos, data.cell = data.pos.double(), data.cell.double()
    turned = data.clone()
    turned.pos, turned.cell = data.pos @ rotation, data.cell @ rotation
    mirrored = data.clone()
    flip = torch.diag(torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64))
    mirrored.pos, mirrored.cell = data.pos @ flip, data.cell @ flip
    with torch.no_grad():
        here, there, mirror = [model(collate([r]))["denoising"] for r in (data, turned, mirrored)]
    errors = [float((here @ m - v).abs().max()) for m, v in ((rotation, there), (flip, mirror))]
    assert float(here.abs().max()) > 1e-3
    if frames:
        assert max(errors) < 1e-10
    else:
        assert min(errors) > 1e-4


def test_targets_turn_with_an_augmented_record():
    torch.manual_seed(7)
    noisy = noisy_nodes(record(), {"std": 0.1})
    turned = frame_averaging(noisy, {"frame_averaging": "DA", "augmentation": "3D"})
    rotation = torch.linalg.lstsq(noisy.pos, turned.pos).solution
    for key in (TARGET, OFFSET):
        torch.testing.assert_close(
            noisy[key] @ rotation, turned[key], atol=1e-4, rtol=0, equal_nan=True
        )
    assert not torch.allclose(noisy[OFFSET], turned[OFFSET], atol=1e-2)


def test_species_are_corrupted_and_told_back():
    torch.manual_seed(5)
    data, classes = record(), [8, 29, 46]
    setting = {"std": 0.0, "species_probability": 0.5, "species_classes": classes}
    made = [noisy_nodes(data, setting) for _ in range(200)]
    free = data.fixed == 0
    told = torch.stack([each[SPECIES].isfinite().all(-1) for each in made])
    assert float(told[:, free].float().mean()) == pytest.approx(0.5, abs=0.05)
    assert not bool(told[:, ~free].any())
    true = torch.tensor([classes.index(int(z)) for z in data.atomic_numbers])
    for each, hit in zip(made, told, strict=True):
        assert torch.equal(each.atomic_numbers[~hit], data.atomic_numbers[~hit])
        assert torch.equal(each[SPECIES][hit].argmax(-1), true[hit])
    changed = torch.stack([each.atomic_numbers != data.atomic_numbers for each in made])
    assert float(changed[told].float().mean()) == pytest.approx(2 / 3, abs=0.06)


def test_losses_leave_out_atoms_without_target_and_agree_with_their_definitions():
    torch.manual_seed(6)
    pred, target = torch.randn(7, 3, requires_grad=True), torch.randn(7, 3)
    target[2:4] = torch.nan
    rows = [0, 1, 4, 5, 6]
    lengths = [float((pred[i] - target[i]).norm()) for i in rows]
    for name, expected in (
        ("noisy_nodes", np.mean(lengths)),
        ("denoising", np.mean(np.square(lengths))),
        ("ocp_faenet.NoisyNodesLoss", np.mean(lengths)),
    ):
        loss = DDPLoss(name, reduction="mean")(pred, target, natoms=torch.tensor([7]))
        assert float(loss) == pytest.approx(expected, rel=1e-6)
        (gradient,) = torch.autograd.grad(loss, pred)
        assert bool((gradient[2:4] == 0).all())
        assert bool((gradient[rows] != 0).any(-1).all())
    one_hot = torch.eye(3)[[0, 2, 1, 1, 0, 2, 1]].index_fill(0, torch.tensor([3]), torch.nan)
    loss = DDPLoss("species_cross_entropy", reduction="mean")(pred, one_hot, natoms=None)
    kept = [0, 1, 2, 4, 5, 6]
    expected = torch.nn.functional.cross_entropy(pred[kept], one_hot[kept].argmax(-1))
    torch.testing.assert_close(loss, expected)
    nothing = torch.full_like(target, torch.nan)
    loss = DDPLoss("noisy_nodes", reduction="mean")(pred, nothing, natoms=None)
    assert float(loss) == 0.0
    assert bool((torch.autograd.grad(loss, pred)[0] == 0).all())


def test_metrics_are_the_unweighted_losses():
    pred, target = {TARGET: torch.randn(4, 3)}, {TARGET: torch.randn(4, 3)}
    target[TARGET][1] = torch.nan
    names = ["denoising_l2mae", "denoising_square"]
    found = Evaluator(eval_metrics={TARGET: names}).eval(pred, target)
    for name, loss in zip(names, ("noisy_nodes", "denoising"), strict=True):
        expected = DDPLoss(loss, reduction="mean")(pred[TARGET], target[TARGET], natoms=None)
        assert found[name]["metric"] == pytest.approx(float(expected), rel=1e-6)
    target = {SPECIES: torch.eye(3)}
    pred = {SPECIES: torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0]])}
    found = Evaluator(eval_metrics={SPECIES: ["species_accuracy"]}).eval(pred, target)
    assert found["species_accuracy"]["metric"] == pytest.approx(2 / 3)


def test_the_schedule_weighs_what_is_learned():
    schedule = WeightSchedule(start=2.0, end=0.5, steps=10)
    assert [schedule(step) for step in (0, 5, 10, 99)] == [2.0, 1.25, 0.5, 0.5]
    x = torch.randn(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(weighted_gradient(x, 0.25).square().sum(), x)
    torch.testing.assert_close(gradient, 0.25 * 2 * x)

    def gradient_of(start: float):
        model = hydra(head={"weight_schedule": {"start": start, "end": 0.0, "steps": 4}}).train()
        torch.manual_seed(0)
        batch = collate([noisy_nodes(record(), {"target": "initial"})])
        passes = []
        for _ in range(5):
            model.zero_grad()
            model(batch)["denoising"].square().nansum().backward()
            passes.append(model.backbone.core.interactions[0].up.weight.grad.clone())
        return passes

    weighted, plain = gradient_of(1.0), gradient_of(0.0)
    assert float(weighted[0].abs().max()) > 0
    assert all(bool((each == 0).all()) for each in plain)
    torch.testing.assert_close(weighted[2], 0.5 * weighted[0])
    assert bool((weighted[4] == 0).all()), "the schedule is over"


def test_denoising_needs_no_labels_and_repeats_by_seed():
    data = slab_record(1, edges=True)
    for key in ("y", "force", "fixed"):
        del data[key]
    torch.manual_seed(0)
    first, second = (denoising(data, {"std": 0.1}) for _ in range(2))
    assert not torch.equal(first.pos, second.pos)
    torch.testing.assert_close((first.pos - data.pos) / 0.1, first[TARGET], atol=1e-4, rtol=0)
    assert bool((first.fixed == 0).all())
    with torch.no_grad():
        one, two = (denoising(data, {"std": 0.1, "seed": 3}) for _ in range(2))
    assert torch.equal(one.pos, two.pos)
    assert not torch.equal(one.pos, data.pos), "validation of denoising is on noisy structures"
    other = data.clone()
    other.sid = 7
    assert not torch.equal(denoising(other, {"std": 0.1, "seed": 3}).pos, one.pos)
    relaxed = denoising(record(), {"std": 0.1, "positions": "pos_relaxed", "seed": 3})
    torch.testing.assert_close(
        relaxed.pos - 0.1 * relaxed[TARGET], record().pos_relaxed, atol=1e-5, rtol=0
    )
    hydra().eval()(collate([one]))  # is no noise that evaluation refuses


NO_RELAXED = r"record sid=1001: no 'pos_relaxed'; use target: initial or noise"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"std": -0.1}, r"transforms.noisy_nodes: std: -0.1 Å; a standard deviation"),
        ({"target": "relaxed"}, NO_RELAXED),
        ({"target": "better"}, r"target: 'better'; Input should be 'relaxed', 'initial' or"),
        ({"sdt": 0.1}, r"unknown key 'sdt' \(value 0.1\); the nearest known key is 'std'"),
        ({"std": "0.1"}, r"std: '0.1'; Input should be a valid number"),
        ({"tags": [3]}, r"tags: \[3\]; some of 0 subsurface"),
        ({"probability": 2}, r"probability: 2.0 is not in \[0, 1\]"),
        ({"target": "noise", "std": 0}, r"std: 0 with target: noise"),
        ({"species_probability": 0.1}, r"species_probability: 0.1 without species_classes"),
        ({"target": "initial", "species_classes": [8, 46], "free_atoms_only": False,
          "species_probability": 1.0}, r"atomic number \d+ is not among species_classes"),
        ({"species_classes": [8, 8]}, r"species_classes: \[8, 8\] names one twice"),
        (0.1, r"transforms.noisy_nodes: 0.1; give a mapping"),
    ],
)  # fmt: skip
def test_wrong_configurations_are_one_line(config, message):
    data = slab_record(1)
    data.atomic_numbers[0] = 6
    with pytest.raises(ValueError, match=message) as caught:
        noisy_nodes(data, config)
    assert "\n" not in str(caught.value)


def test_wrong_order_and_wrong_heads_are_one_line():
    noisy = noisy_nodes(record(), {"std": 0.1})
    with pytest.raises(ValueError, match="put graph_rewiring before noisy_nodes"):
        graph_rewiring(noisy, "remove-tag-0")
    with pytest.raises(ValueError, match="noisy_nodes and denoising in one list"):
        denoising(noisy, {"std": 0.1})
    framed = record()
    framed.fa_rotations = torch.eye(3).expand(1, 1, 3, 3)
    with pytest.raises(ValueError, match="put noisy_nodes before frame_averaging"):
        noisy_nodes(framed, {"std": 0.1})
    with pytest.raises(ValueError, match=r"species_classes of the head are 2, those of .* 0"):
        hydra(head={"species_classes": [8, 29]}).train()(collate([noisy]))
    with pytest.raises(ValueError, match=r"no 'denoising' in the batch; add transforms"):
        hydra().train()(collate([record()]))
    with pytest.raises(ValueError, match=r"weight_schedule: unknown key 'stop'"):
        hydra(head={"weight_schedule": {"stop": 3}})
    with pytest.raises(ValueError, match=r"weight_schedule.end: -1.0 is negative"):
        hydra(head={"weight_schedule": {"end": -1.0}})


def test_a_split_without_the_target_is_found_before_the_run():
    config, _, _ = load_config(str(CONFIG))
    sections = split_sections(config["dataset"])
    check_noise(sections, config["outputs"])
    del sections["val"]["transforms"]["noisy_nodes"]
    with pytest.raises(ValueError, match=r"dataset.val.transforms: no noisy_nodes or denoising"):
        check_noise(sections, config["outputs"])
    sections["val"]["transforms"] = {"noisy_nodes": {"std": -1}}
    with pytest.raises(ValueError, match=r"dataset.val.transforms.noisy_nodes: std: -1.0 Å"):
        check_noise(sections, config["outputs"])
    sections["val"]["transforms"] = {"frame_averaging": {}, "noisy_nodes": {}}
    with pytest.raises(ValueError, match=r"dataset.val.transforms: put noisy_nodes before frame_a"):
        check_noise(sections, config["outputs"])
