"""The trainer, built as the host builds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fairchem.core.trainers import base_trainer

import ocp_faenet
import plugin_fixtures as fx
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
