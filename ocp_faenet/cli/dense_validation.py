"""Reference energies of proposed structures by EMT, which is what the embedded data rest on."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from ocp_faenet.cli.dense_proposals import Proposal, proposals
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.data.dense_oracle import adsorption_energy, anomalies_of, follow
from ocp_faenet.metrics.dense import TOP_K


@dataclass
class Checked:
    """What EMT says of the best-ranked structures.

    Attributes:
        energies: adsorption energies in eV by system and configuration, of those that are valid
            structures.
        calls: evaluations of energy and forces that each of the best-ranked took.
        anomalies: how many were left out by reason: an anomaly, or a relaxation without an end.
    """

    energies: dict[str, dict[str, float]] = field(default_factory=dict)
    calls: dict[str, dict[str, int]] = field(default_factory=dict)
    anomalies: Counter[str] = field(default_factory=Counter)


def check_by_emt(
    predictions: Sequence[Path],
    data: Sequence[Path],
    relaxed: Sequence[Path],
    systems: Iterable[str],
) -> Checked:
    """EMT's energies of the five best-ranked structures of each system; scores ask for no more.

    Without ``relaxed`` a direct prediction is meant for the relaxed energy, so EMT relaxes the
    initial structure. With it EMT takes the energy of the structure that the model relaxed, as
    AdsorbML's single points do. Structures that end as one of AdsorbML's anomalies have none.

    Args:
        predictions: files of ``fairchem --mode predict``.
        data: LMDBs of the splits, with ``ref_energy``.
        relaxed: ``relaxed_positions.npz`` of the model.
        systems: that are scored.

    Raises:
        BadInputError: unreadable files, systems that the LMDBs lack, records of other elements
            than those of EMT.
    """
    wanted = set(systems)
    every = proposals(predictions, data, relaxed)
    absent = sorted(wanted - set(every))
    if absent:
        raise BadInputError(
            f"--data: no record of system {absent[0]} ({len(absent)} such systems); give the LMDBs "
            "of all splits, or choose splits with --only"
        )
    chosen = [(name, each) for name in sorted(wanted) for each in every[name][: TOP_K[-1]]]
    out = Checked({name: {} for name in wanted}, {name: {} for name in wanted})
    for system, proposal in tqdm(chosen, desc="EMT", file=sys.stderr):
        try:
            energy, calls = _energy(proposal, bool(relaxed), out.anomalies)
        except ValueError as error:
            raise BadInputError(str(error)) from error
        out.calls[system][proposal.config] = calls
        if energy is not None:
            out.energies[system][proposal.config] = energy
    return out


def _energy(
    proposal: Proposal, as_it_is: bool, anomalies: Counter[str]
) -> tuple[float | None, int]:
    """Energy in eV, ``None`` for an anomaly, and EMT's calls."""
    if not as_it_is:
        done = follow(proposal.record, proposal.start)
        anomalies.update(done.reasons)
        return done.energy, done.calls
    reasons = anomalies_of(proposal.record, proposal.structure)
    anomalies.update(reasons)
    return None if reasons else adsorption_energy(proposal.record, proposal.structure), 1
