"""``ocp-faenet demo``: the main road, from no data to a checked leaderboard file."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from ocp_faenet.adapters.curves import read_curves
from ocp_faenet.adapters.runs import RunSpec, count_records, with_epochs
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.options import DATA, PATH, TABLE_JSON
from ocp_faenet.cli.output import write_json
from ocp_faenet.cli.pictures import loss_curve, parity
from ocp_faenet.data.inventory import relaxed_energies
from ocp_faenet.metrics.energies import energy_errors, mean_baseline
from ocp_faenet.metrics.submission import SPLITS


@dataclass(frozen=True)
class Demo:
    """Where everything is, and the run that is shown."""

    data: Path
    out: Path
    config: Path
    epochs: int
    seed: int

    def lmdb(self, split: str) -> Path:
        return self.data / "is2re" / split / "data.lmdb"

    def overrides(self, size: int) -> list[str]:
        """Command-line overrides of the configuration."""
        spec = RunSpec("demo", str(self.config))
        optim = with_epochs(spec.config(), size, self.epochs)["optim"]
        overrides = [f"--optim.{key}={value}" for key, value in optim.items()]
        overrides.append(f"--dataset.train.src={self.lmdb('train')}")
        return [*overrides, f"--dataset.val.src={self.lmdb('val_id')}"]

    def run_id(self, size: int) -> str:
        """Named after what defines the run, so that the same demo resumes and another does not."""
        sources = {"train": {"src": str(self.lmdb("train"))}}
        spec = RunSpec("demo", str(self.config), {"dataset": sources}, self.seed)
        return f"demo-{replace(spec, overrides=_merged(spec, size, self.epochs)).key()}"


def _merged(spec: RunSpec, size: int, epochs: int) -> dict[str, Any]:
    return {**spec.overrides, **with_epochs(spec.config(), size, epochs)}


@click.command()
@DATA
@click.option(
    "--preset",
    type=click.Choice(["tiny", "demo", "full"]),
    default="demo",
    show_default=True,
    help="Made in --data if nothing is there.",
)
@click.option("--out", type=PATH, default=Path("runs/demo"), show_default=True)
@click.option(
    "--config",
    type=PATH,
    default=Path("configs/oc20/emt/is2re/faenet.yml"),
    show_default=True,
)
@click.option("--epochs", type=click.IntRange(min=1), default=30, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@TABLE_JSON
def demo(
    data: Path,
    preset: str,
    out: Path,
    config: Path,
    epochs: int,
    seed: int,
    json_path: Path | None,
) -> None:
    """Data, training, validation, predictions, a leaderboard file and pictures.

    Everything but the data and the pictures is the stock `fairchem` command, shown as it is
    called. Given again, it goes on where it was.
    """
    start = time.monotonic()
    if not config.is_file():
        raise BadInputError(f"--config {config}: no such file; start in the repository's folder")
    plan = Demo(data, out, config, epochs, seed)
    _make_data(plan, preset)
    size = count_records(str(plan.lmdb("train")))
    run_id = plan.run_id(size)
    best = out / "checkpoints" / run_id / "best_checkpoint.pt"
    _fairchem(plan, "train", run_id, plan.overrides(size))
    validated = _validate(plan, run_id, size, best)
    for split in SPLITS:
        _predict(plan, run_id, size, best, split)
    _submission(plan)
    rows = _score(plan, validated)
    _draw(plan, run_id, size, config)
    _close(plan, rows, best, time.monotonic() - start)
    if json_path is not None:
        write_json(json_path, {"rows": rows, "epochs": epochs, "checkpoint": str(best)})


def _make_data(plan: Demo, preset: str) -> None:
    wanted = [plan.lmdb(split) for split in ("train", *(f"val_{split}" for split in SPLITS))]
    if all(path.is_file() for path in wanted):
        click.echo(f"Data: {plan.data} (already there)")
        return
    from ocp_faenet.cli.data import data

    click.echo(f"$ ocp-faenet data emt {plan.data} --preset {preset}")
    data.main(["emt", str(plan.data), "--preset", preset], standalone_mode=False)


def _fairchem(plan: Demo, mode: str, run_id: str, overrides: Sequence[str]) -> None:
    """Call the host's own executable; its output goes to a file.

    Raises:
        BadInputError: it is not there, or failed; then with its last line.
    """
    beside = Path(sys.executable).with_name("fairchem")
    executable = str(beside) if beside.is_file() else shutil.which("fairchem")
    if executable is None:
        raise BadInputError("fairchem: not found beside this Python; run `make setup`")
    command = [executable, "--mode", mode, "--config-yml", str(plan.config), "--cpu"]
    command += ["--run-dir", str(plan.out), "--timestamp-id", run_id, "--seed", str(plan.seed)]
    command += overrides
    log = plan.out / "logs" / f"{run_id}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    click.echo(f"$ {' '.join(['fairchem', *command[1:]])}  > {log}")
    environment = {**os.environ, "WANDB_MODE": os.environ.get("WANDB_MODE", "offline")}
    with log.open("w") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
        try:
            _watch(process, log, plan.epochs if mode == "train" else 0)
        finally:
            process.terminate()  # nothing where it has ended
            process.wait()
    if process.returncode:
        lines = [line for line in log.read_text().splitlines() if line.strip()]
        raise BadInputError(
            f"fairchem --mode {mode}: exit code {process.returncode}: "
            f"{lines[-1] if lines else 'no output'} (log: {log})"
        )


def _watch(process: subprocess.Popen[bytes], log: Path, epochs: int) -> None:
    """Wait for the end, with a bar of the epochs that the host's log tells."""
    pause = 0.5 if sys.stderr.isatty() else 60.0
    form = "{desc} {percentage:3.0f}%|{bar}| {n:.1f}/{total_fmt} epochs [{elapsed}<{remaining}]"
    with tqdm(
        total=epochs, desc="Training", bar_format=form, mininterval=pause, disable=not epochs
    ) as bar:
        while process.poll() is None:
            time.sleep(0.5)
            told = re.findall(r", epoch: ([0-9.e+-]+)", log.read_text()) if epochs else []
            bar.update(max(float(told[-1]) - bar.n, 0.0) if told else 0.0)


def _validate(plan: Demo, run_id: str, size: int, best: Path) -> float:
    """val_id MAE in eV as the host's own validation gives it, read from its log."""
    name = f"{run_id}-validate"
    _fairchem(plan, "validate", name, [*plan.overrides(size), f"--checkpoint={best}"])
    curve = read_curves(plan.out / "logs" / "tensorboard" / name)["val/energy_mae"]
    return float(curve[-1][1])


def _predict(plan: Demo, run_id: str, size: int, best: Path, split: str) -> None:
    name = f"{run_id}-predict-{split}"
    source = f"--dataset.test.src={plan.lmdb(f'val_{split}')}"
    _fairchem(plan, "predict", name, [*plan.overrides(size), f"--checkpoint={best}", source])
    written = plan.out / "results" / name / "ocp_predictions.npz"
    target = plan.out / "predictions" / f"{split}.npz"
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(written, target)


def _submission(plan: Demo) -> None:
    from ocp_faenet.cli.submission import submission

    files = [f"--{split.replace('_', '-')}={_predictions(plan, split)}" for split in SPLITS]
    lmdbs = [f"--lmdb={split}={plan.lmdb(f'val_{split}')}" for split in SPLITS]
    out = str(plan.out / "submission.npz")
    for arguments in (["build", "--task=is2re", *files, *lmdbs, out], ["check", out, *lmdbs]):
        click.echo(f"$ ocp-faenet submission {' '.join(arguments)}")
        submission.main(arguments, prog_name="ocp-faenet submission", standalone_mode=False)


def _predictions(plan: Demo, split: str) -> Path:
    return plan.out / "predictions" / f"{split}.npz"


def _pairs(plan: Demo, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true energies of a split, (n,) each, in eV."""
    arrays = np.load(_predictions(plan, split))
    ids, energies = relaxed_energies(plan.lmdb(f"val_{split}"))
    truth = dict(zip(ids.tolist(), energies.tolist(), strict=True))
    return arrays["energy"].reshape(-1), np.array([truth[name] for name in arrays["ids"].tolist()])


def _score(plan: Demo, validated: float) -> list[dict[str, Any]]:
    """Errors by split, checked against the host's own validation of val_id.

    Raises:
        BadInputError: the predictions do not give the MAE that the host's validation gave.
    """
    _, train = relaxed_energies(plan.lmdb("train"))
    rows: list[dict[str, Any]] = []
    for split in SPLITS:
        predicted, true = _pairs(plan, split)
        errors, mean = energy_errors(predicted, true), mean_baseline(train, true)
        rows.append(
            {
                "split": f"val_{split}",
                "structures": len(true),
                "mae": errors.mae,
                "mse": errors.mse,
                "mean_mae": mean.mae,
            }
        )
    if abs(rows[0]["mae"] - validated) > 1e-3 * max(validated, 1e-3):
        raise BadInputError(
            f"val_id: MAE {rows[0]['mae']:.5f} eV from the predictions, but {validated:.5f} from "
            "fairchem --mode validate"
        )
    return rows


def _draw(plan: Demo, run_id: str, size: int, config: Path) -> None:
    curves = read_curves(plan.out / "logs" / "tensorboard" / run_id)
    batch = RunSpec("demo", str(config)).config()["optim"]["batch_size"]
    loss_curve(
        curves["train/loss"],
        curves["val/energy_mae"],
        -(-size // batch),
        plan.out / "pictures" / "loss_curve.png",
    )
    pairs = {f"val_{split}": _pairs(plan, split) for split in SPLITS}
    parity(pairs, "FAENet on the embedded data", plan.out / "pictures" / "parity.png")


def _close(plan: Demo, rows: Sequence[dict[str, Any]], best: Path, seconds: float) -> None:
    table = Table(title=f"FAENet after {plan.epochs} epochs ({seconds / 60:.1f} min in all)")
    for heading in ("split", "structures", "MAE, eV", "MSE, eV²", "MAE of training mean, eV"):
        table.add_column(heading, justify="left" if heading == "split" else "right")
    for row in rows:
        numbers = [f"{row[key]:.3f}" for key in ("mae", "mse", "mean_mae")]
        table.add_row(row["split"], str(row["structures"]), *numbers)
    console = Console()
    console.print(table)
    for name, path in (
        ("checkpoint", best),
        ("leaderboard file", plan.out / "submission.npz"),
        ("pictures", plan.out / "pictures"),
        ("logs", plan.out / "logs"),
    ):
        console.print(f"{name:>16}  {path}", soft_wrap=True, highlight=False)
