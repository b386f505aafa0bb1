"""Records turned by the loader: ``frame_averaging: {frame_averaging: DA, augmentation: 2D}``.

Everything in a record that points somewhere turns together, so that a turned record is one that
the simulation could have written: positions, cell, forces, relaxed positions, edge vectors.
Works for any model of the host, not ours alone.

The host gives a transform neither the split nor the epoch, and hands the training split's
transforms to the others unless those name their own. What tells training from the rest is that
gradients are being recorded: the host validates, predicts, relaxes and fits normalisers under
``torch.no_grad()``, which worker processes inherit. There, records stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
from torch import Tensor
from torch_geometric.data import Data

from ocp_faenet.adapters.records import record_name
from ocp_faenet.adapters.seeding import fresh_generator
from ocp_faenet.geometry.rotations import random_rotations, random_rotations_about_z
from ocp_faenet.models.config import Augmentation

#: Keys whose last axis is a direction in space: ``v' = v @ R``.
VECTORS = frozenset(
    {"pos", "pos_relaxed", "cell", "force", "forces", "edge_distance_vec", "velocities", "dipole"}
    | {"denoising", "denoising_offset"}  # of `ocp_faenet.adapters.noise`
)
#: ``(..., 3, 3)`` tensors: ``T' = R^T @ T @ R``.
TENSORS = frozenset({"stress", "virial", "virials"})
#: Three numbers a row that point nowhere.
SCALARS = frozenset({"cell_offsets", "pbc", "fixed", "species"})
DRAW = {Augmentation.PLANE: random_rotations_about_z, Augmentation.SPACE: random_rotations}


def augmented(data: Data, augmentation: Augmentation, vectors: Collection[str] = ()) -> Data:
    """A copy of one record turned at random in training, the record itself elsewhere.

    Each draw is fresh, repeats under the same ``--seed``, and differs between workers and ranks
    (`fresh_generator`).

    Args:
        data: a record with ``pos`` ``(N, 3)``, Å.
        augmentation: about z, or in space.
        vectors: keys that turn beside `VECTORS`.

    Raises:
        ValueError: see `turned_record`.
    """
    if not torch.is_grad_enabled():
        return data
    rotation = DRAW[augmentation](1, dtype=torch.float64, generator=fresh_generator())[0]
    return turned_record(data, rotation, vectors)


def turned_record(data: Data, rotation: Tensor, vectors: Collection[str] = ()) -> Data:
    """A copy of one record turned by ``rotation`` ``(3, 3)``: ``x' = x @ R``, in float64.

    Raises:
        ValueError: a key of `vectors` that is no array of vectors; a key with three real numbers
            a row of which it is not known whether they are a vector.
    """
    vectors = VECTORS | frozenset(vectors)
    out = copy.copy(data)
    for key, value in data.items():
        if key in SCALARS or not torch.is_tensor(value):
            continue
        if key in TENSORS:
            tensor = value.double().reshape(-1, 3, 3)
            out[key] = (rotation.mT @ tensor @ rotation).to(value.dtype).view(value.shape)
        elif key in vectors:
            if value.dim() == 0 or value.shape[-1] != 3 or not value.is_floating_point():
                raise ValueError(
                    f"{record_name(data)}: {key!r} of shape {tuple(value.shape)} and "
                    f"{value.dtype} holds no vectors; take it out of transforms.frame_averaging"
                )
            out[key] = (value.double() @ rotation).to(value.dtype)
        elif value.is_floating_point() and value.dim() > 1 and value.shape[-1] == 3:
            raise ValueError(
                f"{record_name(data)}: is {key!r} of shape {tuple(value.shape)} a vector? Name it "
                "in transforms.frame_averaging.vectors, or put what makes it after this transform"
            )
    return out
