"""Sizes for the host's load balancing, and where the time of an epoch goes."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from fairchem.core.common import data_parallel
from fairchem.core.datasets import LmdbDataset
from fairchem.core.datasets.base_dataset import create_dataset

import plugin_fixtures as fx
from ocp_faenet.adapters import epoch
from ocp_faenet.adapters.datasets import CheckedLmdbDataset
from ocp_faenet.adapters.epoch import LOADING, REST, STAGES, Stages, time_epoch
from ocp_faenet.adapters.runs import RunSpec
from ocp_faenet.cli import main

pytestmark = pytest.mark.usefixtures("no_garbage")  # they fork

NAMES = ("data.0000.lmdb", "data.0001.lmdb", "data.0010.lmdb")


def ocp_faenet_command(*args: Any) -> Any:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def stored_sizes(path: Path) -> dict[str, list[int]]:
    with np.load(path, allow_pickle=False) as stored:
        return {key: stored[key].tolist() for key in stored}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three LMDBs that the host reads as one data set."""
    out = tmp_path / "s2ef"
    for number, name in enumerate(NAMES):
        records = [fx.slab_record(3 * number + k, edges=True) for k in range(1 + number)]
        fx.write_lmdb(out / name, records, length=len(records))
    (out / "metadata.npz").unlink()
    return out


class TestMetadata:
    """``data metadata``."""

    @pytest.mark.parametrize("workers", [1, 2])
    def test_as_the_host_counts(self, folder: Path, workers: int) -> None:
        json_file = folder / "sizes.json"
        command = ["data", "metadata", folder, "--workers", workers, "--json", json_file]
        result = ocp_faenet_command(*command)
        assert result.exit_code == 0, result.output
        dataset = LmdbDataset({"src": str(folder)})
        records = [dataset[i] for i in range(len(dataset))]
        assert stored_sizes(folder / "metadata.npz") == {
            "natoms": [record.natoms for record in records],
            "neighbors": [record.edge_index.shape[1] for record in records],
        }
        assert dataset.get_metadata("natoms", 4) == records[4].natoms  # the host takes it
        assert json.loads(json_file.read_text())[0]["records"] == 6

    def test_the_embedded_data_have_the_same(self, tiny_data: Path, tmp_path: Path) -> None:
        for task in ("is2re", "s2ef"):
            source = tiny_data / task / "val_id"
            copy = tmp_path / task / "val_id"
            copy.mkdir(parents=True)
            shutil.copy(source / "data.lmdb", copy)
            assert ocp_faenet_command("data", "metadata", copy / "data.lmdb").exit_code == 0
            assert stored_sizes(copy / "metadata.npz") == stored_sizes(source / "metadata.npz")

    def test_without_stored_edges(self, tmp_path: Path) -> None:
        records = [fx.slab_record(0, edges=True), fx.slab_record(1)]
        path = fx.write_lmdb(tmp_path / "data.lmdb", records)
        result = ocp_faenet_command("data", "metadata", path, "--force")
        assert "edges: none stored" in result.output
        assert stored_sizes(tmp_path / "metadata.npz") == {"natoms": [5, 9]}

    def test_what_is_there_stays_unless_it_does_not_fit(self, folder: Path) -> None:
        path = folder / "metadata.npz"
        np.savez(path, natoms=np.arange(6), extra=np.arange(6))
        assert "already there" in ocp_faenet_command("data", "metadata", folder).output
        assert "extra" in stored_sizes(path)
        assert ocp_faenet_command("data", "metadata", folder, "--force").exit_code == 0
        assert "extra" not in stored_sizes(path)
        np.savez(path, natoms=np.arange(5))  # of other data
        assert ocp_faenet_command("data", "metadata", folder).exit_code == 0
        assert len(stored_sizes(path)["natoms"]) == 6

    @pytest.mark.parametrize("content", [b"", b"PK"])
    def test_bad_input(self, folder: Path, content: bytes) -> None:
        (folder / "metadata.npz").write_bytes(content)
        result = ocp_faenet_command("data", "metadata", folder)
        assert (result.exit_code, result.output.count("\n")) == (2, 1)
        assert "metadata.npz: unreadable" in result.output
        assert ocp_faenet_command("data", "metadata", folder / "nothing").exit_code == 2
        positionless = fx.slab_record(0)
        del positionless.pos
        fx.write_lmdb(folder / NAMES[1], [positionless])
        result = ocp_faenet_command("data", "metadata", folder, "--force")
        assert result.exit_code == 2
        assert "data.0001.lmdb: record 0 has no 'pos'" in result.output
        assert (folder / "metadata.npz").read_bytes() != b""


class TestBalance:
    """The host's sampler with our sizes: two ranks, each a thread."""

    def ranks(self, dataset: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
        """Atoms of each batch, by rank."""
        barrier, mail = threading.Barrier(2), {}
        names = {}

        def all_gather(tensor: torch.Tensor, **unused: Any) -> list[torch.Tensor]:
            mail[names[threading.get_ident()]] = tensor
            barrier.wait(120)
            found = [mail[0], mail[1]]
            barrier.wait(120)
            return found

        monkeypatch.setattr(data_parallel.distutils, "all_gather", all_gather)
        partition = getattr(data_parallel._balanced_partition, "py_func", None)
        if partition is not None:  # compiling it takes longer than all the rest
            monkeypatch.setattr(data_parallel, "_balanced_partition", partition)
        monkeypatch.setattr(data_parallel.BalancedBatchSampler, "_dist_enabled", lambda self: True)
        batches: list[list[list[int]]] = [[], []]

        def run(rank: int) -> None:
            names[threading.get_ident()] = rank
            sampler = data_parallel.BalancedBatchSampler(
                dataset, batch_size=4, num_replicas=2, rank=rank, device=torch.device("cpu"),
                seed=0, on_error="warn_and_no_balance",
            )  # fmt: skip
            batches[rank] += [[int(i) for i in batch] for batch in sampler]

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(240)
        size = [int(dataset[i].natoms) for i in range(len(dataset))]
        return [[sum(size[i] for i in batch) for batch in rank] for rank in batches]

    def test_atoms_are_shared_out(
        self, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "data.lmdb"
        shutil.copy(tiny_data / "is2re" / "train" / "data.lmdb", path)
        plain = self.ranks(create_dataset({"src": str(path)}, "train"), monkeypatch)
        assert ocp_faenet_command("data", "metadata", path).exit_code == 0
        even = self.ranks(create_dataset({"src": str(path)}, "train"), monkeypatch)
        assert sum(map(sum, plain)) == sum(map(sum, even))
        apart = [sum(abs(a - b) for a, b in zip(*ranks, strict=True)) for ranks in (plain, even)]
        assert apart[1] < 0.5 * apart[0]


class TestStages:
    """Exclusive times, by a clock that is set by hand."""

    def test_nested_and_sealed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [0.0]
        monkeypatch.setattr(epoch.time, "perf_counter", lambda: now[0])
        monkeypatch.setattr(epoch.time, "process_time", lambda: 0.5 * now[0])

        def spend(seconds: float) -> None:
            now[0] += seconds

        stages = Stages()
        spend(1)
        with stages.stage("checks"):
            spend(2)
            stages.around(spend, "unpickling")(4)
            spend(8)
        with stages.stage("validation", sealed=True):
            stages.around(spend, "forward")(16)
        stages.around(spend, "forward")(32)
        fail = stages.around(lambda: 1 / spend(64), "loss")
        with pytest.raises(TypeError):
            fail()
        spend(128)
        stages.charge()
        expected = {"checks": 10, "unpickling": 4, "validation": 16, "forward": 32, "loss": 64}
        assert stages.wall == {**dict.fromkeys(STAGES, 0.0), **expected, REST: 129}
        assert stages.cpu == {name: seconds / 2 for name, seconds in stages.wall.items()}


class TestEpoch:
    """``data time`` on the stock trainer."""

    def config(self, tiny: Path, folder: Path) -> Path:
        config = fx.run_config(folder, {"name": "ocp_faenet.FAENet", **fx.TINY, "otf_graph": True})
        for key in ("outputs",):
            config[key].pop("forces")
        config["loss_functions"].pop()
        train = config["dataset"]["train"]
        train["key_mapping"] = {"y_relaxed": "energy"}
        train["transforms"]["graph_rewiring"] = "remove-tag-0"
        train["src"] = str(tiny / "is2re" / "train" / "data.lmdb")
        config["dataset"] |= {"val": {"src": str(tiny / "is2re" / "val_id" / "data.lmdb")}}
        del config["dataset"]["test"]
        config["evaluation_metrics"]["metrics"].pop("forces")
        config["optim"]["batch_size"] = 8
        path = folder / "config.yml"
        path.write_text(yaml.safe_dump(config))
        return path

    def test_every_stage_is_seen_and_nothing_is_counted_twice(
        self, tiny_data: Path, tmp_path: Path
    ) -> None:
        path = self.config(tiny_data, tmp_path)
        steps: list[int] = []
        times = time_epoch(RunSpec("x", str(path)), 0, lambda: steps.append(1))
        assert (times.samples, times.validated, len(steps)) == (48, 16, 12)
        assert set(times.wall) == set(STAGES)
        for name in (*LOADING, "forward", "loss", "backward", "optimiser", "metrics", "logging",
                     "checkpoint", "validation"):  # fmt: skip
            assert times.wall[name] > 0, name
        assert times.wall["forward"] > times.wall["loss"]
        assert times.wall["validation"] > times.wall["collating"]
        assert times.loader_rate == pytest.approx(48 / times.loader_cpu)
        assert not hasattr(CheckedLmdbDataset._read, "__wrapped__")  # the stopwatches are gone

    def test_command(
        self, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = self.config(tiny_data, tmp_path)
        path.write_text(path.read_text().replace("logger: tensorboard", "logger: wandb"))
        monkeypatch.setattr("wandb.init", lambda **_: pytest.fail("W&B is asked for a run"))
        json_file = tmp_path / "times.json"
        command = ["data", "time", path, "--sample", "6", "--workers", "1", "--json", json_file]
        result = ocp_faenet_command(*command)
        assert result.exit_code == 0, result.output
        assert "6 training structures, 16 in the validation, 1 loader processes" in result.output
        found = json.loads(json_file.read_text())
        assert found["wall"]["unpickling"] == 0  # in the worker
        assert found["wall"]["sampling, waiting"] > 0
        result = ocp_faenet_command("data", "time", tmp_path / "no.yml")
        assert (result.exit_code, result.output.count("\n")) == (2, 1)
        result = ocp_faenet_command("data", "time", path, "--train", tmp_path / "no.lmdb")
        assert result.exit_code == 2
        assert "no.lmdb: no such file" in result.output


def reads_in_a_fork(dataset: LmdbDataset, counts: Any) -> None:
    faulthandler.dump_traceback_later(45)  # where it hangs, if it does
    before = sys.getrefcount(dataset.env)
    for _ in range(100):
        dataset[0]
    counts.put(sys.getrefcount(dataset.env) - before)
    faulthandler.cancel_dump_traceback_later()


def test_a_loader_process_reads_what_its_parent_opened(tmp_path: Path) -> None:
    """lmdb 1.7 and 1.8 keep a reference with each read in a fork, and corrupt its memory: loaders
    with workers end in a segmentation fault."""
    path = fx.write_lmdb(tmp_path / "data.lmdb", [fx.slab_record(0)])
    dataset = LmdbDataset({"src": str(path)})
    context = multiprocessing.get_context("fork")
    counts = context.SimpleQueue()
    child = context.Process(target=reads_in_a_fork, args=(dataset, counts))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert counts.get() == 0
