"""The report's figure 3: the interaction in two parts, and filters of trained Ewald messages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ocp_faenet.adapters.ewald_filters import learned_filters
from ocp_faenet.cli.output import machine_class
from ocp_faenet.cli.report_plan import EWALD, Setting
from ocp_faenet.cli.report_text import stamp_of, stamped, untrained
from ocp_faenet.geometry import ewald_split

#: Where the interaction is divided, Å⁻¹, and the two cutoffs, Å and Å⁻¹.
ALPHA, R_CUTOFF, K_CUTOFF = 0.5, 6.0, 3.0
#: Rock salt: lattice constant in Å, and the sum over its signs (Madelung's constant).
ROCK_SALT, MADELUNG = 5.64, 1.7475645946331822


def make_figure3(setting: Setting) -> dict[str, Any]:
    """Both parts of 1/r in their own spaces, and what cutoffs cost in rock salt."""
    from ocp_faenet.cli.report_drawings import split_picture

    cutoffs = np.linspace(2.5, 14.0, 47).tolist()
    plain = [madelung_error(cutoff, None) for cutoff in cutoffs]
    divided = [madelung_error(cutoff, 2 * ALPHA**2 * cutoff) for cutoff in cutoffs]
    split_picture(cutoffs, plain, divided, setting.out / "figure3.png")
    at = madelung_error(R_CUTOFF, K_CUTOFF)
    return {
        "pictures": ["figure3.png"],
        "alpha": ALPHA,
        "r_cutoff": R_CUTOFF,
        "k_cutoff": K_CUTOFF,
        "left_out_short": float(ewald_split.short_range(torch.tensor(R_CUTOFF), ALPHA)),
        "cutoffs": cutoffs,
        "plain": plain,
        "divided": divided,
        "plain_at": madelung_error(R_CUTOFF, None),
        "divided_at": at,
        "command": setting.command,
        "machine": machine_class(),
    }


def madelung_error(r_cutoff: float, k_cutoff: float | None) -> float:
    """Relative error of rock salt's energy with a cutoff on 1/r, or with one on each part of it."""
    signs = torch.cartesian_prod(*[torch.arange(2)] * 3)
    positions = signs.double() * ROCK_SALT / 2
    charges = (1.0 - 2.0 * (signs.sum(-1) % 2)).double()
    cell = torch.eye(3, dtype=torch.float64) * ROCK_SALT
    exact = -4 * MADELUNG * ewald_split.COULOMB / (ROCK_SALT / 2)
    if k_cutoff is None:
        found = ewald_split.cut_energy(positions, charges, cell, r_cutoff)
    else:
        found = ewald_split.ewald_energy(positions, charges, cell, ALPHA, r_cutoff, k_cutoff).total
    return abs(found / exact - 1)


def render_figure3(content: Mapping[str, Any]) -> str:
    """The equation, and the errors."""
    return (
        f"1/r = erfc(αr)/r + erf(αr)/r with α = {content['alpha']} Å⁻¹. The first part is "
        f"summed up to {content['r_cutoff']:g} Å in real space, where it has fallen to "
        f"{content['left_out_short']:.0e} Å⁻¹, the second in Fourier space up to "
        f"{content['k_cutoff']:g} Å⁻¹. Right: relative error of rock salt's energy when 1/r itself "
        "is cut off, and when both parts are, at r and k = 2α²r (at 6 Å: "
        f"{100 * content['plain_at']:.0f} % and {100 * content['divided_at']:.1g} %). Computed "
        f"here; the report's figure is a drawing. {untrained(content)}"
    )


def make_filters(setting: Setting) -> dict[str, Any]:
    """Strength of the long-range filters of a trained FAENet, by wave number."""
    from ocp_faenet.cli.report_drawings import filters_picture

    outcome = setting.outcome(EWALD)
    _, result, _ = outcome.runs_of("cutoff")[0]
    cutoff = float(result["model"]["ewald"]["k_cutoff"])
    norms = torch.linspace(0.0, cutoff, 121)
    filters = learned_filters(Path(result["checkpoint"]), norms)
    filters_picture(norms.tolist(), filters.tolist(), setting.out / "figure3_learned.png")
    maes = {row["label"]: row["average"] for row in outcome.report["rows"]}
    return {
        "pictures": ["figure3_learned.png"],
        "k": norms.tolist(),
        "filters": filters.tolist(),
        "maes": maes,
        **stamped(outcome.report),
    }


def render_filters(content: Mapping[str, Any]) -> str:
    """What the picture shows."""
    maes = "; ".join(f"{label} {mean:.3f} eV" for label, (mean, _) in content["maes"].items())
    return (
        "Filters of a trained FAENet with `ewald: {k_cutoff: ...}` by wave number, seed 0: root "
        "mean square over channels, each layer relative to its largest value. Dotted, the Gaussian "
        "of an Ewald "
        "sum's long-range part with α as in figure 3, without its 1/k². The envelope takes all "
        f"filters to zero at the cutoff. Mean MAE of the four splits: {maes}. {stamp_of(content)}"
    )
