"""Small OC20-schema data and runs of the real ``fairchem`` executable for the plugin's tests."""

from __future__ import annotations

import copy
import fcntl
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ase.build
import lmdb
import numpy as np
import torch
import yaml
from ase import Atoms
from ase.calculators.emt import EMT
from ase.neighborlist import primitive_neighbor_list
from torch_geometric.data import Data

from ocp_faenet.adapters import checkpoints
from ocp_faenet.adapters.model import FAENet

CUTOFF = 4.0
TINY = {
    "hidden_channels": 24,
    "num_filters": 8,
    "num_interactions": 2,
    "num_gaussians": 8,
    "tag_hidden_channels": 4,
    "pg_hidden_channels": 4,
    "phys_embeds": False,
    "cutoff": CUTOFF,
}
#: Random in every way the model knows, so that an exact resume has something to prove.
STOCHASTIC = {
    "name": "ocp_faenet.FAENet",
    **TINY,
    "frame_averaging": "2D",
    "fa_method": "stochastic",
    "regress_forces": "direct",
    "otf_graph": True,
    "dropout_lin": 0.1,
    "dropout_edge": 0.1,
    "dropout_lowest_layer": "inter-0",
}


def slab_atoms(seed: int) -> Atoms:
    """A rattled Cu or Pd slab with an oxygen atom, all inside the cell."""
    rng = np.random.default_rng(seed)
    size = (1 + seed % 2, 2, 2)
    atoms = ase.build.fcc111(("Cu", "Pd")[seed % 2], size=size, vacuum=6.0)
    ase.build.add_adsorbate(atoms, "O", height=1.2, position=(0.8, 0.9))
    atoms.positions += rng.normal(scale=0.08, size=atoms.positions.shape)
    atoms.pbc = True
    atoms.wrap()
    layer = atoms.get_tags()  # ASE: 0 adsorbate, 1 top layer, 2 below
    atoms.set_tags(np.select([layer == 0, layer == 1], [2, 1], 0))
    return atoms


def slab_record(seed: int, *, edges: bool = False) -> Data:
    """One record in the OC20 schema with EMT energy (eV) and forces (eV/Å)."""
    atoms = slab_atoms(seed)
    atoms.calc = EMT()
    tags = torch.tensor(atoms.get_tags())
    data = Data(
        pos=torch.tensor(atoms.positions, dtype=torch.float32),
        cell=torch.tensor(atoms.cell.array, dtype=torch.float32).view(1, 3, 3),
        atomic_numbers=torch.tensor(atoms.numbers, dtype=torch.float32),
        natoms=len(atoms),
        tags=tags,
        fixed=(tags == 0).long(),
        y=float(atoms.get_potential_energy()),
        force=torch.tensor(atoms.get_forces(), dtype=torch.float32),
        sid=1000 + seed,
    )
    if edges:
        i, j, offsets = primitive_neighbor_list(
            "ijS", atoms.pbc, atoms.cell.array, atoms.positions, CUTOFF
        )
        data.edge_index = torch.tensor(np.stack([j, i]))
        data.cell_offsets = torch.tensor(offsets)
    return data


def write_lmdb(path: Path, records: list[Any], *, length: int | None = None) -> Path:
    """Records as the stock loader expects them, ``metadata.npz`` beside them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    env = lmdb.open(str(path), map_size=1 << 26, subdir=False, meminit=False)
    with env.begin(write=True) as txn:
        for index, record in enumerate(records):
            payload = record if isinstance(record, bytes) else pickle.dumps(record, protocol=-1)
            txn.put(f"{index}".encode("ascii"), payload)
        if length is not None:
            txn.put(b"length", pickle.dumps(length))
    env.close()
    natoms = [record.natoms for record in records if isinstance(record, Data)]
    np.savez(path.parent / "metadata.npz", natoms=np.array(natoms, dtype=int))
    return path


def write_splits(root: Path, *, train: int = 10, test: int = 4) -> None:
    """``train/`` and ``test/data.lmdb`` under ``root``."""
    write_lmdb(root / "train" / "data.lmdb", [slab_record(seed) for seed in range(train)])
    write_lmdb(root / "test" / "data.lmdb", [slab_record(90 + seed) for seed in range(test)])


def run_config(data: Path, model: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """A short S2EF run; ``sections`` replace whole top-level sections."""
    config = {
        "trainer": "ocp",
        "logger": "tensorboard",
        "dataset": {
            "train": {
                "src": str(data / "train" / "data.lmdb"),
                "format": "lmdb",
                "key_mapping": {"y": "energy", "force": "forces"},
                "transforms": {"normalizer": {"energy": {"mean": 10.0, "stdev": 2.0}}},
            },
            "val": {"src": str(data / "test" / "data.lmdb")},
            "test": {"src": str(data / "test" / "data.lmdb")},
        },
        "outputs": {
            "energy": {"shape": 1, "level": "system", "prediction_dtype": "float32"},
            "forces": {
                "irrep_dim": 1,
                "level": "atom",
                "train_on_free_atoms": True,
                "eval_on_free_atoms": True,
                "prediction_dtype": "float32",
            },
        },
        "loss_functions": [
            {"energy": {"fn": "mae", "coefficient": 1}},
            {"forces": {"fn": "l2mae", "coefficient": 5}},
        ],
        "evaluation_metrics": {
            "metrics": {"energy": ["mae"], "forces": ["mae"]},
            "primary_metric": "energy_mae",
        },
        "model": model,
        "optim": {
            "batch_size": 2,
            "num_workers": 0,
            "optimizer": "AdamW",
            "lr_initial": 1e-3,
            "warmup_steps": 3,
            "warmup_factor": 0.2,
            "lr_milestones": [1000],
            "lr_gamma": 0.1,
            "checkpoint_every": 2,
            "max_epochs": 1,
        },
    }
    return {**copy.deepcopy(config), **sections}


def one_thread() -> dict[str, str]:
    """The environment of a subprocess: one thread, no logger account."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}


def fairchem(
    config: dict[str, Any], folder: Path, name: str, *args: str, mode: str = "train"
) -> subprocess.CompletedProcess[str]:
    """Run the host's own executable on ``config``; outputs go to ``folder``, run id ``name``."""
    folder.mkdir(parents=True, exist_ok=True)
    config_yml = folder / f"{name}.yml"
    config_yml.write_text(yaml.safe_dump(config, sort_keys=False))
    command = [str(Path(sys.executable).with_name("fairchem")), "--mode", mode, "--cpu"]
    command += ["--config-yml", str(config_yml), "--run-dir", str(folder)]
    command += ["--timestamp-id", name, "--print-every", "1", *args]
    with one_at_a_time() if "--num-gpus" in args else nullcontext():
        return subprocess.run(
            command, capture_output=True, text=True, cwd=folder, env=one_thread(), timeout=550
        )


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """For several ranks of the host: all such runs of a machine meet at one port, and those that
    came later hang when the first ends."""
    with (Path(tempfile.gettempdir()) / f"ocp_faenet-ranks-{os.getuid()}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def checkpoint(folder: Path, name: str, file: str = "checkpoint.pt") -> dict[str, Any]:
    """A checkpoint of run ``name``, names of weights as the model itself has them."""
    path = folder / "checkpoints" / name / file
    saved = torch.load(path, map_location="cpu", weights_only=False)
    weights = saved["state_dict"].items()
    saved["state_dict"] = {key.removeprefix("module."): value for key, value in weights}
    return saved


def once(folder: Path, build: Callable[[Path], None]) -> Path:
    """``folder`` as ``build`` leaves it, built once by whichever test worker comes first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / "done"
        if not done.exists():
            folder.mkdir(exist_ok=True)
            build(folder)
            done.touch()
    return folder


def untrained(path: Path, options: dict[str, Any], *, scale: float) -> Path:
    """A checkpoint as the host's trainer saves it, of a FAENet with random weights, seed 0.

    ``scale`` is the deviation of energies and forces: such weights predict small ones.
    """
    torch.manual_seed(0)
    config = checkpoints._host_config(options, True)
    normalizers = checkpoints.Scales(energy_std=scale, force_std=scale).normalizers(True)
    weights = dict(FAENet(**options).state_dict())
    built = {"state_dict": weights, "normalizers": normalizers, "config": config}
    checkpoints.save_whole({**built, "elementrefs": {}, "val_metrics": None, "amp": None}, path)
    return path
