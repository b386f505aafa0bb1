"""Costs that are counted, and what is derived from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional as F

from ocp_faenet.adapters.record_costs import record_costs
from ocp_faenet.cli import main
from ocp_faenet.cli import scaling as scaling_module
from ocp_faenet.models import costs as costs_module
from ocp_faenet.models.config import FAENetConfig, ForceMode, MPType
from ocp_faenet.models.costs import Costs, Subject, Traffic, count, inference
from ocp_faenet.models.scaling import GPUS, Workload, project

SMALL = FAENetConfig(
    hidden_channels=16,
    num_filters=16,
    num_interactions=2,
    num_gaussians=8,
    tag_hidden_channels=4,
    pg_hidden_channels=4,
    phys_embeds=False,
    mp_type=MPType.UPDOWNSCALE_BASE,
    regress_forces=ForceMode.DIRECT_WITH_GRADIENT_TARGET,
)
COSTS = Costs(gflop=2.0, bytes_fixed=3e9, bytes=1e9, memory_fixed=5e6, memory=7e6, operations=1000)


def test_traffic_of_known_operations() -> None:
    a, b = torch.zeros(10, 20), torch.zeros(20, 30)
    with Traffic() as traffic:
        product = a @ b  # takes 200 and 600, makes 300
        product.t()[3:7].unsqueeze(0)  # views
        product.add_(1)  # takes 300, makes none of its own
        F.relu(product.view(-1))  # 300 each way
    assert traffic.operations == 3
    assert traffic.bytes == 4 * (200 + 600 + 300 + 300 + 300 + 300)


def test_costs_of_a_step_are_its_fixed_part_and_its_samples() -> None:
    subject = Subject(SMALL, 24, 20)
    found = count(subject)
    module = subject.module()
    run = costs_module.training_step(module, subject.batch(24))
    run()
    with Traffic() as traffic:
        run()
    assert traffic.bytes == pytest.approx(found.bytes_fixed + 24 * found.bytes, rel=0.05)
    assert traffic.operations == found.operations
    once = count(subject, inference)
    assert found.gflop > 3 * once.gflop > 0
    assert found.bytes > once.bytes
    assert found.memory > once.memory > 0
    energy_alone = count(replace(subject, config=replace(SMALL, regress_forces=None)))
    assert energy_alone.gflop < found.gflop


def work(batch: int = 128) -> Workload:
    return Workload("set", SMALL, samples=12800, epochs=2, batch=batch, neighbors=20)


def test_projection_by_hand() -> None:
    gpu = replace(GPUS["a100"], gflops=1000.0, bandwidth=1e12, link=1e9, network=1e8)
    one = project(work(), COSTS, 10**6, gpu, 1, launch=1e-6)
    assert one.work == pytest.approx(0.256)
    assert one.traffic == pytest.approx(0.131)
    assert one.launches == pytest.approx(1e-3)
    assert one.exchange == 0
    assert (one.steps, one.limit) == (200, "arithmetic")
    assert one.total == pytest.approx(200 * 0.256)
    assert one.rate == pytest.approx(128 / 0.256)
    assert one.memory == 16e6 + 5e6 + 128 * 7e6
    node = project(work(), COSTS, 10**6, gpu, 8, launch=1e-6)
    assert (node.batch, node.steps) == (16, 200)
    assert node.exchange == pytest.approx(2 * 7 / 8 * 4e6 / 1e9)
    many = project(work(), COSTS, 10**6, gpu, 64, launch=1e-6)
    assert many.exchange == pytest.approx(2 * 63 / 64 * 4e6 / 1e8)
    assert many.limit == "exchange of gradients"
    assert project(work(), COSTS, 10**6, gpu, 1, launch=1).limit == "launching"
    wide = project(work(), COSTS, 10**6, gpu, 64, launch=1e-6, batch=128)
    assert (wide.batch, wide.steps) == (128, 200 / 64)
    half = project(work(), COSTS, 10**6, gpu, 1, launch=1e-6, share=0.5)
    assert half.hours == pytest.approx(2 * one.hours)


def test_records_with_edges_cost_more() -> None:
    with_edges, without = (record_costs(30, edges=edges, count=4) for edges in (True, False))
    assert with_edges[1] > 10 * without[1]
    assert min(with_edges[0], without[0]) > 0


def test_the_page_holds_what_the_command_prints() -> None:
    root = Path(__file__).parent.parent
    costs = root / "docs" / "results" / "scaling.json"
    done = CliRunner().invoke(main, ["scaling", "--costs", str(costs)])
    assert done.exit_code == 0, done.output
    assert done.output.strip() in (root / "docs" / "scaling.md").read_text()


def tables(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("|")]


def test_command(monkeypatch, tmp_path) -> None:
    sets = tuple(replace(work(), name=name) for name in ("IS2RE-all", "other"))
    monkeypatch.setattr(scaling_module, "WORKLOADS", sets)
    monkeypatch.setattr(scaling_module, "ATOMS", 20)
    monkeypatch.setattr(scaling_module, "_loader_costs", dict)
    file = tmp_path / "scaling.json"
    arguments = ["scaling", "--launch-us", "0.01", "--json", str(file)]
    done = CliRunner().invoke(main, [*arguments, "--rate", "other=50"])
    assert done.exit_code == 0, done.output
    content = json.loads(file.read_text())
    rows = [row for row in content["rows"] if row["set"] == "other"]
    assert [(row["gpus"], row["batch"]) for row in rows] == [(1, 128), (8, 16), (64, 2), (64, 128)]
    assert rows[0]["rate"] == pytest.approx(50)  # what was measured is what is planned with
    assert rows[0]["hours"] == pytest.approx(2 * 12800 / 50 / 3600)
    again = CliRunner().invoke(main, [*arguments, "--costs", str(file), "--rate", "other=50"])
    assert tables(again.output)[-8:] == tables(done.output)[-8:]
    for text, reason in (("{}", "'costs'"), ('{"costs": {}, "loader": {}}', "nothing on")):
        (tmp_path / "bad.json").write_text(text)
        bad = CliRunner().invoke(main, ["scaling", "--costs", str(tmp_path / "bad.json")])
        assert (bad.exit_code, bad.output.count("\n")) == (2, 1)
        assert reason in bad.output
    for rate in ("other", "nothing=3", "other=-1", "other=x"):
        bad = CliRunner().invoke(main, [*arguments, "--rate", rate])
        assert (bad.exit_code, bad.output.count("\n")) == (2, 1)
        assert f"--rate '{rate}'" in bad.output
