"""The table of a sweep, from its manifest and the records of its runs. Imports no host."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def lower_is_better(metric: str) -> bool:
    """The host's own rule."""
    return "mae" in metric


def record_path(run_dir: str | Path, run_id: str) -> Path:
    """Where a run's record lies."""
    return Path(run_dir) / "results" / run_id / "run.json"


def read_record(path: Path) -> dict[str, Any]:
    """A run's record; empty where there is none."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def collect(logdir: Path) -> list[dict[str, Any]]:
    """Every run started with this ``--logdir``, the best first, those without a score last.

    Returns:
        For each run ``run``, ``varied``, ``job``, ``state``, ``primary_metric``, ``best``,
        ``last`` (scores of its last validation), ``step``, ``epoch``, ``requeued``.

    Raises:
        ValueError: nothing was started there, or a manifest is broken.
    """
    manifests = sorted((logdir / "sweeps").glob("*.json"))
    if not manifests:
        raise ValueError(
            f"--collect {logdir}: no sweeps/*.json in it; it takes the --logdir of runs"
        )
    rows: dict[str, dict[str, Any]] = {}
    for path in manifests:
        try:
            for entry in json.loads(path.read_text())["runs"]:
                rows[entry["run"]] = _row(entry)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a manifest of ours ({error})") from None
    _ended(rows.values())
    return sorted(rows.values(), key=_rank)


def _row(entry: Mapping[str, Any]) -> dict[str, Any]:
    record = read_record(record_path(entry["run_dir"], entry["run"]))
    kept = ("primary_metric", "best", "best_step", "last", "step", "epoch", "requeued", "error")
    return {
        "run": entry["run"],
        "varied": entry["varied"],
        "job": record.get("job") or entry["job"],
        "state": record.get("state", "pending"),
        **{key: record.get(key) for key in kept},
        "run_dir": entry["run_dir"],
    }


def _rank(row: Mapping[str, Any]) -> tuple[bool, float, str]:
    best = row["best"]
    if best is None or not math.isfinite(best):
        return True, 0.0, row["run"]
    return False, best if lower_is_better(row["primary_metric"]) else -best, row["run"]


def _ended(rows: Iterable[dict[str, Any]]) -> None:
    """Tell jobs that SLURM no longer knows from those that run or wait."""
    open_rows = [row for row in rows if row["job"] and row["state"] in ("pending", "running")]
    if not open_rows or shutil.which("squeue") is None:
        return
    command = ["squeue", "--noheader", "--array", "--format", "%i"]
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode != 0:
        return
    known = set(listed.stdout.split())
    for row in open_rows:
        if row["job"] not in known:
            row["state"] = "killed"
