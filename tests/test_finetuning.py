"""Pre-training, fine-tuning, learning rates by layer (issue 5, points 3 and 8)."""

from __future__ import annotations

import copy

import pytest
import torch
from fairchem.core.common import distutils
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import load_model_and_weights_from_checkpoint, setup_imports

import ocp_faenet
from ocp_faenet.adapters.finetuning import (
    check_finetuning,
    layer_depths,
    layer_groups,
    layered_optimizer,
)
from plugin_fixtures import TINY, slab_record, write_lmdb

BACKBONE = {
    "model": "ocp_faenet.FAENetBackbone", **TINY, "num_interactions": 3, "frame_averaging": "2D",
    "fa_method": "stochastic",
}  # fmt: skip
DECODER = {"force_decoder_model_config": {"mlp": {"hidden_channels": 8, "norm": "layer"}}}
PRETRAINED = {
    "name": "hydra", "backbone": BACKBONE, "pass_through_head_outputs": True, "otf_graph": False,
    "heads": {"denoising": {"module": "ocp_faenet.FAENetDenoisingHead", **DECODER}},
}  # fmt: skip
DENOISE = {"level": "atom", "train_on_free_atoms": False, "eval_on_free_atoms": False}
ENERGY = {"energy": {"module": "ocp_faenet.FAENetEnergyHead"}}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("finetuning")
    write_lmdb(root / "data.lmdb", [slab_record(seed, edges=True) for seed in range(6)])
    unlabelled = [slab_record(seed, edges=True) for seed in range(6)]
    for record in unlabelled:
        del record["y"], record["force"], record["fixed"]
    write_lmdb(root / "bare" / "data.lmdb", unlabelled)
    return root


def trainer(place, model, name, trainer="faenet", normalizer=None, **changes):
    """A trainer of one epoch of three steps; energies where the model has such a head."""
    setup_imports()
    assert ocp_faenet.FAENetTrainer is registry.get_trainer_class("faenet")
    denoises = "denoising" in (model["heads"] or ENERGY)
    target = "denoising" if denoises else "energy"
    src = place / "bare" / "data.lmdb" if denoises else place / "data.lmdb"
    section = {"src": str(src), "format": "lmdb"}
    section |= {"transforms": {"denoising": {"std": 0.1}}} if denoises else {
        "key_mapping": {"y": "energy"}, "transforms": {}
    }  # fmt: skip
    if normalizer is not None:
        section["transforms"] = {"normalizer": {"energy": normalizer}}
    optim = {
        "batch_size": 2, "eval_batch_size": 2, "num_workers": 0, "lr_initial": 1e-2,
        "max_epochs": 1, "scheduler": "CosineAnnealingLR", "T_max": 3, "optimizer": "AdamW",
    }  # fmt: skip
    fn = "ocp_faenet.DenoisingLoss" if denoises else "mae"
    metric = "denoising_l2mae" if denoises else "energy_mae"
    made = registry.get_trainer_class(trainer)(
        task={},
        model=copy.deepcopy(model),
        outputs={target: DENOISE if denoises else {"level": "system"}},
        dataset={"train": section, "val": section},
        optimizer=optim | changes,
        loss_functions=[{target: {"fn": fn, "coefficient": 1}}],
        evaluation_metrics={
            "metrics": {target: [metric.removeprefix("energy_")]}, "primary_metric": metric,
        },
        identifier=name,
        timestamp_id=name,
        run_dir=str(place),
        local_rank=0,
        seed=0,
        logger="tensorboard",
        cpu=True,
        name="ocp",
    )  # fmt: skip
    return made, place / "checkpoints" / name / "checkpoint.pt"


@pytest.fixture(scope="module")
def pretrained(place):
    """A checkpoint of the stock trainer, from structures without labels."""
    distutils.cleanup()
    made, path = trainer(place, PRETRAINED, "pretrain", "ocp")
    made.train(disable_eval_tqdm=True)
    assert made.best_val_metric < 1e9
    return path


def finetune(path, **model):
    config = {key: value for key, value in PRETRAINED.items() if key not in ("backbone", "heads")}
    return {
        **config,
        "finetune_config": {"starting_checkpoint": str(path)},
        "heads": ENERGY,
        **model,
    }


def weights(network):
    return {key: value.detach().clone() for key, value in network.named_parameters()}


@pytest.mark.parametrize("frozen", [False, True])
def test_fine_tuning_starts_from_the_backbone_and_opens_without_it(place, pretrained, frozen):
    start = torch.load(pretrained, weights_only=False)["state_dict"]
    moved = place / f"start{frozen}.pt"
    moved.write_bytes(pretrained.read_bytes())
    model = finetune(moved, freeze_backbone=frozen)
    made, path = trainer(place, model, f"tuned{frozen}", layer_lr_decay=0.5)
    before = weights(made._unwrapped_model)
    backbone = [key for key in before if key.startswith("backbone.")]
    assert backbone
    assert all(torch.equal(before[key], start[key]) for key in backbone)
    assert int(made._unwrapped_model.backbone.seeds.training_passes) == 0
    made.train(disable_eval_tqdm=True)
    after = weights(made._unwrapped_model)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert any(key.startswith("output_heads") for key in changed)
    assert changed.isdisjoint(backbone) is frozen
    moved.unlink()
    again = load_model_and_weights_from_checkpoint(str(path))
    assert all(torch.equal(value, after[key]) for key, value in weights(again).items())
    assert "finetune_config" not in torch.load(path, weights_only=False)["config"]["model"]


def test_heads_that_are_taken_over_keep_their_scale(place):
    """Fine-tuning begins at the predictions of its start, whatever its own data's scale is."""
    model = {**PRETRAINED, "heads": ENERGY}
    start, path = trainer(place, model, "energies", normalizer={"mean": 10.0, "stdev": 2.0})
    start.train(disable_eval_tqdm=True)

    def energies(made):
        found = made.predict(made.val_loader, results_file=None, disable_tqdm=True)
        return dict(zip(found["ids"], map(float, found["energy"]), strict=True))

    expected, other = energies(start), {"mean": 3.0, "stdev": 0.5}
    distutils.cleanup()
    tuned, again = trainer(place, finetune(path, heads=None), "goes-on", normalizer=other)
    assert energies(tuned) == pytest.approx(expected, abs=1e-5)
    tuned.train(disable_eval_tqdm=True)
    saved = torch.load(again, weights_only=False)["normalizers"]["energy"]
    assert (float(saved["mean"]), float(saved["rmsd"])) == (10.0, 2.0)
    distutils.cleanup()
    anew, _ = trainer(place, finetune(path), "new-heads", normalizer=other)
    assert float(anew.normalizers["energy"].mean) == 3.0
    assert energies(anew) != pytest.approx(expected, abs=1e-1)


def test_layers_learn_at_their_own_rates(pretrained):
    network = load_model_and_weights_from_checkpoint(str(pretrained))
    groups = layer_groups(network.named_parameters(), 1.0, 0.5, weight_decay=0.1,
                          without_decay=["bias"])  # fmt: skip
    rate = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    named = dict(network.named_parameters())
    assert len(rate) == len(named)
    assert groups[0]["lr"] == 1.0, "the host logs the rate of the first group: the heads'"
    for key, expected in (
        ("output_heads.", 1.0), ("interactions.2.", 0.5), ("interactions.0.", 0.125),
        ("atom_embedding.", 0.0625), ("edge_embedding.", 0.0625),
    ):  # fmt: skip
        found = {rate[id(p)] for name, p in named.items() if key in name}
        assert found == {(expected, 0.1), (expected, 0.0)}, key
    assert layer_depths(["core.backbone.interactions.0.up.bias", "core.energy_head.x"]) == {
        "core.backbone.interactions.0.up.bias": 1, "core.energy_head.x": 2
    }  # fmt: skip
    optimizer = layered_optimizer(network, {"lr_initial": 1e-3, "layer_lr_decay": 0.5})
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3 * 0.5**k for k in range(5)}
    for value, message in ((0, "above 0 and at most 1"), (1.5, "at most 1"), (True, "a factor")):
        with pytest.raises(ValueError, match=message):
            layer_groups(network.named_parameters(), 1.0, value)
    with pytest.raises(ValueError, match="no interactions; it needs a FAENet"):
        layer_groups(torch.nn.Linear(2, 2).named_parameters(), 1.0, 0.5)
    with pytest.raises(ValueError, match="OneCycleLR sets one max_lr"):
        layered_optimizer(network, {"layer_lr_decay": 0.5, "scheduler": "OneCycleLR"})


def test_a_checkpoint_that_cannot_be_started_from_is_one_line(place, pretrained):
    check_finetuning(finetune(pretrained))
    check_finetuning(PRETRAINED)
    (place / "text.pt").write_text("no checkpoint")
    plain = {"config": {"model": {"name": "ocp_faenet.FAENet", **TINY}}, "state_dict": {}}
    torch.save(plain, place / "plain.pt")
    for model, message in (
        (finetune(place / "nowhere.pt"), "nowhere.pt: no such file; give the .pt file"),
        (finetune(place / "text.pt"), "text.pt: not a checkpoint of the host"),
        (finetune(place / "plain.pt"), "holds a ocp_faenet.FAENet, not a hydra model"),
        (finetune(pretrained, backbone=BACKBONE), "would train a new backbone and not use"),
        (finetune(pretrained, name="ocp_faenet.FAENet"), "needs model.name: hydra"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            check_finetuning(model)
        assert "\n" not in str(caught.value)
