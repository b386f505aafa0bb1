"""The main road at its smallest: the host's executable does everything but the pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from click.testing import CliRunner

from ocp_faenet.cli import main
from ocp_faenet.cli.demo import Demo, _score, _watch
from ocp_faenet.data.inventory import relaxed_energies
from ocp_faenet.metrics.submission import SPLITS

EMT = Path(__file__).parent.parent / "configs" / "oc20" / "emt" / "is2re"


def demo(*args):
    return CliRunner().invoke(main, ["demo", *map(str, args)])


@pytest.mark.slow
def test_from_data_to_leaderboard_file(tiny_data, tmp_path):
    out = tmp_path / "run"
    arguments = ["--data", tiny_data, "--out", out, "--config", EMT / "faenet.yml"]
    result = demo(*arguments, "--epochs", 2, "--json", tmp_path / "table.json")
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    submission = np.load(out / "submission.npz")
    for split, row in zip(SPLITS, rows, strict=True):
        ids, true = relaxed_energies(tiny_data / "is2re" / f"val_{split}" / "data.lmdb")
        order = [ids.tolist().index(name) for name in submission[f"{split}_ids"].tolist()]
        assert sorted(order) == list(range(len(ids)))
        errors = np.abs(submission[f"{split}_energy"] - true[order])
        assert row["mae"] == pytest.approx(errors.mean(), rel=1e-5)
        assert f"val_{split}" in result.output
    assert_checkpoint_gives_the_same(tiny_data, out, submission)
    for picture in ("loss_curve", "parity"):
        pixels = matplotlib.image.imread(out / "pictures" / f"{picture}.png")
        assert pixels[..., :3].std() > 0.05
    assert "a good is2re file" in result.output
    assert result.output.count("$ fairchem --mode") == 6  # train, validate, four times predict


def assert_checkpoint_gives_the_same(tiny: Path, out: Path, submission) -> None:
    """`submission build --checkpoint` against the predictions of the host's executable."""
    (best,) = out.glob("checkpoints/*/best_checkpoint.pt")
    arguments = ["submission", "build", "--task", "is2re", "--checkpoint", str(best)]
    for split in SPLITS:
        lmdb = tiny / "is2re" / f"val_{split}" / "data.lmdb"
        arguments += [f"--{split.replace('_', '-')}", str(lmdb)]
    made = CliRunner().invoke(main, [*arguments, str(out / "again.npz")])
    assert made.exit_code == 0, made.output
    again = np.load(out / "again.npz")
    for split in SPLITS:
        ours = dict(zip(again[f"{split}_ids"].tolist(), again[f"{split}_energy"], strict=True))
        expected = [ours[name] for name in submission[f"{split}_ids"].tolist()]
        np.testing.assert_allclose(submission[f"{split}_energy"], expected, atol=1e-5)


def test_host_error_is_one_line(tiny_data, tmp_path):
    broken = tmp_path / "broken.yml"
    broken.write_text(f"includes:\n  - {EMT / 'schnet.yml'}\nmodel:\n  hidden_chanels: 3\n")
    result = demo("--data", tiny_data, "--out", tmp_path / "run", "--config", broken)
    assert result.exit_code == 2
    last = result.output.splitlines()[-1]
    assert last.startswith("Error: fairchem --mode train: exit code 1")
    assert "hidden_chanels" in last


def test_missing_config(tmp_path):
    result = demo("--config", tmp_path / "none.yml")
    assert result.exit_code == 2
    assert "none.yml: no such file" in result.output


def test_predictions_that_contradict_the_validation(tiny_data, tmp_path):
    plan = Demo(tiny_data, tmp_path, EMT / "faenet.yml", epochs=1, seed=0)
    (tmp_path / "predictions").mkdir()
    for split in SPLITS:
        ids, true = relaxed_energies(plan.lmdb(f"val_{split}"))
        np.savez(tmp_path / "predictions" / f"{split}.npz", ids=ids, energy=true[:, None] + 0.25)
    assert [row["mae"] for row in _score(plan, 0.25)] == pytest.approx([0.25] * 4)
    with pytest.raises(Exception, match=r"0\.25000 eV from the predictions, but 0\.30000"):
        _score(plan, 0.3)


def test_bar_reads_the_hosts_log(tmp_path, capsys):
    log = tmp_path / "log.txt"
    log.write_text("loss: 1.00e+00, lr: 1e-3, epoch: 9.80e-01, step: 2\nloss: 0.5, epoch: 2.0000")
    command = [sys.executable, "-c", "import time; time.sleep(1.5)"]
    with subprocess.Popen(command) as process:
        _watch(process, log, epochs=4)
    assert "50%" in capsys.readouterr().err
