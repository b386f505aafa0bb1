"""Direct IS2RS: targets, symmetry, and the host's metrics (issue 4, point 5)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fairchem.core.common.flags import flags
from fairchem.core.common.utils import build_config, new_trainer_context
from fairchem.core.datasets import data_list_collater

import plugin_fixtures as fx
from ocp_faenet.adapters.plugin import PUBLIC
from ocp_faenet.adapters.positions import relaxed_positions, with_periodicity
from ocp_faenet.metrics import relaxations as scores

CONFIG = Path(__file__).parent.parent / "configs/oc20/emt/is2rs/faenet.yml"
SMALL = {key: value for key, value in fx.TINY.items() if key != "cutoff"}


def records(tiny: Path, n: int = 3, split: str = "val_id") -> list:
    dataset = PUBLIC["CheckedLmdbDataset"]({"src": str(tiny / "is2re" / split / "data.lmdb")})
    return [dataset[i] for i in range(n)]


def test_the_target_is_the_nearest_image(tiny_data):
    for record in records(tiny_data):
        target = relaxed_positions(record, {}).positions
        assert (target - record.pos).norm(dim=1).max() < 3.0
        shifted = record.clone()
        shifts = torch.randint(-2, 3, record.pos.shape, generator=torch.Generator().manual_seed(0))
        shifted.pos_relaxed = record.pos_relaxed + shifts.float() @ record.cell[0]
        assert (shifted.pos_relaxed - record.pos_relaxed).abs().max() > 1.0  # control
        torch.testing.assert_close(
            relaxed_positions(shifted, {}).positions, target, atol=1e-4, rtol=0
        )
        assert "positions" not in record
    del record.pos_relaxed
    with pytest.raises(ValueError, match=rf"sid={record.sid} has no 'pos_relaxed'"):
        relaxed_positions(record, {})
    with pytest.raises(ValueError, match="takes no options"):
        relaxed_positions(record, {"mic": True})


def test_the_baseline_moves_nothing_and_learns_nothing(tiny_data):
    batch = data_list_collater([relaxed_positions(record, {}) for record in records(tiny_data)])
    model = PUBLIC["Baseline"]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    for _ in range(2):
        out = model(batch)
        torch.testing.assert_close(out["positions"], batch.pos, atol=0, rtol=0)
        assert out["energy"].shape == (3, 1)
        assert out["forces"].shape == batch.pos.shape
        assert not out["energy"].any()
        assert not out["forces"].any()
        loss = (out["positions"] - batch.positions).norm() + (out["energy"] - 1).norm()
        assert loss > 1
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def heads(**options):
    torch.manual_seed(0)
    settings = {"frame_averaging": "2D", "fa_method": "all", "otf_graph": True, **options}
    backbone = PUBLIC["FAENetBackbone"](**{**fx.TINY, **settings}).double().eval()
    head = PUBLIC["FAENetPositionsHead"](backbone, scale=1.0).double().eval()
    return lambda batch: head(batch, backbone(batch))["positions"]


def turned(record, angle: float = 0.8):
    c, s = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    out = record.clone()
    out.pos, out.cell = record.pos.double() @ turn, record.cell.double() @ turn
    return out, turn


@pytest.mark.parametrize(("options", "exact"), [({}, True), ({"frame_averaging": None}, False)])
def test_predictions_turn_with_the_structure(tiny_data, options, exact):
    if not exact:
        options = {**options, "fa_method": None}
    predict, record = heads(**options), records(tiny_data, 1)[0]
    record.pos, record.cell = record.pos.double(), record.cell.double()
    other, turn = turned(record)
    with torch.no_grad():
        one, two = (predict(data_list_collater([r], otf_graph=True)) for r in (record, other))
    error = float((one @ turn - two).abs().max())
    assert (error < 1e-10) is exact
    assert float((one - record.pos).abs().max()) > 1e-3


def test_atoms_that_are_not_seen_stay(tiny_data):
    batch = data_list_collater(records(tiny_data), otf_graph=True)
    batch.pos, batch.cell = batch.pos.double(), batch.cell.double()
    with torch.no_grad():
        moved = heads(graph_rewiring="remove-tag-0")(batch) - batch.pos
    assert float(moved[batch.tags == 0].abs().max()) == 0.0
    assert float(moved[batch.tags > 0].abs().max()) > 1e-3


def test_trained_from_yaml_and_scored_by_the_host(tiny_data, tmp_path):
    command = ["--mode=train", f"--config-yml={CONFIG}", f"--run-dir={tmp_path}", "--cpu"]
    command += ["--timestamp-id=run", "--debug", "--optim.batch_size=8", "--optim.max_epochs=4"]
    command += ["--seed=0", "--optim.lr_initial=0.01", "--optim.T_max=24"]
    for split, folder in {"train": "train", "val": "val_id"}.items():
        command.append(f"--dataset.{split}.src={tiny_data / 'is2re' / folder / 'data.lmdb'}")
    config = build_config(*flags.get_parser().parse_known_args(command))
    config["model"]["backbone"] |= SMALL
    with new_trainer_context(config=config) as context:
        trainer = context.trainer
        context.task.setup(trainer)
        before = trainer.validate(disable_tqdm=True)
        context.task.run()
        after = trainer.validate(disable_tqdm=True)
        distance = []
        for batch in trainer.val_loader:
            with torch.no_grad():
                found = trainer._forward(batch)["positions"]
            for graph in range(batch.num_graphs):
                free = (batch.batch == graph) & (batch.fixed == 0)
                cell = batch.cell[graph].numpy()
                distance.append(
                    scores.mean_distance(found[free].numpy(), batch.pos_relaxed[free].numpy(), cell)
                )
    adwt = scores.average_below(distance, scores.DISTANCES)
    name = "positions_average_distance_within_threshold"
    assert after[name]["metric"] == pytest.approx(adwt, abs=1e-4)
    assert after["positions_mae"]["metric"] < before["positions_mae"]["metric"]
    assert 0.0 < np.mean(distance) < 1.0


def test_one_periodicity_for_all(tiny_data):
    batch = data_list_collater(records(tiny_data), otf_graph=True)
    assert with_periodicity(batch).pbc.tolist() == [True] * 3
    assert "pbc" not in batch
    batch.pbc = torch.tensor([[True, True, False]] * 3)
    assert with_periodicity(batch).pbc.tolist() == [True, True, False]
    batch.pbc[0, 2] = True
    with pytest.raises(ValueError, match="unlike periodicity"):
        with_periodicity(batch)


def test_a_length_that_is_none():
    backbone = PUBLIC["FAENetBackbone"](**fx.TINY)
    with pytest.raises(ValueError, match=r"scale: 0.0 is not a length"):
        PUBLIC["FAENetPositionsHead"](backbone, scale=0.0)
