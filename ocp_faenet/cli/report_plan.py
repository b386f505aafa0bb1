"""Which studies the report is made of, how much of them, and what they would cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ocp_faenet.adapters.plan import read_plan
from ocp_faenet.adapters.runs import RunSpec, count_records
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.output import machine_class
from ocp_faenet.cli.study_budget import minutes_of
from ocp_faenet.cli.study_run import Changes, Outcome, Study, ready
from ocp_faenet.data.places import training_lmdb

#: Samples per CPU second in training and in evaluation, by the name of a run: of the `demo` set,
#: one thread of 2 CPU cores (x86_64) that were busy. What finished runs say takes their place.
RATES: Mapping[str, tuple[float, float]] = {
    "schnet": (90, 94),
    "dimenet": (50, 115),
    "dimenet_plus_plus": (50, 115),
    "faenet": (170, 320),
    "faenet_ewald": (130, 260),
    "painn": (28, 32),
    "equiformer_v2": (9, 15),
    "pretraining": (170, 320),
    "faenet_ft": (200, 350),
    "faenet_noisy": (150, 320),
    "plain_16": (100, 250),
    "noisy_16": (90, 180),
    "without": (240, 450),
    "cutoff": (180, 350),
    "none": (250, 580),
    "stochastic": (280, 680),
    "learned": (210, 530),
    "denoising": (200, 450),
    "scratch_100": (260, 530),
    "tuned_100": (260, 550),
    "scratch_1000": (270, 550),
    "tuned_1000": (250, 500),
    "direct_long": (210, 430),
    "gradient_target_long": (160, 310),
}
#: Each is a folder below the data set, and how to come by it.
NEEDS: Mapping[str, str] = {
    "is2re": "make an embedded set with `ocp-faenet data emt`, or put OC20's IS2RE there",
    "s2ef": "make an embedded set with `ocp-faenet data emt`, or fetch OC20's S2EF with fairchem's "
    "download script",
    "dense": "make an embedded set with `ocp-faenet data emt`; for OC20-Dense put its LMDB and "
    "tables there (docs/dense.md), and oc20_data_mapping.pkl beside them",
}


@dataclass(frozen=True)
class Part:
    """Runs of one study.

    Attributes:
        file: of the study, below the folder of configurations.
        epochs: at most, with ``--budget small``.
        sample: training structures, likewise; those of the file if absent.
        only: variants; all if absent.
        measured: whether the study's measurements are made.
    """

    file: str
    epochs: int
    sample: int | None
    only: tuple[str, ...] | None = None
    measured: bool = False

    def changes(self, small: bool, available: int) -> Changes:
        """What is asked of the study: the whole of it, or one seed and less of everything.

        Args:
            small: ``--budget small``.
            available: training structures; a run that asks for more of them gets these.
        """
        if not small:
            return Changes(only=self.only, measured=self.measured, most_sample=available)
        sample = None if self.sample is None else min(self.sample, available)
        return Changes(
            seeds=1,
            sample=sample,
            only=self.only,
            measured=self.measured,
            most_epochs=self.epochs,
            most_sample=available,
        )


TABLE1 = Part("studies/table1.yml", 8, None)
TABLE2 = Part("studies/dense.yml", 8, None, measured=True)
DEPTH = Part("studies/noisy_nodes.yml", 20, 300, ("plain_16", "noisy_16"))
EWALD = Part("studies/ewald.yml", 12, 400, ("without", "cutoff"))
FRAMES = Part("studies/frame_methods.yml", 12, 400, ("none", "stochastic", "learned"))
LABELS = Part(
    "studies/low_data.yml", 20, None, ("scratch_100", "tuned_100", "scratch_1000", "tuned_1000")
)
FORCES = Part("studies/forces.yml", 10, 400, ("direct_long", "gradient_target_long"))


@dataclass
class Setting:
    """What every section is given.

    Attributes:
        data: data set.
        out: where pictures go.
        configs: folder of ``studies`` and of the configurations that they name.
        runs: where the folders of runs are.
        jobs: runs at a time.
        small: ``--budget small``.
        size: of OC20's training set.
        command: that made the report.
        done: parts that were run for a section before.
    """

    data: Path
    out: Path
    configs: Path
    runs: Path
    jobs: int = 2
    small: bool = True
    size: str | None = None
    command: str = "ocp-faenet report"
    done: dict[Part, Outcome] = field(default_factory=dict)

    def stamp(self) -> dict[str, str]:
        """Command, data set and machine, as every section has them."""
        return {
            "command": self.command,
            "data": self.data.name,
            "machine": machine_class(),
        }

    def study(self, part: Part) -> Study:
        """The runs of ``part``, none of them started.

        Raises:
            BadInputError: something of it is missing.
        """
        file = self.configs / part.file
        try:
            whole = read_plan(file)
            available = count_records(str(training_lmdb(self.data, whole.task, self.size)))
            return ready(file, self.data, part.changes(self.small, available), self.size)
        except (ValueError, OSError) as error:
            raise BadInputError(str(error)) from error

    def outcome(self, part: Part) -> Outcome:
        """The numbers of ``part``, from its runs' folders as far as they are there.

        Raises:
            BadInputError: something of it is missing, or a run failed.
        """
        if part not in self.done:
            self.done[part] = self.study(part).run(self.runs, self.jobs, self.command)
        return self.done[part]


def missing(data: Path, needs: Iterable[str]) -> str | None:
    """The first folder of ``needs`` that the data set lacks and how to come by it, as one line."""
    for name in needs:
        if not (data / name).is_dir():
            return f"{data} has no {name}: {NEEDS[name]}"
    return None


def estimate(setting: Setting, parts: Iterable[Part]) -> str:
    """What the runs that are left would take, as one line; parts that cannot be run are passed."""
    specs: dict[str, RunSpec] = {}
    for part in parts:
        with suppress(BadInputError):  # its section will say so
            for spec in setting.study(part).specs:
                specs.setdefault(spec.key(), spec)
    cost = minutes_of(list(specs.values()), setting.runs, RATES)
    wall = cost.minutes / setting.jobs
    more = f", {cost.unknown} of them of unknown rate" if cost.unknown else ""
    return (
        f"{cost.left} of {cost.runs} runs left{more}: about {cost.minutes:.0f} CPU minutes, "
        f"{wall:.0f} minutes with {setting.jobs} at a time"
    )
