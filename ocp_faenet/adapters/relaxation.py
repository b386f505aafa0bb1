"""The host's batched relaxation, made to resume and to see the structure as it is.

`resumable_relax` stands in for `fairchem.core.common.relaxation.ml_relaxation.ml_relax` once the
plugin is loaded, under any trainer. The host's own, as it is in 1.10:

- skips a batch whose trajectories exist and leaves its systems out of ``relaxed_positions.npz``
  and of the metrics (`check_traj_files`, which is told here that there are none);
- hands a model without ``otf_graph`` the edges of the *initial* structure at every step;
- ends the trajectory of a converged system one step before its relaxed structure;
- compares energies ``(B, 1)`` with targets ``(B,)``, every prediction with every target.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.common.relaxation.ml_relaxation import ml_relax
from fairchem.core.datasets import data_list_collater
from torch_geometric.data import Batch

from ocp_faenet.adapters.trajectories import Relaxed, Trajectories

#: Arguments of the host's one optimizer that ``task.relax_opt`` may set.
OPTIONS = ("maxstep", "memory", "damping", "alpha", "traj_dir")
#: What a relaxation makes stale.
STALE = ("edge_index", "cell_offsets", "neighbors", "distances", "edge_distance_vec")


def never(batch: Any, traj_dir: Any) -> bool:
    """What the host asks to skip a batch: never, `resumable_relax` looks at each system."""
    return False


def resumable_relax(
    batch: Batch,
    model: Any,
    steps: int,
    fmax: float,
    relax_opt: Mapping[str, Any] | None = None,
    **options: Any,
) -> Batch:
    """Relax the systems of ``batch`` that no earlier run has relaxed, and return all of them.

    With ``traj_dir`` each finished system has ``<sid>.traj`` there, ending in the relaxed
    structure, and is taken from it by a later run with the same weights, ``fmax`` and ``steps``.

    Args:
        batch: collated records, not changed.
        model: the trainer.
        steps: at most that many.
        fmax: largest force on a free atom at the end, eV/Å.
        relax_opt: some of `OPTIONS`.
        options: passed on to the host's function.

    Returns:
        ``batch`` with ``pos`` relaxed, ``energy`` ``(B,)`` and ``forces`` ``(N, 3)`` there.

    Raises:
        ValueError: an unknown option, or a trajectory of another structure.
    """
    settings = check_options(relax_opt)
    folder = settings.pop("traj_dir", None)
    mark = {"fmax": fmax, "steps": steps, "weights": weights_digest(model), **settings}
    store = None if folder is None else Trajectories(Path(folder), mark, distutils.get_rank())
    records = batch.clone().to_data_list()
    names = [str(_plain(record.sid)) for record in records]
    found: dict[str, Relaxed] = {}
    for name, record in zip(names, records, strict=True):
        done = None if store is None else store.load(name, record)
        if done is not None:
            found[name] = done
    todo = [place for place, name in enumerate(names) if name not in found]
    if todo:
        if store is not None:
            settings["traj_dir"] = store.unfinished
        fresh = _relax([records[place] for place in todo], model, steps, fmax, settings, options)
        if store is not None:
            for place in todo:
                store.save(names[place], records[place], fresh[names[place]])
        found |= fresh
    return _with_results(batch, [found[name] for name in names])


def check_options(relax_opt: Mapping[str, Any] | None) -> dict[str, Any]:
    """``relax_opt`` as the host's optimizer takes it.

    Raises:
        ValueError: an unknown key, or the ``name`` of another optimizer than its only one.
    """
    found = dict(relax_opt or {})
    if str(found.pop("name", "lbfgs")).lower() != "lbfgs":
        raise ValueError("task.relax_opt.name: the host has lbfgs alone; drop the key")
    for key, value in found.items():
        if key not in OPTIONS:
            raise ValueError(
                f"task.relax_opt: unknown key {key!r} (value {value!r}); {', '.join(OPTIONS)}"
            )
    return found


def weights_digest(trainer: Any) -> str:
    """A hash of the weights, to tell trajectories of one checkpoint from another's."""
    digest = hashlib.sha256()
    for name, value in sorted(trainer._unwrapped_model.state_dict().items()):
        if not name.endswith("training_passes"):
            digest.update(name.encode())
            digest.update(value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def edges_made_anew(trainer: Any) -> Iterator[None]:
    """Every part of the model builds its graph from the positions that it is given."""
    parts = [m for m in trainer._unwrapped_model.modules() if hasattr(m, "otf_graph")]
    before = [part.otf_graph for part in parts]
    for part in parts:
        part.otf_graph = True
    try:
        yield
    finally:
        for part, value in zip(parts, before, strict=True):
            part.otf_graph = value


def _relax(
    records: list[Any],
    trainer: Any,
    steps: int,
    fmax: float,
    settings: dict[str, Any],
    options: Mapping[str, Any],
) -> dict[str, Relaxed]:
    """The host's relaxation of ``records``, results by sid."""
    for record in records:
        for key in STALE:
            if key in record:
                del record[key]
    batch = data_list_collater(records, otf_graph=True)
    with edges_made_anew(trainer):
        relaxed = ml_relax(
            batch=batch, model=trainer, steps=steps, fmax=fmax, relax_opt=settings, **options
        )
    # After a split for want of memory the order is another one: results go by sid.
    sizes = relaxed.natoms.tolist()
    parts = zip(relaxed.pos.split(sizes), relaxed.forces.split(sizes), strict=True)
    energies = relaxed.energy.view(-1)
    return {
        str(_plain(sid)): Relaxed(pos.cpu(), energy.cpu(), forces.cpu())
        for sid, energy, (pos, forces) in zip(relaxed.sid, energies, parts, strict=True)
    }


def _with_results(batch: Batch, results: list[Relaxed]) -> Batch:
    out = batch.clone()
    for key in STALE:
        if key in out:
            del out[key]
    device = batch.pos.device
    out.pos = torch.cat([r.positions for r in results]).to(device, batch.pos.dtype)
    out.energy = torch.stack([r.energy for r in results]).to(device)
    out.forces = torch.cat([r.forces for r in results]).to(device)
    return out


def _plain(value: Any) -> Any:
    return value.item() if torch.is_tensor(value) else value
