"""A study from a file to its numbers, for the verbs that run some."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ocp_faenet.adapters.measurements import DIFFERENCES, MEASUREMENTS, REFERENCES, measure
from ocp_faenet.adapters.plan import StudyPlan, Variant, read_plan, specs_of
from ocp_faenet.adapters.runs import RunSpec, checkpoint_of
from ocp_faenet.cli.study_report import machines_of, report_of
from ocp_faenet.cli.training import run_study
from ocp_faenet.data.dense_prepare import PREPARATIONS


@dataclass(frozen=True)
class Changes:
    """What a command line says instead of the study's file; ``None`` leaves the file's.

    Attributes:
        seeds: how many.
        epochs: of all runs, those included that have their own.
        sample: training structures, likewise.
        only: the variants to run.
        measured: whether checkpoints are measured.
        most_epochs: of any run, if the file has more.
        most_sample: training structures of any run, if the file has more.
    """

    seeds: int | None = None
    epochs: int | None = None
    sample: int | None = None
    only: tuple[str, ...] | None = None
    measured: bool = True
    most_epochs: int | None = None
    most_sample: int | None = None


@dataclass(frozen=True)
class Outcome:
    """A study that was run.

    Attributes:
        report: all numbers, see `report_of`.
        specs: of the runs.
        results: what they left, in the same order.
        folders: where they live.
    """

    report: dict[str, Any]
    specs: list[RunSpec]
    results: list[dict[str, Any]]
    folders: list[Path]

    def runs_of(self, variant: str) -> list[tuple[RunSpec, dict[str, Any], Path]]:
        """Spec, result and folder of every seed of ``variant``."""
        every = zip(self.specs, self.results, self.folders, strict=True)
        return [(spec, result, folder) for spec, result, folder in every if spec.name == variant]


@dataclass(frozen=True)
class Study:
    """A study whose every file has been found.

    Attributes:
        file: it was read from.
        whole: the plan in it.
        plan: that part of it that is run.
        specs: the runs.
        data: data set.
    """

    file: Path
    whole: StudyPlan
    plan: StudyPlan
    specs: list[RunSpec]
    data: Path

    def run(self, runs: Path, jobs: int, command: str | None = None) -> Outcome:
        """Train what is not trained, measure what is not measured.

        Args:
            runs: where the folders of runs are.
            jobs: how many runs at a time.
            command: that the numbers name as theirs.

        Raises:
            BadInputError: a run failed.
            ValueError: what a run left, or the data to measure it on, cannot be read.
        """
        found = run_study(self.specs, runs, jobs, self.plan.title)
        folders = [spec.folder(runs) for spec in self.specs]
        results = [
            # The name is this study's, if another shares the run; a folder may have been moved.
            {**result, "name": spec.name, "checkpoint": str(checkpoint_of(folder))}
            for spec, result, folder in zip(self.specs, found, folders, strict=True)
        ]
        asked = [self.plan.measurements_of(spec.name) for spec in self.specs]
        measured = [
            _measure(*run)
            for run in tqdm(
                list(zip(asked, self.specs, results, folders, strict=True)),
                desc="Measuring",
                disable=not any(asked),
                file=sys.stderr,
            )
        ]
        stamp = {
            "command": command or f"ocp-faenet study {self.file}",
            "data": self.data.name,
            "machine": machines_of(results),
        }
        report = report_of(self.plan, results, measured, stamp)
        rows = [
            row
            for name in self.plan.measurements
            if name in REFERENCES
            for row in REFERENCES[name](self.specs[0])
        ]
        if rows:
            report["references"] = rows
        if apart := self._differences(results):
            report["differences"] = apart
        variants = self.whole.variants.items()
        if left := {key: each for key, each in variants if key not in self.plan.variants}:
            report["not_run"] = {key: each.label or key for key, each in left.items()}
        return Outcome(report, self.specs, results, folders)

    def _differences(self, results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Of each pair that was run, by every measurement that can tell rows apart."""
        runs: dict[str, list[tuple[RunSpec, Mapping[str, Any]]]] = {}
        for spec, result in zip(self.specs, results, strict=True):
            runs.setdefault(spec.name, []).append((spec, result))
        labels = {key: each.label or key for key, each in self.whole.variants.items()}
        return [
            {
                "label": f"{labels[one]} - {labels[other]}",
                "seeds": min(len(runs[one]), len(runs[other])),
                "values": {name: each.as_json() for name, each in found.items()},
            }
            for one, other in self.plan.differences
            for name in self.plan.measurements
            if name in DIFFERENCES and one in runs and other in runs
            for found in [DIFFERENCES[name](runs[one], runs[other])]
        ]


def ready(file: Path, data: Path | None, changes: Changes, size: str | None = None) -> Study:
    """The study in ``file`` with ``changes``, its data prepared and every file of it found.

    Args:
        file: of the study.
        data: data set; ``data/emt/demo``, or what the study makes for itself, where it is absent.
        changes: of the command line.
        size: of OC20's training set; see `find_lmdb`.

    Raises:
        ValueError, OSError: something is missing or unknown; one line that names it.
    """
    whole = read_plan(file)
    plan = shortened(
        whole, changes.seeds, changes.epochs, changes.sample, changes.only, changes.measured
    )
    plan = limited(plan, changes.most_epochs, changes.most_sample)
    data = data or own_data(plan)
    if plan.prepare is not None:
        PREPARATIONS[plan.prepare](data)
    specs = specs_of(plan, file.parent, data, size)
    asked = {name for key in plan.variants for name in plan.measurements_of(key)}
    if unknown := sorted(asked - set(MEASUREMENTS)):
        raise ValueError(f"{file}: measurements: no {unknown[0]}")
    return Study(file, whole, plan, specs, data)


def shortened(
    plan: StudyPlan,
    seeds: int | None,
    epochs: int | None,
    sample: int | None,
    only: Iterable[str] | None,
    measured: bool = True,
) -> StudyPlan:
    """``plan`` with what the command line says instead."""
    variants = plan.variants
    if only is not None:
        chosen = tuple(only)
        if unknown := sorted(set(chosen) - set(variants)):
            raise ValueError(f"--only {unknown[0]}: the variants are {', '.join(variants)}")
        variants = {key: variants[key] for key in variants if key in chosen}
    given = {"seeds": seeds, "epochs": epochs, "sample": sample}
    # What the command line says of all takes the place of what a variant says of itself.
    own: dict[str, Any] = {key: None for key in ("epochs", "sample") if given[key] is not None}
    own_and_bare = own if measured else {**own, "measurements": ()}
    variants = {key: each.model_copy(update=own_and_bare) for key, each in variants.items()}
    stages = {key: each.model_copy(update=own) for key, each in plan.stages.items()}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if not measured:
        changes["measurements"] = ()
    return plan.model_copy(update={**changes, "variants": variants, "stages": stages})


def limited(plan: StudyPlan, epochs: int | None, sample: int | None) -> StudyPlan:
    """``plan`` with no more than so many epochs and training structures in any of its runs."""

    def fewer(own: int | None, most: int | None) -> int | None:
        # A number that a run does not have is the study's, or all there is.
        return own if own is None or most is None else min(own, most)

    def cut(run: Variant | StudyPlan) -> dict[str, int | None]:
        return {"epochs": fewer(run.epochs, epochs), "sample": fewer(run.sample, sample)}

    variants = {key: each.model_copy(update=cut(each)) for key, each in plan.variants.items()}
    stages = {key: each.model_copy(update=cut(each)) for key, each in plan.stages.items()}
    return plan.model_copy(update={**cut(plan), "variants": variants, "stages": stages})


def own_data(plan: StudyPlan) -> Path:
    """Where the study's data are if the command line does not say; made if they are its own."""
    if plan.data is None:
        return Path("data/emt/demo")
    folder = Path("data") / plan.data
    if not folder.exists():
        from ocp_faenet.cli.data import make_charges

        make_charges(folder)
    return folder


def _measure(
    names: Sequence[str], spec: RunSpec, result: Mapping[str, Any], folder: Path
) -> dict[str, float]:
    values: dict[str, float] = {}
    for name in names:
        values |= measure(name, spec, result, folder)
    return values
