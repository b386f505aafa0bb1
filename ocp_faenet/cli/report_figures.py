"""The report's figures 2 and 5: what is computed for each, and what is said below it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ocp_faenet.adapters.measurements import measure
from ocp_faenet.cli.dense_inputs import read_energies
from ocp_faenet.cli.dense_plot import chosen_systems, draw_energies
from ocp_faenet.cli.diagnose_plot import plot_depth
from ocp_faenet.cli.report_plan import DEPTH, TABLE2, Setting
from ocp_faenet.cli.report_text import stamp_of, stamped
from ocp_faenet.data import dense_tables as tables


def make_figure2(setting: Setting) -> dict[str, Any]:
    """MAD by layer of the deepest FAENet with and without Noisy Nodes, over all seeds."""
    outcome = setting.outcome(DEPTH)
    models = []
    for row in outcome.report["rows"]:
        runs = [measure("layers", *run) for run in outcome.runs_of(row["variant"])]
        layers = range(sum(key.startswith("MAD") for key in runs[0]))
        models.append(
            {
                "label": row["label"],
                "mad": [float(np.mean([run[f"MAD {n}"] for run in runs])) for n in layers],
                "spread": [float(np.mean([run[f"spread {n}"] for run in runs])) for n in layers],
                "mae": row["average"],
            }
        )
    drawn = [{**model, "checkpoint": model["label"]} for model in models]
    plot_depth(drawn, setting.out / "figure2.png")
    return {"pictures": ["figure2.png"], "models": models, **stamped(outcome.report)}


def render_figure2(content: Mapping[str, Any]) -> str:
    """The ends of both curves."""
    ends = "; ".join(
        f"{model['label']}: {model['mad'][1]:.2f} after the first interaction, "
        f"{model['mad'][-1]:.2f} after the last, mean MAE of the four splits "
        f"{model['mae'][0]:.3f} eV"
        for model in content["models"]
    )
    return (
        "MAD, the mean cosine distance between the embeddings of two atoms of a structure (layer "
        f"0: embedding block); the band is one standard deviation over structures. {ends}. "
        f"{stamp_of(content)} The report reprints the curves of another network (Godwin et al., "
        "arXiv 2106.07971), a 16-layer MPNN on other data."
    )


def make_figure5(setting: Setting) -> dict[str, Any]:
    """Predicted and reference energies of four systems, by the first seed of Table 2's FAENet."""
    outcome = setting.outcome(TABLE2)
    spec, _, folder = outcome.runs_of("faenet")[0]
    own = setting.data / "dense" / "oc20dense_"
    targets = tables.read_targets(Path(f"{own}targets.pkl"))
    mapping = tables.read_mapping(Path(f"{own}mapping.pkl"))
    paths = [folder / f"predictions_{split}.npz" for split in spec.splits]
    predicted = read_energies(paths, mapping)
    systems = chosen_systems(None, predicted, targets)
    draw_energies(predicted, targets, mapping, systems, setting.out / "figure5.png")
    energies = {name: _energies(targets[name], predicted[name]) for name in systems}
    return {"pictures": ["figure5.png"], "energies": energies, **stamped(outcome.report, seeds=1)}


def _energies(
    targets: Mapping[str, float], predicted: Mapping[str, tuple[float, str]]
) -> dict[str, list[float]]:
    """Reference and predicted energy by configuration, the most stable first."""
    names = sorted(targets, key=lambda name: (targets[name], name))
    return {name: [targets[name], predicted[name][0]] for name in names}


def render_figure5(content: Mapping[str, Any]) -> str:
    """What is drawn."""
    return (
        f"Systems {', '.join(content['energies'])}, those with most configurations, these in the "
        "order of their reference energies: the band is 0.1 eV above the minimum, the ring is the "
        f"configuration that FAENet would choose. {stamp_of(content)}"
    )
