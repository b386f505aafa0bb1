"""The host's `predict` and `run-relaxations` on the splits of OC20-Dense."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fairchem.core.common.flags import flags
from fairchem.core.common.utils import build_config

from ocp_faenet.adapters.host_model import read_checkpoint
from ocp_faenet.adapters.launch import RankDiedError, run_here
from ocp_faenet.adapters.preflight import check_run_config
from ocp_faenet.adapters.runner import run
from ocp_faenet.data.dense_membership import plain_id
from ocp_faenet.data.edges import pack_edges
from ocp_faenet.data.generate import write_folder
from ocp_faenet.data.reader import open_lmdb
from ocp_faenet.data.relaxed_positions import whole_structure
from ocp_faenet.data.schema import array_of


@dataclass(frozen=True)
class Stop:
    """When a relaxation by the model ends; what is ``None`` is as the configuration has it.

    Attributes:
        fmax: largest force on a free atom, eV/Å. Forces that are off by 0.1 eV/Å rarely fall below
            0.03: take about the model's own error.
        steps: at most that many.
    """

    fmax: float | None = None
    steps: int | None = None


def predict_energies(
    config_yml: Path,
    checkpoint: Path,
    src: Path,
    out: Path,
    *,
    batch_size: int | None = None,
    ranks: int = 1,
) -> None:
    """``fairchem --mode predict`` on one LMDB, its file put to ``out``.

    Raises:
        ValueError: a configuration, checkpoint or LMDB that cannot be used.
        RankDiedError: one of several ranks did.
    """
    values = {"dataset.test.src": src, "optim.eval_batch_size": batch_size, "num-gpus": ranks}
    _run("predict", config_yml, checkpoint, values, "*_predictions.npz", out)


def relax_structures(
    config_yml: Path,
    checkpoint: Path,
    src: Path,
    out: Path,
    *,
    stop: Stop = Stop(),
    batch_size: int | None = None,
    ranks: int = 1,
) -> None:
    """``fairchem --mode run-relaxations`` on one LMDB, its ``relaxed_positions.npz`` to ``out``.

    Raises:
        ValueError, RankDiedError: likewise.
    """
    values = {
        "dataset.relax.src": src,
        "task.write_pos": "true",
        "task.relaxation_fmax": stop.fmax,
        "task.relaxation_steps": stop.steps,
        "optim.eval_batch_size": batch_size,
        "num-gpus": ranks,
    }
    _run("run-relaxations", config_yml, checkpoint, values, "relaxed_positions.npz", out)


def _run(
    mode: str,
    config_yml: Path,
    checkpoint: Path,
    values: Mapping[str, Any],
    pattern: str,
    out: Path,
) -> None:
    """Run the host with ``values`` as arguments, those that are not ``None``."""
    if not config_yml.is_file():
        raise ValueError(f"{config_yml}: no such file")
    trained = read_checkpoint(checkpoint)["config"]["model"]
    with tempfile.TemporaryDirectory(prefix="ocp_faenet-dense-") as folder:
        command = [f"--mode={mode}", f"--config-yml={config_yml}", f"--checkpoint={checkpoint}"]
        command += [f"--run-dir={folder}", "--timestamp-id=run", "--identifier=dense"]
        command += [f"--{key}={value}" for key, value in values.items() if value is not None]
        config = build_config(*flags.get_parser().parse_known_args(command))
        # A file may serve both modes: the LMDB of the other one is not asked for.
        config["dataset"].pop({"predict": "relax", "run-relaxations": "test"}[mode], None)
        config["logger"] = "tensorboard"  # not W&B: predictions are no run of their own
        check_run_config(config)
        try:
            run_here(config, int(values["num-gpus"]), _quiet_rank)
        except RankDiedError:
            raise
        except (RuntimeError, KeyError, ValueError) as error:
            if differing := _differing(trained, config["model"]):
                raise ValueError(
                    f"{checkpoint}: does not fit {config_yml}: its model has {differing}; take the "
                    f"configuration that it was trained with ({type(error).__name__})"
                ) from error
            raise
        found = sorted((Path(folder) / "results" / "run").glob(pattern))
        if len(found) != 1:
            raise ValueError(f"{config_yml}: the host's {mode} left no {pattern}")
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(f".{out.name}.tmp")
        shutil.copyfile(found[0], temporary)
        temporary.replace(out)


def _differing(trained: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Settings of a trained model that a configuration has otherwise, the first three."""
    keys = [k for k in {**trained, **asked} if trained.get(k) != asked.get(k)]
    return ", ".join(f"{key} {trained.get(key)!r}, not {asked.get(key)!r}" for key in keys[:3])


def _quiet_rank(config: dict[str, Any]) -> None:
    """One of several ranks, without the host's log."""
    logging.disable(logging.INFO)
    run(config)


def write_relaxed(src: Path, positions: dict[str, np.ndarray], folder: Path) -> int:
    """The records of ``src`` at other positions, edges made anew: ``folder/data.lmdb``.

    Args:
        src: LMDB of a split.
        positions: ``(N, 3)``, Å, by id, or of the atoms that a loader left in the records; records
            without are left out.
        folder: of the new LMDB.

    Returns:
        The number of records.

    Raises:
        ValueError: other numbers of atoms.
    """

    def moved() -> Iterator[dict]:
        with open_lmdb(src) as records:
            for record in records:
                name = plain_id(record["sid"])
                if name not in positions:
                    continue
                pos = whole_structure(record, np.asarray(positions[name], dtype=np.float32))
                yield at_positions(record, pos)

    return write_folder(folder, moved())


def at_positions(record: dict, positions: np.ndarray) -> dict:
    """A record as plain arrays with its atoms elsewhere, edges made anew, old labels of the start
    dropped."""
    fields = {
        key: array_of(value) if hasattr(value, "detach") else value
        for key, value in record.items()
        if key not in ("y_init", "force", "edge_index", "cell_offsets", "distances", "natoms")
    }
    cell = np.asarray(fields["cell"], dtype=np.float64).reshape(3, 3)
    edges = pack_edges(positions.astype(np.float64), cell)
    return {**fields, "pos": positions, **edges}
