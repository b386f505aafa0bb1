"""Constructor arguments of ``faenet`` 0.1.3 as a configuration of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Defaults of the reference's constructor, for what a file leaves out.
DEFAULTS: dict[str, Any] = {
    "cutoff": 6.0,
    "act": "swish",
    "complex_mp": False,
    "max_num_neighbors": 40,
    "num_gaussians": 50,
    "num_filters": 128,
    "hidden_channels": 128,
    "tag_hidden_channels": 32,
    "pg_hidden_channels": 32,
    "phys_hidden_channels": 0,
    "phys_embeds": True,
    "num_interactions": 4,
    "mp_type": "updownscale_base",
    "graph_norm": True,
    "second_layer_MLP": True,
    "skip_co": "concat",
    "energy_head": None,
    "regress_forces": None,
    "force_decoder_type": "mlp",
}
#: ``preprocess`` of the reference -> how we make the graph.
_PREPROCESS = {
    "pbc_preprocess": {"use_pbc": True},
    "base_preprocess": {"use_pbc": False, "otf_graph": True},
}


def published_options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our ``model:`` section that predicts what ``faenet.FAENet(**kwargs)`` does.

    Fills in the reference's defaults, takes graph norm over the mini-batch and frames from the
    positions as it does (unless ``graph_norm_scope``, ``frame_source`` are given), and turns
    ``preprocess`` into ``use_pbc`` and ``otf_graph`` (where an atom has more than
    ``max_num_neighbors``, we keep the nearest, the reference any).
    Keys that only we know (``frame_averaging``, ``eval_fa_method``, ...) pass as they are; types
    and unknown keys are left to the reader of the result.

    Raises:
        ValueError: a ``preprocess`` that is not one of the reference's two.
    """
    options = {**DEFAULTS, "graph_norm_scope": "batch", "frame_source": "positions", **kwargs}
    preprocess = options.pop("preprocess", "pbc_preprocess")
    if not isinstance(preprocess, str) or preprocess not in _PREPROCESS:
        raise ValueError(f"preprocess: {preprocess!r}; known are {', '.join(_PREPROCESS)}")
    for key, value in _PREPROCESS[preprocess].items():
        options.setdefault(key, value)
    if not options["phys_embeds"]:  # the reference ignores the width then
        options["phys_hidden_channels"] = 0
    if options.get("fa_method") in ("all", "se3-all"):  # its frames are the same in evaluation
        options.setdefault("eval_fa_method", options["fa_method"])
    if not options["regress_forces"]:  # no decoder is built, whatever its sizes
        options.pop("force_decoder_type", None)
        options.pop("force_decoder_model_config", None)
    return options
