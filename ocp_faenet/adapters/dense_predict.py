"""The host's `predict` and `run-relaxations` on the splits of OC20-Dense."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from fairchem.core.common.flags import flags
from fairchem.core.common.utils import build_config

from ocp_faenet.adapters.preflight import check_run_config
from ocp_faenet.adapters.runner import Runner
from ocp_faenet.data.dense_membership import plain_id
from ocp_faenet.data.edges import pack_edges
from ocp_faenet.data.generate import write_folder
from ocp_faenet.data.reader import open_lmdb
from ocp_faenet.data.schema import array_of


def predict_energies(
    config_yml: Path, checkpoint: Path, src: Path, out: Path, *, batch_size: int | None = None
) -> None:
    """``fairchem --mode predict`` on one LMDB, its file put to ``out``.

    Raises:
        ValueError: a configuration, checkpoint or LMDB that cannot be used.
    """
    arguments = [f"--dataset.test.src={src}"]
    _run("predict", config_yml, checkpoint, arguments, "*_predictions.npz", out, batch_size)


def relax_structures(
    config_yml: Path, checkpoint: Path, src: Path, out: Path, *, batch_size: int | None = None
) -> None:
    """``fairchem --mode run-relaxations`` on one LMDB, its ``relaxed_positions.npz`` to ``out``.

    Raises:
        ValueError: likewise.
    """
    arguments = [f"--dataset.relax.src={src}", "--task.write_pos=true"]
    found = "relaxed_positions.npz"
    _run("run-relaxations", config_yml, checkpoint, arguments, found, out, batch_size)


def _run(
    mode: str,
    config_yml: Path,
    checkpoint: Path,
    arguments: list[str],
    pattern: str,
    out: Path,
    batch_size: int | None,
) -> None:
    for path in (config_yml, checkpoint):
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
    if batch_size is not None:
        arguments = [*arguments, f"--optim.eval_batch_size={batch_size}"]
    with tempfile.TemporaryDirectory(prefix="ocp_faenet-dense-") as folder:
        command = [f"--mode={mode}", f"--config-yml={config_yml}", f"--checkpoint={checkpoint}"]
        command += [f"--run-dir={folder}", "--timestamp-id=run", "--identifier=dense"]
        config = build_config(*flags.get_parser().parse_known_args([*command, *arguments]))
        check_run_config(config)
        Runner()(config)
        found = sorted((Path(folder) / "results" / "run").glob(pattern))
        if len(found) != 1:
            raise ValueError(f"{config_yml}: the host's {mode} left no {pattern}")
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(f".{out.name}.tmp")
        shutil.copyfile(found[0], temporary)
        temporary.replace(out)


def write_relaxed(src: Path, positions: dict[str, np.ndarray], folder: Path) -> int:
    """The records of ``src`` at other positions, edges made anew: ``folder/data.lmdb``.

    Args:
        src: LMDB of a split.
        positions: ``(N, 3)``, Å, by id; records without are left out.
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
                pos = np.asarray(positions[name], dtype=np.float32)
                if pos.shape != tuple(record["pos"].shape):
                    raise ValueError(
                        f"{src}: sid {name} has {len(record['pos'])} atoms, {len(pos)} were relaxed"
                    )
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
