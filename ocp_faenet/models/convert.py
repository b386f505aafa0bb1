"""From a ``faenet`` 0.1.3 state dict to that of `FAENetCore`: names, checks, longer tables."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ocp_faenet.models.config import DecoderType, FAENetConfig
from ocp_faenet.models.faenet import FAENetCore
from ocp_faenet.nn.elements import groups, periods

#: Last atomic number with a trained row in the reference's embedding.
LAST_TRAINED = 84

#: Our name -> the reference's, first match wins.
_RENAME = (
    (r"backbone\.edge_embedding\.basis\.", "distance_expansion."),
    (r"backbone\.edge_embedding\.directional\.", "embed_block.lin_e1."),
    (r"backbone\.edge_embedding\.radial\.", "embed_block.lin_e12."),
    (r"backbone\.edge_embedding\.second\.", "embed_block.lin_e2."),
    (r"backbone\.atom_embedding\.properties\.table", "embed_block.phys_emb.properties"),
    (r"backbone\.atom_embedding\.properties\.project\.", "embed_block.phys_lin."),
    (r"backbone\.atom_embedding\.period_group\.", "embed_block."),
    (r"backbone\.atom_embedding\.embedding\.", "embed_block.emb."),
    (r"backbone\.atom_embedding\.first\.", "embed_block.lin."),
    (r"backbone\.atom_embedding\.second\.", "embed_block.lin_2."),
    (r"backbone\.atom_embedding\.", "embed_block."),
    (r"backbone\.interactions\.(\d+)\.norm\.", r"interaction_blocks.\1.graph_norm."),
    (r"backbone\.interactions\.(\d+)\.extra\.", r"interaction_blocks.\1.other_mlp."),
    (r"backbone\.interactions\.(\d+)\.convolution\.linear\.", r"interaction_blocks.\1.lin_geom."),
    (r"backbone\.interactions\.(\d+)\.linear\.", r"interaction_blocks.\1.lin_h."),
    (r"backbone\.interactions\.(\d+)\.(down|up)\.", r"interaction_blocks.\1.lin_\2."),
    (r"backbone\.mix_atoms\.", "mlp_skip_co."),
    (r"energy_head\.combine\.linear\.", "mlp_skip_co."),
    (r"energy_head\.initial_weights\.linear\.", "w_lin."),
    (r"energy_head\.readout\.weights\.linear\.", "output_block.w_lin."),
    (r"energy_head\.readout\.first\.", "output_block.lin1."),
    (r"energy_head\.readout\.second\.", "output_block.lin2."),
)
_RESIDUAL = tuple(
    (rf"force_head\.decoder\.block\.{i}\.", f"decoder.mlp_{i + 1}.") for i in range(3)
)
_RENAME_DECODER = {
    DecoderType.SIMPLE: ((r"force_head\.decoder\.out\.", "decoder.model."),),
    DecoderType.MLP: (
        (r"force_head\.decoder\.out\.0\.", "decoder.model."),
        (r"force_head\.decoder\.out\.1\.", "decoder.model.3."),
    ),
    DecoderType.RES: (
        *_RESIDUAL,
        (r"force_head\.decoder\.out\.0\.", "decoder.mlp_3."),
        (r"force_head\.decoder\.out\.1\.", "decoder.mlp_3.3."),
    ),
    DecoderType.RES_UPDOWN: (
        *_RESIDUAL,
        (r"force_head\.decoder\.out\.0\.", "decoder.mlp_4."),
        (r"force_head\.decoder\.out\.1\.", "decoder.mlp_4.3."),
    ),
}

#: The reference's name -> options on which it depends.
_OPTIONS = (
    (r"distance_expansion\.", "num_gaussians, cutoff"),
    (r"embed_block\.lin_e12\.", "num_gaussians, num_filters"),
    (r"embed_block\.lin_e1\.", "num_filters"),
    (r"embed_block\.(lin_2|lin_e2)\.", "second_layer_MLP, num_filters, hidden_channels"),
    (r"embed_block\.phys_emb\.properties", "phys_embeds"),
    (r"embed_block\.phys_lin\.", "phys_embeds, phys_hidden_channels"),
    (r"embed_block\.(period|group)_embedding\.", "pg_hidden_channels"),
    (r"embed_block\.phys_emb\.", "pg_hidden_channels"),
    (r"embed_block\.tag_embedding\.", "tag_hidden_channels"),
    (
        r"embed_block\.emb\.",
        "hidden_channels, tag_hidden_channels, pg_hidden_channels, phys_embeds, "
        "phys_hidden_channels",
    ),
    (r"interaction_blocks\.\d+\.graph_norm\.", "graph_norm, mp_type, num_interactions"),
    (r"interaction_blocks\.\d+\.other_mlp\.", "complex_mp, num_interactions"),
    (r"interaction_blocks\.", "mp_type, num_interactions, num_filters, hidden_channels"),
    (r"output_block\.w_lin\.", "energy_head: weighted-av-final-embeds"),
    (r"w_lin\.", "energy_head: weighted-av-initial-embeds"),
    (r"mlp_skip_co\.", "skip_co, num_interactions"),
    (r"decoder\.", "regress_forces, force_decoder_type, force_decoder_model_config"),
    (r"", "hidden_channels, out_dim"),
)

#: Tables that are longer here: our name -> (rows in the reference, first row of a real entry).
LONGER = {
    "backbone.atom_embedding.embedding.weight": (LAST_TRAINED + 1, 1),
    "backbone.atom_embedding.period_group.period_embedding.weight": (7, 1),
    "backbone.atom_embedding.period_group.group_embedding.weight": (19, 1),
    "backbone.atom_embedding.properties.table": (86, None),
}
#: Constants of the reference that have no counterpart in our state, checked against ours.
_CONSTANTS = {"embed_block.phys_emb.group": groups, "embed_block.phys_emb.period": periods}


def convert_state_dict(state: Mapping[str, Tensor], config: FAENetConfig) -> dict[str, Tensor]:
    """State dict of ``FAENetCore(config)`` with the weights of a ``faenet`` 0.1.3 model.

    The reference knows elements 1 to 84, groups 1 to 18 and periods 1 to 6. Rows that it lacks
    are filled so that predictions for structures it can read are unchanged: species, group and
    period embeddings with the mean of its trained rows, element properties with those of
    ``ocp_faenet.nn.elements``. Weights are copied, in their own precision; ``state`` is left as
    it is.

    A state dict does not tell ``act``, ``skip_co`` ``add`` from ``null``, ``max_num_neighbors``
    nor the frames: for these ``config`` is believed.

    Args:
        state: the reference's ``model.state_dict()``, with or without ``module.`` in front.
        config: the same options; ``graph_norm_scope: batch`` for the reference's predictions.

    Raises:
        ValueError: a key that is missing, unexpected, of the wrong shape or not finite, with the
            options it depends on; constants that differ from ours.
    """
    state = {re.sub(r"^(module\.)+", "", key): value for key, value in state.items()}
    rename = (*_RENAME, *_RENAME_DECODER[config.force_decoder_type])
    converted, used = {}, set()
    for ours, template in _template(config).items():
        key = _reference_name(ours, rename)
        if key not in state:
            raise ValueError(f"{key}: missing in the state dict, {_check(key)}")
        used.add(key)
        converted[ours] = _fit(key, state[key], ours, template)
    for key in state:
        if key in _CONSTANTS and config.pg_hidden_channels:
            _check_constant(key, state[key])
        elif key not in used:
            raise ValueError(f"{key}: not expected in the state dict, {_check(key)}")
    return converted


def _template(config: FAENetConfig) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        return dict(FAENetCore(config).state_dict())


def _reference_name(ours: str, rename: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rename:
        if re.match(pattern, ours):
            return re.sub(f"^{pattern}", replacement, ours)
    raise RuntimeError(f"{ours} has no counterpart in faenet 0.1.3")


def _check(key: str) -> str:
    options = next(options for pattern, options in _OPTIONS if re.match(pattern, key))
    return f"which does not fit the configuration: check {options}"


def _fit(key: str, value: Tensor, ours: str, template: Tensor) -> Tensor:
    rows, first = LONGER.get(ours, (None, None))
    expected = template.shape if rows is None else torch.Size([rows, *template.shape[1:]])
    if not isinstance(value, Tensor) or value.shape != expected:
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{key}: shape {found} instead of {tuple(expected)}, {_check(key)}")
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{key}: holds values that are not finite; the training had diverged")
    if key == "distance_expansion.offset":
        _check_centres(key, value, template)
    if rows is None:
        return value.detach().clone()
    new = template[rows:].to(value) if first is None else value[first:].mean(0, keepdim=True)
    return torch.cat([value.detach(), new.detach().expand(len(template) - rows, -1)])


def _check_centres(key: str, value: Tensor, template: Tensor) -> None:
    if not torch.allclose(value.double(), template.to(value.device).double(), atol=1e-4):
        raise ValueError(
            f"{key}: Gaussian centres end at {float(value[-1]):g} Å, the configuration's cutoff "
            f"is {float(template[-1]):g}; set cutoff to the former"
        )


def _check_constant(key: str, value: Tensor) -> None:
    ours = _CONSTANTS[key]().to(value.device)
    known = slice(1, LAST_TRAINED + 1)
    if value.dim() != 1 or len(value) <= LAST_TRAINED or not torch.equal(value[known], ours[known]):
        raise ValueError(
            f"{key}: groups or periods of elements 1 to {LAST_TRAINED} differ from those of "
            "mendeleev 0.15.0; these weights belong to another table and cannot be converted"
        )
