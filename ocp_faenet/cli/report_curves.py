"""Training with and without each improvement: errors against epochs, of cached runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ocp_faenet.adapters.runs import LOG_WINDOW
from ocp_faenet.cli.output import seeds_of
from ocp_faenet.cli.report_plan import (
    DEPTH,
    EWALD,
    FORCES,
    FRAMES,
    LABELS,
    TABLE2,
    Part,
    Setting,
)
from ocp_faenet.cli.study_run import Outcome

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Pair:
    """Two variants of a study, without and with an improvement.

    Attributes:
        title: the improvement; ``{size}`` is the number of training structures.
        part: the study.
        lines: labels of the two variants, the one without first.
        metric: of the host's evaluator.
        label: of the error, with its unit.
        note: a sentence that a reader of the curves must have.
    """

    title: str
    part: Part
    lines: Mapping[str, str]
    metric: str = "energy_mae"
    label: str = "energy MAE (eV)"
    note: str | None = None


#: By the section's name, the pairs of its panels.
PAIRS: Mapping[str, tuple[Pair, ...]] = {
    "frame_curves": (
        Pair(
            "Frame averaging",
            FRAMES,
            {"none": "without", "stochastic": "stochastic, evaluated det"},
        ),
        Pair("Learned canonicalisation", FRAMES, {"none": "without", "learned": "learned"}),
    ),
    "noisy_curves": (
        Pair(
            "Noisy Nodes, 16 layers",
            DEPTH,
            {"plain_16": "without", "noisy_16": "Noisy Nodes"},
            note="With Noisy Nodes the structures that are learned carry noise.",
        ),
    ),
    "pretraining_curves": tuple(
        Pair(
            "Denoising pre-training, {size} labels",
            LABELS,
            {f"scratch_{size}": "from scratch", f"tuned_{size}": "pre-trained"},
        )
        for size in (100, 1000)
    ),
    "ewald_curves": (Pair("Ewald messages", EWALD, {"without": "without", "cutoff": "k_cutoff"}),),
    "force_curves": tuple(
        Pair(
            f"Energy conservation: {name}",
            FORCES,
            {"direct_long": "direct", "gradient_target_long": "gradient target"},
            metric,
            label,
        )
        for name, metric, label in (
            ("forces", "forces_mae", "force MAE (eV/Å)"),
            ("energies", "energy_mae", "energy MAE (eV)"),
        )
    ),
    "finetuning_curves": (
        Pair(
            "Fine-tuning on OC20-Dense",
            TABLE2,
            {"faenet": "FAENet", "faenet_ft": "FAENet-ft"},
            note="FAENet-ft begins where such a training has ended, and learns some systems of "
            "this split: what it does to the others is in Table 2.",
        ),
    ),
}


def make_curves(section: str, setting: Setting) -> dict[str, Any]:
    """Train the pairs of a section of `PAIRS` as far as they are not, and draw their curves."""
    return _make(setting, PAIRS[section], f"{section}.png")


def _make(setting: Setting, pairs: Sequence[Pair], name: str) -> dict[str, Any]:
    from ocp_faenet.cli.report_drawings import curves_picture

    outcomes = [setting.outcome(pair.part) for pair in pairs]
    panels = [panel_of(pair, outcome) for pair, outcome in zip(pairs, outcomes, strict=True)]
    curves_picture(panels, setting.out / name)
    machines = [part for each in outcomes for part in each.report["machine"].split("; ")]
    machine = "; ".join(dict.fromkeys(machines))  # that trained, not the one that draws
    return {"pictures": [name], "panels": panels, **setting.stamp(), "machine": machine}


def panel_of(pair: Pair, outcome: Outcome) -> dict[str, Any]:
    """Both lines of a panel: means over seeds of the error in training and on the first split."""
    lines, sizes = [], set()
    for variant, label in pair.lines.items():
        results = [result for _, result, _ in outcome.runs_of(variant)]
        sizes |= {result["train_size"] for result in results}
        lines.append(
            {
                "label": label,
                "train": mean_of([trained(result, pair.metric) for result in results]),
                "val": mean_of([validated(result, pair.metric) for result in results]),
                "seeds": len(results),
            }
        )
    size = " or ".join(f"{size:,}" for size in sorted(sizes))
    return {
        "title": pair.title.format(size=size),
        "label": pair.label,
        "split": next(iter(outcome.report["split_sizes"])),
        "train_size": size,
        "note": pair.note,
        "lines": lines,
    }


def trained(result: Mapping[str, Any], metric: str) -> Points:
    """Mean over each epoch of the error in training, by the number of structures.

    The host logs the mean since the last multiple of `LOG_WINDOW` steps, or since the run was
    taken up again: what a step adds to that is its own error.
    """
    training = result["training"]
    # Runs of before all of them were kept know the last one.
    resumed = set(training.get("resumed_at_steps", [training.get("resumed_at_step", 0)]))
    last = result["train_size"] - (_per_epoch(result) - 1) * result["batch_size"]
    epochs: dict[int, tuple[float, int]] = {}
    seen, total = 0, 0.0
    for step, mean in result["curves"].get(f"train/{metric}", ()):
        if (step - 1) % LOG_WINDOW == 0 or step - 1 in resumed:
            seen, total = 0, 0.0
        size = result["batch_size"] if step % _per_epoch(result) else last
        seen += size
        epoch = math.ceil(step / _per_epoch(result))
        errors, count = epochs.get(epoch, (0.0, 0))
        epochs[epoch] = (errors + mean * seen - total, count + size)
        total = mean * seen
    return [(float(epoch), errors / count) for epoch, (errors, count) in sorted(epochs.items())]


def validated(result: Mapping[str, Any], metric: str) -> Points:
    """Errors of each validation on the first split, and of the last weights at the end."""
    points = {
        step / _per_epoch(result): error
        for step, error in result["curves"].get(f"val/{metric}", ())
    }
    first = next(iter(result["splits"].values()))
    points[float(result["epochs"])] = first[metric]
    return sorted(points.items())


def mean_of(runs: Sequence[Points]) -> Points:
    """The mean over runs, where all of them have a point."""
    common = set.intersection(*({x for x, _ in points} for points in runs))
    return [(x, sum(dict(points)[x] for points in runs) / len(runs)) for x in sorted(common)]


def _per_epoch(result: Mapping[str, Any]) -> int:
    return math.ceil(result["train_size"] / result["batch_size"])


def render_curves(content: Mapping[str, Any]) -> str:
    """The ends of the curves."""
    lines = [_legend(content["panels"]), ""]
    for panel in content["panels"]:
        ends = ", ".join(f"{line['label']} {line['val'][-1][1]:.3f}" for line in panel["lines"])
        seeds = max(line["seeds"] for line in panel["lines"])
        note = f" {panel['note']}" if panel["note"] else ""
        lines.append(
            f"- {panel['title']}: {panel['label']} on {panel['split']} after the last "
            f"epoch: {ends} ({panel['train_size']} training structures, {seeds_of(seeds)}).{note}"
        )
    stamp = f"`{content['command']}`: the {content['data']} set; {content['machine']}."
    return "\n".join([*lines, "", stamp])


def _legend(panels: Sequence[Mapping[str, Any]]) -> str:
    """What is drawn: a run that is validated at its end alone has one point and no line."""
    lines = [line for panel in panels for line in panel["lines"]]
    words = ["Solid: the first validation split."]
    if all(len(line["val"]) == 1 for line in lines):
        words = ["Marks: the first validation split, after the last epoch alone."]
    if any(line["train"] for line in lines):
        words.append("Dashed: the training set while it is learned, mean of each epoch.")
    if any(line["seeds"] > 1 for line in lines):
        words.append("Means over seeds.")
    return " ".join(words)
