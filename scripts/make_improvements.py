"""Write the table of ``docs/improvements.md`` from the numbers in ``docs/results``.

Run it when one of these files has changed; a test fails until then.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ocp_faenet.cli.documents import insert_into
from ocp_faenet.cli.output import markdown_table
from ocp_faenet.cli.study_report import value

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "improvements.md"
MARKER = "improvements"
#: Reads the number, mean and standard deviation, of a row.
Reader = Callable[[Mapping[str, Any]], tuple[float, float]]


def average(row: Mapping[str, Any]) -> tuple[float, float]:
    """Mean error of all splits."""
    mean, std = row["average"]
    return mean, std


def measured(name: str) -> Reader:
    """What a study measured beside the errors."""
    return lambda row: tuple(row["measured"][name])


def score(split: str, key: str) -> Reader:
    """One error on one split."""
    return lambda row: tuple(row["splits"][split][key])


@dataclass(frozen=True)
class Effect:
    """A number without and with the improvement: label, study, the two rows, which number."""

    label: str
    study: str
    without: str
    having: str
    read: Reader

    def text(self, results: Path) -> str:
        """``label a → b``, or that it was not run."""
        report = _load(results, self.study)
        rows = {} if report is None else {row["variant"]: row for row in report["rows"]}
        if self.without not in rows or self.having not in rows:
            return f"{self.label}: not run"
        before, after = (value(self.read(rows[key])) for key in (self.without, self.having))
        return f"{self.label} {before} → {after}"


@dataclass(frozen=True)
class Improvement:
    """A row: the name, the report's equation or section, what turns it on, page, effects."""

    name: str
    equation: str
    keys: str
    page: str
    effects: tuple[Effect, ...]


def rotation(variant: str) -> Effect:
    """What a variant of the study of frames leaves of the error under rotation."""
    label = "error under rotation (meV)"
    return Effect(label, "frame_methods", "none", variant, measured("rotation about z (meV)"))


def mean(study: str, without: str, having: str, label: str = "mean MAE (eV)") -> Effect:
    """The mean error of all splits."""
    return Effect(label, study, without, having, average)


def conserving(label: str, read: Reader) -> Effect:
    """A number of the longest trainings of the study of forces."""
    return Effect(label, "forces", "direct_long", "gradient_target_long", read)


DRIFT, SUCCESS = "NVE drift (meV/atom/ps)", "ood_ads SR (proxy) %"
#: name, equation, what turns it on, page, effects
IMPROVEMENTS = (
    Improvement(
        "Frame averaging, full", "(1), (2)",
        "`frame_averaging: 2D`, `fa_method: all`", "frames.md",
        (rotation("all"), mean("frame_methods", "none", "all")),
    ),
    Improvement(
        "Frame averaging, stochastic", "(2), section 2.2",
        "`fa_method: stochastic`, evaluated at `det`", "frames.md",
        (rotation("stochastic"), mean("frame_methods", "none", "stochastic")),
    ),
    Improvement(
        "Learned canonicalisation", "section 2.3",
        "`fa_method: learned`", "frames.md#learned-canonicalisation",
        (rotation("learned"), mean("frame_methods", "det", "learned")),
    ),
    Improvement(
        "Energy conservation", "(9)",
        "`regress_forces: direct_with_gradient_target`, loss `energy_conservation`",
        "forces.md#energy-conservation",
        (conserving(DRIFT, measured(DRIFT)),
         conserving("force MAE (eV/Å)", score("val_id", "forces_mae"))),
    ),
    Improvement(
        "Noisy Nodes", "(16)",
        "transform and loss `noisy_nodes`, `FAENetDenoisingHead`", "noisy_nodes.md",
        (mean("noisy_nodes", "plain_8", "noisy_8", "8 layers, mean MAE (eV)"),
         mean("noisy_nodes", "plain_12", "noisy_12", "12 layers")),
    ),
    Improvement(
        "Denoising pre-training", "(17), (18)",
        "transform `denoising`, then `finetune_config`",
        "noisy_nodes.md#denoising-pre-training-and-fine-tuning",
        (mean("low_data", "scratch_100", "tuned_100", "100 labels, mean MAE (eV)"),
         mean("noisy_nodes", "plain_8", "pretrained_8", "8 layers")),
    ),
    Improvement(
        "Ewald messages", "(19)", "`ewald: {box: [1, 1, 3]}`", "ewald.md",
        (mean("ewald", "without", "box"),
         mean("long_range", "without", "ewald", "charges, `k_cutoff: 1.2`")),
    ),
    Improvement(
        "Fine-tuning on OC20-Dense", "section 5.2",
        "`configs/oc20_dense/emt/finetune.yml`", "dense.md#table-2",
        (mean("dense", "faenet", "faenet_ft"),
         Effect("success on new adsorbates (%)", "dense", "faenet", "faenet_ft",
                measured(SUCCESS))),
    ),
)  # fmt: skip


def markdown_of(results: Path) -> str:
    """The table and where its numbers come from."""
    rows = [
        [each.name, each.equation, each.keys,
         "; ".join(effect.text(results) for effect in each.effects),
         f"[{each.page.split('#')[0].removesuffix('.md')}]({each.page})"]
        for each in IMPROVEMENTS
    ]  # fmt: skip
    header = ["", "report", "turned on by", "without → with, in our hands", "page"]
    return f"{markdown_table(header, rows)}\n\n{sentence_of(results)}"


def sentence_of(results: Path) -> str:
    """Studies, data sets, seeds and machine class of all numbers."""
    names = dict.fromkeys(effect.study for each in IMPROVEMENTS for effect in each.effects)
    reports = {name: _load(results, name) for name in names}
    made = {name: report for name, report in reports.items() if report is not None}
    commands = ", ".join(f"`{report['command']}` ({report['data']})" for report in made.values())
    seeds = sorted({report["seeds"] for report in made.values()})
    machines = "; ".join(sorted({report["machine"] for report in made.values()}))
    return (
        f"Mean ± standard deviation over {' or '.join(map(str, seeds))} seeds (fewer where the "
        f"page says so), from the pages' own tables: {commands}; {machines}."
    )


def _load(results: Path, name: str) -> Any:
    path = results / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def main() -> None:
    """Rewrite the table in place."""
    text = markdown_of(ROOT / "docs" / "results")
    insert_into(PAGE, MARKER, text)


if __name__ == "__main__":
    main()
