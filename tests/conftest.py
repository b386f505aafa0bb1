"""Fixtures that several test modules share."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def no_process_group_left() -> Iterator[None]:
    """The host leaves its process group open when a run fails, and its port in the environment."""
    yield
    group = sys.modules.get("torch.distributed")
    if group is not None and group.is_available() and group.is_initialized():
        group.destroy_process_group()
    for key in ("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(key, None)


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """What verbs change for their process: the level of the log, and who stands for trainers."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)
    runner = sys.modules.get("ocp_faenet.adapters.runner")
    if runner is not None:
        from fairchem.core.trainers import OCPTrainer

        for name in runner.STOCK_TRAINERS:
            runner.registry.mapping["trainer_name_mapping"][name] = OCPTrainer


@pytest.fixture
def no_garbage() -> None:
    """For tests that fork: garbage of tests before them is collected here, not in the child.

    A process group of gloo waits for its threads when it is destroyed, and a child has none.
    """
    gc.collect()


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """The embedded set `tiny`, made once per session whatever the number of test workers.

    ``OCP_FAENET_TINY`` names a folder that holds it already.
    """
    ready = os.environ.get("OCP_FAENET_TINY")
    if ready:
        return Path(ready)

    from plugin_fixtures import once, one_thread  # the host is imported where it is needed

    def build(folder: Path) -> None:
        command = [str(Path(sys.executable).with_name("ocp-faenet")), "data", "emt"]
        command += [str(folder / "data"), "--preset", "tiny"]
        made = subprocess.run(command, env=one_thread(), capture_output=True, text=True)
        assert made.returncode == 0, made.stderr[-2000:]

    return once(shared_folder(tmp_path_factory) / "tiny", build) / "data"


@pytest.fixture(scope="session")
def dense_tiny(tiny_data, tmp_path_factory) -> Path:
    """The tiny set with the splits of its dense part, which are not in the one that is shared."""
    from ocp_faenet.data.dense_prepare import prepare_dense

    data = tmp_path_factory.mktemp("prepared") / "tiny"
    data.mkdir()
    for path in tiny_data.iterdir():
        (data / path.name).symlink_to(path)
    prepare_dense(data)
    return data


@pytest.fixture(scope="session")
def accident_data(tmp_path_factory) -> Path:
    """``train/`` and ``test/data.lmdb`` of the runs that meet with accidents."""
    import faults
    from plugin_fixtures import once

    return once(shared_folder(tmp_path_factory) / "accident-data", faults.write_data)


@pytest.fixture(scope="session")
def undisturbed(accident_data, tmp_path_factory) -> Path:
    """Run ``whole`` of `faults`, to which nothing happens."""
    import faults
    from plugin_fixtures import once

    def build(folder: Path) -> None:
        config = faults.write_config(folder / "config.yml", accident_data)
        given = faults.arguments(config, folder, "whole")
        assert faults.run(given, folder / "log.txt") == 0, (folder / "log.txt").read_text()[-3000:]

    return once(shared_folder(tmp_path_factory) / "undisturbed", build)


def shared_folder(tmp_path_factory) -> Path:
    """A folder that all test workers of this run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture
def same_weights() -> None:
    """How steep weights are decides on tables: the same ones in whatever order tests run."""
    import torch

    torch.manual_seed(1)


@pytest.fixture
def kernels() -> ctypes.CDLL:
    """The compiled kernels; skips without a compiler, fails where one is no use."""
    from native_cases import required_kernels

    return required_kernels()


@pytest.fixture(params=["torch", "compiled"])
def form(request, monkeypatch):
    """The convolution with and without the compiled kernels."""
    from ocp_faenet.nn import native
    from ocp_faenet.nn.convolution import convolve

    if request.param == "torch":
        monkeypatch.setattr(native, "library", lambda: None)
    else:
        request.getfixturevalue("kernels")
    return convolve


@pytest.fixture
def config_yml(tmp_path) -> Path:
    """A sound configuration for ``ocp-faenet main``, with its data beside it."""
    import yaml

    import plugin_fixtures as fx
    from grid_cases import MODEL

    path = tmp_path / "config.yml"
    fx.write_splits(tmp_path / "data", train=4, test=2)
    path.write_text(yaml.safe_dump(fx.run_config(tmp_path / "data", MODEL), sort_keys=False))
    return path
