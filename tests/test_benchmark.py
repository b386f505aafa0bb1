"""Timing side by side: what is counted, what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from ocp_faenet.cli import benchmark_page, benchmark_run
from ocp_faenet.cli.benchmark import benchmark
from ocp_faenet.models import timing
from ocp_faenet.models.contenders import (
    EWALD,
    TAG_0_REMOVED,
    all_faenets,
    usual_faenets,
    without_tag_0,
)
from ocp_faenet.models.published import IS2RE
from ocp_faenet.models.synthetic import oc20_like
from ocp_faenet.models.timing import Contender, count_work, measure
from ocp_faenet.nn.cells import choose_grid
from ocp_faenet.nn.workspace import SHARED

CPU = torch.device("cpu")


@pytest.mark.parametrize("natoms", [1, 2, 13, 87])
def test_synthetic_structures_are_of_the_right_kind(natoms):
    graph = oc20_like(natoms, 3)
    assert graph.num_atoms == 3 * natoms
    assert int(graph.tags.max()) == 2
    per_atom = torch.bincount(graph.edge_index[1], minlength=graph.num_atoms)
    assert int(per_atom.max()) <= 50
    distances = graph.edge_vectors.norm(dim=-1)
    assert float(distances.max()) <= 6.0001
    if natoms == 87:
        assert float(per_atom.float().mean()) > 35


def test_work_is_counted():
    a, b = torch.randn(100, 50), torch.randn(50, 20)
    assert count_work(lambda: torch.mm(a, b), CPU)[0] == pytest.approx(2 * 100 * 50 * 20 / 1e9)


@pytest.mark.parametrize("weights", [1.0, 20.0])
def test_convolution_counts_its_work(weights):
    """All products are seen, by polynomials in cells or (steep weights) by edges."""
    model = all_faenets(IS2RE)["FAENet, no frames"]("cpu")
    graph = oc20_like(45, 3)
    edges, atoms = graph.edge_index.shape[1], graph.num_atoms
    with torch.no_grad():
        steep = model.module.backbone.edge_embedding.directional.weight.mul_(weights)
        model.energy(graph)  # tables are made
        counted = count_work(lambda: model.energy(graph), CPU)[0]
    steepness = float(steep.abs().sum(1).max())
    grid = choose_grid(6.0, steepness, edges, 240, kept=True)
    assert (grid is None) == (weights > 1)
    # The radial half is tabulated in both; kept polynomials are in their leading directions.
    kept = model.module.backbone.edge_embedding.kept_cells._state
    terms = 240 if grid is None else kept[2][1].shape[1]
    assert grid is None or terms < grid.terms / 2
    turned = 0 if grid is None else grid.terms * terms
    by_edge = 2 * edges * (terms * 384 * 5 + turned) / 1e9
    by_atom = 2 * atoms * (1 + 5 * 4 + 6 * 0.5) * 384 * 384 / 1e9  # blocks, heads of six layers
    assert counted == pytest.approx(by_edge + by_atom, rel=0.02)


def test_four_frames_count_what_cannot_be_shared():
    """The counts from which docs/performance.md says what four frames must cost."""
    model, graph = all_faenets(IS2RE)["FAENet, all (4)"]("cpu"), oc20_like(45, 3)
    edges, atoms = graph.edge_index.shape[1], graph.num_atoms
    with torch.no_grad():
        model.energy(graph)  # tables are made
        counted = count_work(lambda: model.energy(graph), CPU)[0]
    kept = model.module.backbone.edge_embedding.kept_cells._state
    (grid,), (_, coefficients) = kept[1:]
    terms, frames = coefficients.shape[1:3]
    assert frames == 4
    filters = 2 * edges * frames * terms * 384 * 5 / 1e9
    basis = 2 * edges * grid.terms * terms / 1e9
    shared, own = (2 * atoms * n * 384 * 384 / 1e9 for n in (3.5, 20.5 * frames))
    assert counted == pytest.approx(filters + basis + shared + own, rel=0.02)


def test_memory_is_counted():
    def run():
        x = torch.empty(1_000_000)
        y = x + 1
        del x
        return y

    assert count_work(run, CPU)[1] == pytest.approx(8e6, rel=0.05)


def test_memory_that_is_taken_again_is_counted():
    like = torch.zeros(1)
    assert count_work(lambda: SHARED.empty(1000, 1000, like), CPU)[1] == pytest.approx(4e6, rel=0.1)


def test_a_failing_contender_does_not_stop_the_others():
    linear = nn.Linear(3, 1)

    def fail(batch):
        raise RuntimeError("too small\nfor this")

    contenders = [
        Contender("good", linear, lambda g: g.positions, lambda x: linear(x)),
        Contender("bad", linear, lambda g: g, fail),
    ]
    timings = measure(contenders, oc20_like(5, 2), training=True, repeats=3, warmup=1)
    assert len(timings["good"].seconds) == 3
    assert timings["good"].median > 0
    assert timings["bad"].error == "RuntimeError: too small"


def test_subsurface_atoms_are_removed_with_their_edges():
    graph = oc20_like(40, 2)
    small = without_tag_0(graph)
    assert int(small.tags.min()) == 1
    assert small.num_atoms == int((graph.tags > 0).sum())
    lengths = small.edge_vectors.norm(dim=-1)
    kept = (graph.tags > 0)[graph.edge_index].all(0)
    torch.testing.assert_close(lengths, graph.edge_vectors.norm(dim=-1)[kept])


def test_verb_reports(tmp_path):
    out, plot = tmp_path / "b.json", tmp_path / "b.png"
    names = ["FAENet, det", "FAENet, stochastic" + EWALD + TAG_0_REMOVED]
    args = ["--atoms", "5,9", "--batch", "2", "--repeats", "2", "--json", str(out)]
    for name in names:
        args += ["--models", name]
    result = CliRunner().invoke(benchmark, [*args, "--plot", str(plot)])
    assert result.exit_code == 0, result.output
    assert "samples/s" in result.output
    report = json.loads(out.read_text())
    command = "ocp-faenet benchmark --atoms 5,9 --batch 2 --models 'FAENet, det' --models "
    assert report["command"].startswith(command)
    assert report["command"].endswith(" --repeats 2")
    assert report["finished"]
    rows = report["rows"]
    assert {(r["model"], r["mode"], r["atoms"]) for r in rows} == {
        (name, mode, n) for name in names for mode in ("inference", "training") for n in (5, 9)
    }
    assert all(r["error"] is None and r["samples_per_second"] > 0 for r in rows)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_work_is_counted_unless_it_is_not_wanted(monkeypatch, tmp_path):
    counted = []
    monkeypatch.setattr(timing, "count_work", lambda *args: counted.append(args) or (1.0, 2))
    command = ["--atoms", "5", "--models", "FAENet, det", "--repeats", "1", "--mode", "inference"]
    for options, times in ([], 1), (["--no-count"], 0):
        counted.clear()
        out = tmp_path / f"{times}.json"
        result = CliRunner().invoke(benchmark, [*command, *options, "--json", str(out)])
        assert result.exit_code == 0, result.output
        assert len(counted) == times
        report = json.loads(out.read_text())
        assert report["command"].endswith(" ".join(["--repeats 1", *options]))
        (row,) = report["rows"]
        assert ("gflop" in row) == ("peak_mib" in row) == bool(times)
        assert row["samples_per_second"] > 0


def test_what_was_measured_outlives_an_interruption(tmp_path, monkeypatch):
    out, groups = tmp_path / "b.json", []

    def interrupted(*args, **options):
        if len(groups) == 2:
            raise KeyboardInterrupt
        groups.append(args)
        return measure(*args, **options)

    monkeypatch.setattr(benchmark_run, "measure", interrupted)
    args = ["--atoms", "5", "--batch", "1,2", "--repeats", "1", "--models", "FAENet, det"]
    result = CliRunner().invoke(benchmark, [*args, "--json", str(out)])
    assert result.exit_code == 1
    report = json.loads(out.read_text())
    assert not report["finished"]
    assert [(r["batch"], r["mode"]) for r in report["rows"]] == [(1, "inference"), (1, "training")]
    assert list(tmp_path.iterdir()) == [out]


def test_batches_stand_side_by_side():
    rows = [
        {"model": m, "mode": "inference", "atoms": 87, "batch": n, "seconds": s * n, "error": None}
        for m, s in (("A", 0.01), ("B", 0.2))
        for n in (1, 256)
    ]
    rows[3] |= {"error": "a pass would take about 51 s, more than 30"}
    machine = {"threads": 1, "name": "x", "peak_gflops": 80}
    report = {"command": "c", "repeats": 3, "clock": "cpu", "data": "d", "machine": machine}
    text = benchmark_page.markdown_of({**report, "rows": rows})
    assert "Interrupted" not in text
    assert "Interrupted" in benchmark_page.sentence_of({**report, "finished": False})
    heads, _, *lines = text.splitlines()[:4]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (heads, *lines)]
    assert cells == [
        ["ms a structure", "batch of 1", "batch of 256"], ["A", "10", "10"], ["B", "200", "-"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--models", "SchNett"], "'SchNett' is not known; one of"),
        (["--device", "quantum"], "is no device"),
        (["--device", "meta"], "only cpu and cuda are timed"),
        (["--atoms", "ten"], "not a list of integers"),
        (["--batch", "0"], "at least 1"),
        (["--plot", "times.pdf"], "pictures are PNG; call it times.png"),
        (["--json", f"{__file__}/b.json"], f"--json {__file__}/b.json: "),
        (["--mode", "relaxation", "--batch", "2"], "--batch says nothing to --mode relaxation"),
    ],
)
def test_verb_refuses(args, words):
    result = CliRunner().invoke(benchmark, args)
    assert result.exit_code == 2
    assert words in result.output


def test_processor_time_of_many_threads_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    result = CliRunner().invoke(benchmark, ["--clock", "cpu"])
    assert result.exit_code == 2
    assert "the times of 2 threads would add up; add --threads 1" in result.output


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--models", "SchNet"], "'SchNet' is not known (the peers need fairchem-core, which is"),
        (["--mode", "relaxation"], "--mode relaxation needs fairchem-core"),
    ],
)
def test_verb_without_the_host(args, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "fairchem", None)
    result = CliRunner().invoke(benchmark, args)
    assert result.exit_code == 2
    assert words in result.output


def test_one_atom_is_timed_and_what_takes_too_long_is_not():
    args = ["--atoms", "1", "--batch", "1", "--repeats", "1", "--mode", "inference", "--models"]
    result = CliRunner().invoke(benchmark, [*args, "FAENet, all (4)"])
    assert result.exit_code == 0, result.output
    assert "failed" not in result.output
    result = CliRunner().invoke(benchmark, [*args, "FAENet, no frames", "--longest", "1e-9"])
    assert result.exit_code == 2
    assert re.search(r"failed: a pass takes \d+ s, more than 1e-09", result.output)
    assert result.output.endswith("no model could be timed; the table says why\n")


def test_models_need_no_host():
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys("
        "['fairchem', 'torch_geometric', 'torch_scatter', 'pydantic']))\n"
        "import ocp_faenet.models, ocp_faenet.models.contenders, ocp_faenet.metrics\n"
        "print(any(m.startswith('fairchem.') for m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_relaxations_are_timed():
    """Models move one slab in turn, under one optimiser; fixed atoms stay where they are."""
    from ocp_faenet.adapters.relax_speed import MAX_STEP, relaxation_steps, to_atoms

    class Lift(nn.Module):
        calls = 0

        def forward(self, batch):
            self.calls += 1
            up = torch.zeros_like(batch.pos)
            up[:, 2] = 1.0
            return {"energy": -batch.pos[:, 2].sum().view(1, 1), "forces": up}

    models = {"a": Lift(), "b": Lift()}
    graph = oc20_like(20, 1)
    timings = relaxation_steps(models, graph, 3, warmup=1)
    assert {name: len(t.seconds) for name, t in timings.items()} == {"a": 3, "b": 3}
    assert all(model.calls >= 4 for model in models.values())
    atoms = to_atoms(graph)
    fixed = atoms.constraints[0].index
    assert 0 < len(fixed) < 20
    assert MAX_STEP < 0.1
    with pytest.raises(ValueError, match="one periodic"):
        to_atoms(oc20_like(5, 2))


def test_slow_contenders_are_left_out():
    linear = nn.Linear(3, 1)
    ticks = iter(range(1000))
    contenders = [Contender("slow", linear, lambda g: g.positions, linear)]
    options = {"training": False, "repeats": 2, "longest": 0.5}
    timings = measure(contenders, oc20_like(5, 1), clock=lambda: next(ticks), **options)
    assert "a pass takes 1 s" in timings["slow"].error
    assert not timings["slow"].seconds


def test_contenders_that_are_expected_to_be_slow_are_not_run():
    runs = []
    contenders = [
        Contender(name, nn.Linear(3, 1), lambda g: g.positions, lambda x, n=name: runs.append(n))
        for name in ("slow", "fast")
    ]
    options = {"training": False, "repeats": 1, "longest": 5, "expected": {"slow": 7.0}}
    timings = measure(contenders, oc20_like(5, 1), **options)
    assert timings["slow"].error == "a pass would take about 7 s, more than 5"
    assert timings["slow"].first is None
    assert timings["fast"].first > 0
    assert set(runs) == {"fast"}


def test_each_frame_method_has_each_option_under_its_name():
    names = list(all_faenets())
    assert len(names) == 16
    assert "FAENet, det, Ewald, tag 0 removed" in names
    assert set(usual_faenets()) < set(names)
    for name, make in all_faenets().items():
        method, *options = name.split(", ")[1:]
        config = make.args[1]
        assert (config.ewald is not None) == ("Ewald" in options)
        assert method == "no frames" or method.startswith(config.fa_method.value)
