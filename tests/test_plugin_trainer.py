"""The trainer, built as the host builds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fairchem.core.modules.scheduler import LRScheduler
from fairchem.core.trainers import base_trainer

import ocp_faenet
import plugin_fixtures as fx
from ocp_faenet.adapters.schedules import fitted_schedule
from plugin_cases import FRAMED


class TestTrainer:
    """What `FAENetTrainer` adds, on an instance built as the host builds it."""

    def build(self, folder: Path, **sections: Any) -> Any:
        """A trainer on a small data set."""
        if not (folder / "train").exists():
            fx.write_splits(folder, train=3, test=2)
        model = sections.pop("model", {"name": "ocp_faenet.FAENet", **FRAMED})
        config = fx.run_config(folder, model, **sections)
        config["outputs"].pop("forces")
        keys = ("outputs", "dataset", "evaluation_metrics", "model")
        return ocp_faenet.FAENetTrainer(
            **{key: config[key] for key in keys}, optimizer=config["optim"], task={},
            loss_functions=config["loss_functions"][:1], identifier="", local_rank=0,
            logger="tensorboard", cpu=True, seed=0, run_dir=str(folder),
        )  # fmt: skip

    def test_a_checkpoint_survives_the_death_of_its_successor(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trainer = self.build(tmp_path)
        path = Path(trainer.save())
        assert path.name == "checkpoint.pt"
        good = path.read_bytes()

        def killed(state: Any, checkpoint_dir: str, checkpoint_file: str) -> str:
            (Path(checkpoint_dir) / checkpoint_file).write_bytes(good[:100])
            raise KeyboardInterrupt

        monkeypatch.setattr(base_trainer, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            trainer.save()
        assert path.read_bytes() == good

    def test_a_checkpoint_names_its_model_so_that_any_process_finds_it(
        self, tmp_path: Path
    ) -> None:
        heads = {"energy": {"module": "faenet_energy_head"}}
        hydra = {"backbone": {"model": "faenet_backbone", **FRAMED}, "heads": heads}
        for model, expected in (
            ({"name": "faenet", **FRAMED}, {"ocp_faenet.FAENet"}),
            (
                {"name": "hydra", **hydra, "pass_through_head_outputs": True},
                {"hydra", "ocp_faenet.FAENetBackbone", "ocp_faenet.FAENetEnergyHead"},
            ),
        ):
            trainer = self.build(tmp_path, model=model)
            saved = torch.load(trainer.save(), weights_only=False)["config"]["model"]
            backbone = saved.get("backbone", {}).get("model")
            head = saved.get("heads", {}).get("energy", {}).get("module")
            assert {saved["name"], backbone, head} - {None} == expected
            assert saved.get("cutoff", fx.CUTOFF) == fx.CUTOFF

    def test_run_ids_are_unique(self) -> None:
        cpu = torch.device("cpu")
        ids = {ocp_faenet.FAENetTrainer._get_timestamp(cpu, "study") for _ in range(20)}
        assert len(ids) == 20
        assert all(name.endswith("-study") for name in ids)

    def test_a_split_of_which_nothing_is_left(self, tmp_path: Path) -> None:
        fx.write_splits(tmp_path, train=3, test=2)
        dataset = fx.run_config(tmp_path, {})["dataset"]
        dataset["val"]["max_atoms"] = 1
        with pytest.raises(ValueError, match=r"dataset\.val: no record is left"):
            self.build(tmp_path, dataset=dataset)

    def test_a_schedule_without_a_length_ends_with_the_run(self, tmp_path: Path) -> None:
        asked = {"batch_size": 2, "num_workers": 0, "optimizer": "AdamW", "lr_initial": 1e-2}
        asked |= {"max_epochs": 3, "scheduler": "CosineAnnealingLR", "eval_every": 100}
        trainer = self.build(tmp_path, optim=asked)
        trainer.train()
        assert trainer.step == trainer.config["optim"]["T_max"] == 6
        assert trainer.scheduler.get_lr() < 1e-6
        # The control: one that was meant for twice the steps ends at a high rate.
        trainer = self.build(tmp_path, optim={**asked, "T_max": 12})
        trainer.train()
        assert trainer.scheduler.get_lr() > 1e-3

    def test_a_schedule_shorter_than_the_run(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        asked = {"optimizer": "AdamW", "lr_initial": 1e-2, "max_epochs": 3, "batch_size": 2}
        cycle = {**asked, "num_workers": 0, "scheduler": "OneCycleLR", "max_lr": 1e-2}
        with pytest.raises(ValueError, match=r"optim\.total_steps: 5, but this run takes 6 steps"):
            self.build(tmp_path, optim={**cycle, "total_steps": 5})
        for given in ({}, {"total_steps": 6}):
            trainer = self.build(tmp_path, optim={**cycle, **given})
            assert trainer.scheduler.scheduler.total_steps == 6
        assert "optim.total_steps" not in caplog.text
        self.build(tmp_path, optim={**cycle, "total_steps": 7})
        assert "optim.total_steps: 7, but this run takes 6 steps" in caplog.text

    def test_a_resumed_run_keeps_the_schedule_of_its_checkpoint(self, tmp_path: Path) -> None:
        asked = {"optimizer": "AdamW", "lr_initial": 1e-2, "max_epochs": 2, "batch_size": 2}
        cycle = {**asked, "num_workers": 0, "scheduler": "OneCycleLR", "max_lr": 1e-2}
        first = self.build(tmp_path, optim=cycle)
        first.train()
        path = first.save()
        self.build(tmp_path, optim=cycle).load_checkpoint(path)
        longer = self.build(tmp_path, optim={**cycle, "max_epochs": 3})
        with pytest.raises(
            ValueError, match=r"checkpoint\.pt: total_steps: 4, but this run takes 6"
        ):
            longer.load_checkpoint(path)
        longer.load_checkpoint(path, inference_only=True)


def test_a_schedule_where_nothing_is_trained():
    cycle = {"scheduler": "OneCycleLR", "max_lr": 1e-2}
    weights = [torch.nn.Parameter(torch.zeros(1))]
    LRScheduler(torch.optim.AdamW(weights), fitted_schedule(cycle, None))
    assert fitted_schedule({**cycle, "total_steps": 9}, None)["total_steps"] == 9
    for left in ({"scheduler": "Null"}, {"warmup_steps": 3}, {**cycle, "steps_per_epoch": 2}):
        assert fitted_schedule(left, 4) == left
