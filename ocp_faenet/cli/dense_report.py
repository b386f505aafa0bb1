"""The tables of ``ocp-faenet dense evaluate``."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ocp_faenet.cli.output import markdown_table
from ocp_faenet.metrics.bootstrap import Estimate
from ocp_faenet.metrics.dense import TOP_K

OVERALL = "overall"


class Basis(str, Enum):
    """Where the reference energy of a proposed structure comes from."""

    PROXY = "proxy: the target of the configuration stands in for the proposed structure's own"
    GIVEN = "reference energies of the proposed structures, as given"
    EMT = "EMT, relaxing the five best-ranked initial structures of a system"
    EMT_RELAXED = "EMT, at the five best-ranked structures of a system that the model relaxed"


#: Key of a score -> heading of the table, factor, digits.
COLUMNS = {
    "success_proxy": ("SR % (proxy)", 100.0, 1),
    "ml_success": ("SR %", 100.0, 1),
    "hybrid@1": ("hybrid k=1 %", 100.0, 1),
    "hybrid@5": ("hybrid k=5 %", 100.0, 1),
    "mae": ("MAE eV", 1.0, 3),
    "offset": ("offset eV", 1.0, 3),
    "within": ("within eV", 1.0, 3),
    "spearman": ("Spearman", 1.0, 2),
    "regret": ("regret eV", 1.0, 3),
}
#: Likewise of the second table, whose rows are k.
BY_K = {
    "hybrid": ("hybrid success %", 100.0, 1),
    "much_better": ("much better %", 100.0, 1),
    "found": ("minimum found %", 100.0, 1),
    "scf_speedup": ("SCF speed-up", 1.0, 1),
    "ionic_speedup": ("ionic speed-up", 1.0, 1),
}


@dataclass(frozen=True)
class Report:
    """Scores by split, and what they rest on."""

    rows: dict[str, dict[str, Estimate]]
    systems: dict[str, int]
    configurations: dict[str, int]
    basis: Basis
    missing: int
    left_out: int
    anomalies: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Everything, rates between 0 and 1."""
        return {
            "basis": self.basis.value,
            "missing_counted_as_failures": self.missing,
            "predictions_without_target": self.left_out,
            "anomalies": self.anomalies,
            "splits": {
                name: {
                    "systems": self.systems[name],
                    "configurations": self.configurations[name],
                    "scores": {key: value.as_json() for key, value in row.items()},
                }
                for name, row in self.rows.items()
            },
        }


def table_of(report: Report) -> str:
    """Both tables, and what they rest on."""
    shown = {key: column for key, column in COLUMNS.items() if key in report.rows[OVERALL]}
    header = ["split", "systems", "configurations", *(heading for heading, _, _ in shown.values())]
    lines = [
        [
            name,
            str(report.systems[name]),
            str(report.configurations[name]),
            *(cell(row.get(key), factor, digits) for key, (_, factor, digits) in shown.items()),
        ]
        for name, row in report.rows.items()
    ]
    overall = report.rows[OVERALL]
    by_k = {key: column for key, column in BY_K.items() if f"{key}@1" in overall}
    second = [
        [str(k), *(cell(overall[f"{key}@{k}"], f, d) for key, (_, f, d) in by_k.items())]
        for k in TOP_K
    ]
    parts = [
        markdown_table(header, lines),
        f"Validity and hybrid energies from {report.basis.value}. 95 % intervals over systems.",
        markdown_table(["k, overall", *(heading for heading, _, _ in by_k.values())], second),
    ]
    if report.missing:
        parts.append(f"{report.missing} configurations without a prediction count as failures.")
    if report.anomalies:
        listed = ", ".join(f"{count} {name}" for name, count in sorted(report.anomalies.items()))
        parts.append(f"Without a reference energy, and never valid: {listed}.")
    if report.left_out:
        parts.append(f"{report.left_out} predictions left out: no target of their configuration.")
    return "\n\n".join(parts)


def cell(estimate: Estimate | None, factor: float, digits: int) -> str:
    """``value [low, high]``."""
    if estimate is None or estimate.value != estimate.value:
        return "-"
    numbers = (estimate.value, estimate.low, estimate.high)
    value, low, high = (f"{factor * number:.{digits}f}" for number in numbers)
    return f"{value} [{low}, {high}]"
