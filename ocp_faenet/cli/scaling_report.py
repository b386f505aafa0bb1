"""Tables of ``ocp-faenet scaling`` from its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ocp_faenet.cli.output import markdown_table
from ocp_faenet.models.scaling import GPUS

#: Samples a second of FAENet SFA on IS2RE, the report's Table 1. The GPU is not named there:
#: that it was this one is an assumption.
ANCHOR, ANCHOR_GPU = 2944.0, "a100"


def anchor_bound(inference_bytes: float) -> float:
    """Samples a second of inference on the GPU of `ANCHOR`, bound by memory traffic."""
    return GPUS[ANCHOR_GPU].bandwidth / inference_bytes


def costs_table(costs: Mapping[str, Any]) -> str:
    """What a sample and a pass cost, by workload."""
    rows = []
    for name, found in costs.items():
        for kind in ("training", "inference"):
            each = found[kind]
            rows.append(
                [f"{name}, {kind}", f"{each['gflop']:.2f}", f"{each['bytes'] / 1e6:.0f}",
                 f"{each['bytes_fixed'] / 1e6:.0f}", f"{each['memory'] / 1e6:.1f}",
                 str(each["operations"])]
            )  # fmt: skip
    header = ["a sample of", "GFLOP", "traffic MB", "MB a pass", "memory MB", "operations a pass"]
    return markdown_table(header, rows)


def times_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """How long trainings would take, by number of GPUs."""
    header = ["", "GPUs", "batch each", "step ms, bound", "limit", "hours, bound",
              "hours, likely", "GB a GPU"]  # fmt: skip
    lines = [
        [row["set"], str(row["gpus"]), str(row["batch"]), f"{row['step_ms']:.1f}", row["limit"],
         f"{row['hours_bound']:.3g}", f"{row['hours']:.3g}", f"{row['memory_gb']:.1f}"]
        for row in rows
    ]  # fmt: skip
    return markdown_table(header, lines)


def notes_of(report: Mapping[str, Any]) -> str:
    """What the tables rest on, and what made them."""
    bound = anchor_bound(report["costs"]["IS2RE-all"]["inference"]["bytes"])
    records = [
        f"A record {name}: {size / 1e3:.0f} kB, {ms:.2f} ms of one core to load."
        for name, (ms, size) in report["loader"].items()
    ]
    lines = [
        f"{report['gpu']['name']}; {1e6 * report['launch']:.1f} µs to launch an operation.",
        f"IS2RE inference on one {GPUS[ANCHOR_GPU].name}, bound by memory traffic: {bound:,.0f} "
        f"samples/s. The report's {ANCHOR:,.0f} are {100 * ANCHOR / bound:.0f} % of it.",
        *records,
        f"`{report['command']}`: counted on {report['data']}, whatever the seed of the weights; "
        f"{report['machine']}.",
    ]
    return "\n".join(lines)


def markdown_of(report: Mapping[str, Any]) -> str:
    """Both tables and the notes."""
    return "\n\n".join(
        [costs_table(report["costs"]), times_table(report["rows"]), notes_of(report)]
    )
