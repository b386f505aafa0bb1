"""Studies from a file: what is read, what is run, what the table says, what the documents hold."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ocp_faenet.adapters import measurements
from ocp_faenet.adapters.machine import machine_class
from ocp_faenet.adapters.plan import read_plan, specs_of
from ocp_faenet.adapters.runs import RunSpec, checkpoint_of
from ocp_faenet.cli import main, pictures
from ocp_faenet.cli.documents import insert
from ocp_faenet.cli.study_report import machines_of, markdown_of, report_of, value
from ocp_faenet.cli.study_run import shortened

ROOT = Path(__file__).parent.parent
STUDIES = sorted((ROOT / "configs" / "studies").glob("*.yml"))
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PLAN = """
title: Two sizes
config: {config}
epochs: 2
seeds: 2
sample: 12
overrides: {{model: {{hidden_channels: 16}}}}
variants:
  small:
  large: {{label: Larger, epochs: 1, overrides: {{model: {{hidden_channels: 24}}}}}}
curve: {{x: channels, log: true, series: {{SchNet: {{large: 24, small: 16}}}}}}
"""
SCHNET = ROOT / "configs" / "oc20" / "emt" / "is2re" / "schnet.yml"


def plan_file(folder: Path, text: str = PLAN) -> Path:
    path = folder / "sizes.yml"
    path.write_text(text.format(config=SCHNET))
    return path


def finish(folder: Path, content: dict) -> None:
    """A run's folder as a finished run leaves it, with this result."""
    checkpoint_of(folder).parent.mkdir(parents=True)
    torch.save({}, checkpoint_of(folder))
    (folder / "result.json").write_text(json.dumps(content))


def made_up(specs: list[RunSpec], root: Path, **more: object) -> None:
    """Finished runs of ``specs``, with numbers that nobody measured."""
    for spec in specs:
        splits = {
            split: {"energy_mae": 0.3, "structures": 4, "samples_per_cpu_second": 9.0}
            for split in spec.splits
        }
        result = {"parameters": 7, "epochs": 2, "train_size": 12, "batch_size": 2, "splits": splits}
        finish(
            spec.folder(root), {"name": spec.name, "training": {}, "curves": {}, **result, **more}
        )


def study(*args: object):
    return CliRunner().invoke(main, ["study", *map(str, args)])


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_shipped_studies_can_be_run(path, tiny_data):
    plan = read_plan(path)
    folder = plan.evaluate or plan.task
    if not (tiny_data / folder).is_dir():  # charges; dense_splits: tests/test_dense_study.py
        pytest.skip(f"the tiny set has no {folder}")
    specs = specs_of(shortened(plan, None, None, 4, None), path.parent, tiny_data)
    assert len(specs) == sum(each.seeds or plan.seeds for each in plan.variants.values())
    assert len({spec.key() for spec in specs}) == len(specs), "two variants are the same run"
    for variant in plan.variants:
        assert set(plan.measurements_of(variant)) <= set(measurements.MEASUREMENTS)


def test_variants_differ_as_the_file_says(tmp_path, tiny_data):
    path = plan_file(tmp_path)
    specs = specs_of(read_plan(path), tmp_path, tiny_data)
    assert [(spec.name, spec.seed) for spec in specs] == [
        ("small", 0), ("large", 0), ("small", 1), ("large", 1)
    ]  # fmt: skip
    small, large = (spec.config() for spec in specs[:2])
    assert (small["model"]["hidden_channels"], large["model"]["hidden_channels"]) == (16, 24)
    assert (small["optim"]["max_epochs"], large["optim"]["max_epochs"]) == (2, 1)
    assert small["dataset"]["train"]["sample_n"] == 12
    assert small["dataset"]["val"]["sample_n"] is None


def test_a_variant_may_have_fewer_seeds_and_its_own_measurements(tmp_path, tiny_data):
    text = PLAN.replace("title", "measurements: [mad]\ntitle")
    text = text.replace("epochs: 1,", "epochs: 1, seeds: 1, measurements: [],")
    plan = read_plan(plan_file(tmp_path, text))
    specs = specs_of(plan, tmp_path, tiny_data)
    assert [(spec.name, spec.seed) for spec in specs] == [
        ("small", 0), ("large", 0), ("small", 1)
    ]  # fmt: skip
    assert (plan.measurements_of("small"), plan.measurements_of("large")) == (("mad",), ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("epochs: 2", "epochs: 0"), "epochs: Input should be greater than or equal to 1"),
        (("seeds: 2", "seds: 2"), "seds: Extra inputs are not permitted"),
        (("sample: 12", "sample: 1000000"), "sample: 1000000 of the"),
        (("config: {config}", "config: nowhere.yml"), "variants.small: no configuration"),
        (("  small:", "  small: ["), "no YAML"),
        (("epochs: 2", "epochs: 2\nmeasurements: [weight]"), "measurements: no weight"),
        (("large: 24", "huge: 24"), "the file: curve: no variant 'huge'"),
        (("small: 16", "small: 0"), "curve: small: 0 on a logarithmic axis"),
        (("{{large: 24, small: 16}}", "{{}}"), "curve: series 'SchNet' names no variant"),
        (("epochs: 1,", "epochs: 1, measurements: [weight],"), "measurements: no weight"),
        (("epochs: 1,", "epochs: 1, seeds: 0,"), "variants.large.seeds: Input should be greater"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, tiny_data, change, message):
    path = plan_file(tmp_path, PLAN.replace(*change))
    done = study(path, "--data", tiny_data, "--runs", tmp_path / "runs")
    assert done.exit_code == 2
    assert message in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_unknown_variant_and_missing_markers(tmp_path, tiny_data):
    path = plan_file(tmp_path)
    done = study(path, "--data", tiny_data, "--only", "huge")
    assert done.exit_code == 2
    assert "--only huge: the variants are small, large" in done.output
    (tmp_path / "page.md").write_text("nothing here")
    done = study(path, "--data", tiny_data, "--into", tmp_path / "page.md")
    assert done.exit_code == 2
    assert "<!-- study:sizes -->" in done.output
    path = plan_file(tmp_path, PLAN.split("curve:")[0])
    done = study(path, "--data", tiny_data, "--curve", tmp_path / "curve.png")
    assert done.exit_code == 2
    assert "sizes.yml has no curve" in done.output


def test_from_file_to_document(tmp_path, tiny_data, monkeypatch):
    """Trains, measures, prints, writes; a second call trains and measures nothing."""
    measured = []

    def count(spec, result):
        measured.append(spec.seed)
        return {"parameters in thousands": result["parameters"] / 1000 + spec.seed}

    monkeypatch.setitem(measurements.MEASUREMENTS, "size", (count, 1))
    path = plan_file(tmp_path, PLAN.replace("title", "measurements: [size]\ntitle"))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- study:sizes -->\nold\n<!-- /study:sizes -->\nafter\n")
    args = (path, "--data", tiny_data, "--runs", tmp_path / "runs", "--into", page)
    args += ("--json", tmp_path / "s.json", "--plot", tmp_path / "s.png", "--jobs", 2)
    args += ("--curve", tmp_path / "curve.png")
    with socket.create_server(("localhost", 0)) as taken:  # the port of a run of this process
        monkeypatch.setenv("MASTER_ADDR", "localhost")
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        first = study(*args)
    assert first.exit_code == 0, first.output
    report = json.loads((tmp_path / "s.json").read_text())
    for row, (label, epochs) in zip(report["rows"], [("small", 2), ("Larger", 1)], strict=True):
        runs = [
            json.loads(result.read_text())
            for result in (tmp_path / "runs").glob(f"{row['variant']}-*/result.json")
        ]
        maes = [run["splits"]["val_ood_cat"]["energy_mae"] for run in runs]
        assert (row["label"], row["epochs"], len(runs)) == (label, epochs, 2)
        assert row["splits"]["val_ood_cat"]["energy_mae"][0] == pytest.approx(sum(maes) / 2)
        means = [
            sum(run["splits"][split]["energy_mae"] for split in report["split_sizes"]) / 4
            for run in runs
        ]
        assert row["average"][0] == pytest.approx(sum(means) / 2)
        assert runs[0]["train_size"] == 12
        size = row["measured"]["parameters in thousands"][0]
        assert size == pytest.approx(row["parameters"] / 1000 + 0.5)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert markdown_of(report) in text
    assert (tmp_path / "s.png").stat().st_size > 10_000
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    averages = [row["average"] for row in report["rows"]]
    points = [[16.0, *averages[0]], [24.0, *averages[1]]]
    assert report["curve"] == {"x": "channels", "log": True, "series": {"SchNet": points}}
    assert sorted(measured) == [0, 0, 1, 1]
    again = study(*args)
    assert again.exit_code == 0
    assert sorted(measured) == [0, 0, 1, 1]
    assert json.loads((tmp_path / "s.json").read_text())["rows"] == report["rows"]
    assert "Not run" not in page.read_text()
    part = study(*args, "--only", "small", "--seeds", 1)
    assert part.exit_code == 0
    assert "seed 0 alone" in page.read_text()
    assert page.read_text().rstrip("\n").splitlines()[-3].endswith(" Not run: Larger.")
    report = json.loads((tmp_path / "s.json").read_text())
    assert [x for x, *_ in report["curve"]["series"]["SchNet"]] == [16.0]


@pytest.mark.parametrize("validated", [(), ("small",), ("small", "large")])
def test_the_plot_shows_what_is_there(tmp_path, tiny_data, monkeypatch, validated):
    """Runs whose training had no validation (``eval_every`` beyond its end) are in no curve."""
    path = plan_file(tmp_path, PLAN.replace("seeds: 2", "seeds: 1"))
    for spec in specs_of(read_plan(path), tmp_path, tiny_data):
        curves = {"val/energy_mae": [[6, 0.5], [12, 0.4]]} if spec.name in validated else {}
        made_up([spec], tmp_path / "runs", curves=curves)
    drawn = []
    monkeypatch.setattr(pictures, "save", lambda figure, place: drawn.append((figure, place)))
    done = study(path, "--data", tiny_data, "--runs", tmp_path / "runs", "--plot", "errors.png")
    assert done.exit_code == 0, done.output
    [(figure, place)] = drawn
    assert place == Path("errors.png")
    left, *right = figure.axes
    assert len(left.containers) == 2, "an error bar for each variant"
    assert len(right) == bool(validated)
    for axis in right:
        assert [line.get_xdata().tolist() for line in axis.get_lines()] == [[1.0, 2.0]] * len(
            validated
        )
        assert all(line.get_ydata().tolist() == [0.5, 0.4] for line in axis.get_lines())


def test_the_table_names_the_machines_that_made_it(tmp_path, tiny_data):
    path = plan_file(tmp_path)
    specs, root = specs_of(read_plan(path), tmp_path, tiny_data), tmp_path / "runs"
    made_up(specs[:1], root, machine="2 old cores")
    made_up(specs[1:3], root, machine="8 new cores")
    made_up(specs[3:], root)  # of before results said it
    done = study(path, "--data", tiny_data, "--runs", root)
    assert done.exit_code == 0, done.output
    assert f"one thread; 2 old cores; 8 new cores; {machine_class()}." in done.output
    assert machines_of([{"machine": "m"}, {"machine": "m"}]) == "m"


def test_what_cannot_be_measured_is_one_line(tmp_path, tiny_data, monkeypatch):
    def fail(spec, result):
        raise ValueError(f"{result['checkpoint']}: holds no forces")

    monkeypatch.setitem(measurements.MEASUREMENTS, "size", (fail, 1))
    path = plan_file(tmp_path, PLAN.replace("title", "measurements: [size]\ntitle"))
    made_up(specs_of(read_plan(path), tmp_path, tiny_data), tmp_path / "runs")
    done = study(path, "--data", tiny_data, "--runs", tmp_path / "runs")
    assert done.exit_code == 2
    assert done.output.splitlines()[-1].endswith("checkpoint.pt: holds no forces")


def test_a_measurement_is_kept_while_it_is_whole_and_its_data_are_the_same(
    tmp_path, tiny_data, monkeypatch, caplog
):
    spec = specs_of(read_plan(plan_file(tmp_path)), tmp_path, tiny_data)[0]
    found, source = iter(range(9)), tmp_path / "source"
    measurement = (lambda spec, result: {"n": next(found)}), 1
    monkeypatch.setitem(measurements.MEASUREMENTS, "size", measurement)

    def measured() -> dict[str, float]:
        return measurements.measure("size", spec, {}, tmp_path)

    assert [measured(), measured()] == [{"n": 0}, {"n": 0}]
    kept = tmp_path / "measured_size_1.json"
    for text in ('{"n": ', "[]"):
        kept.write_text(text)
        caplog.clear()
        assert measured() == measured() == json.loads(kept.read_text())
        assert [str(kept) in line for line in caplog.messages] == [True]
    assert measured() == {"n": 2}
    monkeypatch.setitem(measurements.SOURCES, "size", lambda spec: source)
    for text, number in (("one", 3), ("one", 3), ("other", 4), ("one", 3)):
        source.write_text(text)
        assert measured() == {"n": number}


def test_the_sentence_says_which_rows_have_fewer_seeds(tmp_path, tiny_data):
    text = PLAN.replace("epochs: 1,", "epochs: 1, seeds: 1,")
    plan = read_plan(plan_file(tmp_path, text))
    splits = {
        split: {"energy_mae": 0.5, "structures": 4, "samples_per_cpu_second": 9.0}
        for split in plan.splits
    }
    run = {"parameters": 7, "epochs": 2, "train_size": 12, "splits": splits}
    run["training"] = {"cpu_seconds": 6.0, "samples_per_cpu_second": 4.0}
    names = ("small", "large", "small")
    sizes = {"small": 10, "large": 300}
    results = [{**run, "name": name, "train_size": sizes[name]} for name in names]
    stamp = {"command": "study", "data": "tiny", "machine": "a machine"}
    report = report_of(plan, results, [{}, {}, {}], stamp)
    assert [row.get("seeds") for row in report["rows"]] == [None, 1]
    assert "seeds 0 to 1 (Larger: 1), weights" in markdown_of(report)
    assert "epochs on 10 or 300 training structures" in markdown_of(report)


def test_numbers_as_text():
    assert value((0.0424, 0.0031)) == "0.042 ± 0.003"
    assert value((0.5, 0.0)) == "0.500"
    assert value((123.45, 6.0)) == "123.5 ± 6.0"
    assert value((3e-7, 1e-7)) == "3.0e-07"
    assert value((0.0, 0.0)) == "0.000"
    with pytest.raises(ValueError, match="<!-- study:x -->"):
        insert("text", "x", "", "study")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_tables_of_the_documents_are_their_json(path):
    """Every study's table in a document is what its JSON renders to, and was made by its file."""
    text = path.read_text()
    for name, inside in re.findall(r"<!-- study:(\w+) -->\n(.*?)\n<!-- /study:\1 -->", text, re.S):
        report = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text())
        assert inside == markdown_of(report), f"{path.name}: the table of {name} is not its JSON"
        plan = read_plan(ROOT / "configs" / "studies" / f"{name}.yml")
        absent = report.get("not_run", {})
        present = [variant for variant in plan.variants if variant not in absent]
        assert [row["variant"] for row in report["rows"]] == present
        assert set(absent) <= set(plan.variants)
        assert report["title"] == plan.title
        assert report["seeds"] <= plan.seeds
        assert plan.sample in (None, report["train_size"])


STAGED = """
title: Pre-trained
config: {root}/configs/oc20/emt/is2re/faenet_hydra.yml
epochs: 1
seeds: 1
sample: 8
splits: [val_id]
overrides:
  model:
    backbone:
      {{hidden_channels: 24, num_filters: 8, num_gaussians: 8, tag_hidden_channels: 2,
       pg_hidden_channels: 2, phys_embeds: false, num_interactions: 1}}
stages:
  before: {{config: {root}/configs/oc20/emt/pretrain/faenet.yml, sample: 4}}
variants:
  scratch:
  tuned: {{starts_from: before, overrides: {{model: {{freeze_backbone: true}}}}}}
"""


def test_a_variant_starts_from_a_trained_stage(tmp_path, tiny_data):
    path = tmp_path / "staged.yml"
    path.write_text(STAGED.format(root=ROOT))
    scratch, tuned = specs_of(read_plan(path), tmp_path, tiny_data)
    assert scratch.stage is None
    assert tuned.stage.splits == {}
    assert tuned.stage.config()["dataset"]["train"]["sample_n"] == 4
    assert tuned.with_seed(3).stage.seed == 3
    assert tuned.with_seed(3).key() != tuned.key()
    assert RunSpec.from_json(tuned.to_json()).key() == tuned.key()
    result = study(path, "--data", tiny_data, "--runs", tmp_path / "runs", "--only", "tuned")
    assert result.exit_code == 0, result.output
    weights = [
        torch.load(checkpoint_of(spec.folder(tmp_path / "runs")), weights_only=False)["state_dict"]
        for spec in (tuned.stage, tuned)
    ]
    backbone = [key for key in weights[0] if "interactions" in key]
    assert backbone
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in backbone)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("starts_from: before", "starts_from: after"), "'after', only scratch, before"),
        (("{{starts_from: before, overrides: {{model: {{",
          "{{starts_from: before, overrides: {{model: {{backbone: {{num_interactions: 2}}, "),
         "before has another backbone (num_interactions)"),
        (("faenet_hydra", "faenet"), "both need a hydra model"),
    ],
)  # fmt: skip
def test_a_stage_that_does_not_fit_is_one_line(tmp_path, tiny_data, change, message):
    path = tmp_path / "staged.yml"
    path.write_text(STAGED.replace(*change).format(root=ROOT))
    with pytest.raises(ValueError) as caught:
        specs_of(read_plan(path), tmp_path, tiny_data)
    assert message in str(caught.value)


def test_the_budget_is_what_is_left_at_the_rate_of_finished_runs(tmp_path, tiny_data):
    path = tmp_path / "staged.yml"
    path.write_text(STAGED.format(root=ROOT))
    scratch, tuned = specs_of(read_plan(path), tmp_path, tiny_data)
    root = tmp_path / "runs"

    def finished(folder, rate):
        finish(folder, {"training": {"samples_per_cpu_second": rate}, "splits": {}})

    finished(root / "scratch-seed7-of-another-length", 0.1)
    finished(root / "scratch-seed8-that-measured-none", None)
    finished(tuned.stage.folder(root), 1.0)
    for name, text in (("a", "{"), ("b", "{}"), ("c", "[]"), ("d", "")):  # of runs not asked for
        broken = root / f"scratch-seed9-{name}"
        broken.mkdir()
        (broken / "result.json").write_text(text)
    result = study(path, "--data", tiny_data, "--runs", root, "--budget")
    assert result.exit_code == 0, result.output
    rows = {
        line.split()[1]: line.split()[3::2] for line in result.output.splitlines() if "|" in line
    }
    assert rows["before"] == ["1", "1", "0.0"]
    assert rows["scratch"] == ["1", "0", "1.3"]  # 8 structures, 1 epoch, 0.1 a second
    assert rows["tuned"] == ["1", "0", "?"]
    assert "1.3 CPU minutes of training left, and 1 runs of which none is" in result.output
    assert not scratch.folder(root).exists(), "nothing was trained"
