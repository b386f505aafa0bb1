"""A study as a file: variants of one configuration, trained over seeds, evaluated on splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml
from fairchem.core.common.utils import merge_dicts
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ocp_faenet.adapters.runs import RunSpec, count_records, with_epochs
from ocp_faenet.data.places import find_lmdb, training_lmdb

SPLITS = ("val_id", "val_ood_ads", "val_ood_cat", "val_ood_both")


class Variant(BaseModel):
    """One row of the table: what differs from the study's configuration.

    Attributes:
        label: what the table calls it; the variant's key where there is none.
        config: another YAML to start from, relative to the study's file.
        epochs: another number of epochs than the study's.
        sample: another number of training structures than the study's.
        seeds: fewer than the study's, 1 for what does not depend on them.
        measurements: others than the study's.
        task: folder of its training LMDB below the data set, the study's where it is absent.
        starts_from: a stage or another variant whose backbone, trained, this run starts with.
        overrides: nested dictionary laid over the study's overrides.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    label: str | None = None
    config: str | None = None
    epochs: int | None = Field(default=None, ge=1)
    sample: int | None = Field(default=None, ge=1)
    seeds: int | None = Field(default=None, ge=1)
    measurements: tuple[str, ...] | None = None
    task: str | None = None
    starts_from: str | None = None
    overrides: dict[str, Any] = {}


class Stage(Variant):
    """A run that others start from: pre-training. Trained once for each seed, in no table."""

    starts_from: None = None
    seeds: None = None
    measurements: None = None


class Curve(BaseModel):
    """A picture of the error against a number that the variants differ in.

    Attributes:
        x: what that number is.
        log: a logarithmic axis for it.
        series: by the name of a line, its variants and where each is on the axis.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    x: str
    log: bool = False
    series: dict[str, dict[str, float]] = Field(min_length=1)

    @model_validator(mode="after")
    def _can_be_drawn(self) -> Curve:
        for name, points in self.series.items():
            if not points:
                raise ValueError(f"series {name!r} names no variant")
            for variant, x in points.items():
                if self.log and not x > 0:
                    raise ValueError(f"{variant}: {x:g} on a logarithmic axis")
        return self


class StudyPlan(BaseModel):
    """What a study file holds.

    Attributes:
        title: of table and picture.
        config: YAML of every variant that names no other, relative to the study's file.
        data: data set that the study makes for itself where ``--data`` names none.
        prepare: what is made of the data set first: the splits of its dense set, or these and the
            fine-tuning systems mixed with the IS2RE training set.
        task: folder of the LMDBs below the data set, ``is2re`` or ``s2ef``.
        evaluate: folder of the splits' LMDBs below the data set, ``task`` where it is absent.
        splits: on which the final weights are evaluated, in the table's order.
        metrics: of the host's evaluator, by name, and what the table calls them; the first is
            drawn, and averaged over the splits.
        sample: number of training structures, drawn once for all runs; all where it is absent.
        epochs: of every run, its schedule stretched to them.
        seeds: how many, from 0.
        overrides: nested dictionary laid over every configuration.
        measurements: of `ocp_faenet.adapters.measurements`, made of every checkpoint.
        stages: runs that variants may start from.
        variants: the rows.
        differences: pairs of variants, the first set against the second, system by system.
        curve: what ``--curve`` draws.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    title: str
    config: str
    data: Literal["charges"] | None = None
    prepare: Literal["dense", "dense_mixed"] | None = None
    task: str = "is2re"
    evaluate: str | None = None
    splits: tuple[str, ...] = SPLITS
    metrics: dict[str, str] = {"energy_mae": "MAE (eV)"}
    sample: int | None = Field(default=None, ge=1)
    epochs: int = Field(ge=1)
    seeds: int = Field(default=3, ge=1)
    overrides: dict[str, Any] = {}
    measurements: tuple[str, ...] = ()
    stages: dict[str, Stage] = {}
    variants: dict[str, Variant] = Field(min_length=1)
    differences: tuple[tuple[str, str], ...] = ()
    curve: Curve | None = None

    @model_validator(mode="after")
    def _curve_is_of_variants(self) -> StudyPlan:
        series = {} if self.curve is None else self.curve.series
        drawn = {variant for points in series.values() for variant in points}
        if unknown := sorted(drawn - set(self.variants)):
            raise ValueError(f"curve: no variant {unknown[0]!r}")
        return self

    @model_validator(mode="after")
    def _differences_are_of_variants(self) -> StudyPlan:
        named = {name for pair in self.differences for name in pair}
        if unknown := sorted(named - set(self.variants)):
            raise ValueError(f"differences: no variant {unknown[0]!r}")
        return self

    def measurements_of(self, variant: str) -> tuple[str, ...]:
        """What is measured of the runs of ``variant``."""
        own = self.variants[variant].measurements
        return self.measurements if own is None else own


def read_plan(path: Path) -> StudyPlan:
    """The plan in a YAML file.

    Raises:
        ValueError: no such file, no YAML, an unknown or a missing key; one line that names it.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: no YAML ({' '.join(str(error).split())})") from error
    if isinstance(content, dict) and isinstance(content.get("variants"), dict):
        content["variants"] = {key: value or {} for key, value in content["variants"].items()}
    try:
        return StudyPlan.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        reason = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{path}: {where}: {reason}") from error


def specs_of(plan: StudyPlan, folder: Path, data: Path, size: str | None = None) -> list[RunSpec]:
    """The runs, every variant of the first seed before those of the second.

    Args:
        plan: the study.
        folder: where its file lies: paths of configurations are relative to it.
        data: data set with ``{task}/{split}/data.lmdb``, or OC20 as it is downloaded.
        size: of OC20's training set; see `training_lmdb`.

    Raises:
        ValueError: a configuration, an LMDB or a stage that is missing; a stage with another
            backbone than the variant that starts from it; a chain of variants.
        FileNotFoundError: no training set of this size.
    """
    spec_of = partial(_spec, plan, folder, data, size)
    stages = {
        key: replace(spec_of(f"stages.{key}", stage), splits={})
        for key, stage in plan.stages.items()
    }
    variants = {key: spec_of(f"variants.{key}", variant) for key, variant in plan.variants.items()}
    whole = {k: spec for k, spec in variants.items() if plan.variants[k].starts_from is None}
    starts = {**whole, **stages}
    specs = [
        spec if (name := plan.variants[key].starts_from) is None else _started(spec, name, starts)
        for key, spec in variants.items()
    ]
    return [
        spec.with_seed(seed)
        for seed in range(plan.seeds)
        for spec in specs
        if seed < (plan.variants[spec.name].seeds or plan.seeds)
    ]


def _spec(
    plan: StudyPlan, folder: Path, data: Path, size: str | None, where: str, variant: Variant
) -> RunSpec:
    """The run of a variant or stage, with seed 0."""
    held_out = plan.evaluate or variant.task or plan.task
    source = {split: str(find_lmdb(data, held_out, split)) for split in plan.splits}
    train = str(training_lmdb(data, variant.task or plan.task, size))
    available = count_records(train)
    sample = variant.sample or plan.sample
    if sample is not None and sample > available:
        raise ValueError(f"sample: {sample} of the {available} structures of {train}")
    for path in source.values():
        count_records(path)
    dataset: dict[str, Any] = {"train": {"src": train}, "val": {"src": source[plan.splits[0]]}}
    if sample is not None:
        dataset["train"]["sample_n"] = sample
        dataset["val"]["sample_n"] = None  # or it would be inherited
    config = folder / (variant.config or plan.config)
    if not config.is_file():
        raise ValueError(f"{where}: no configuration {config}")
    overrides = merge_dicts(plan.overrides, variant.overrides)[0]
    overrides = merge_dicts(overrides, {"dataset": dataset})[0]
    spec = RunSpec(where.split(".", 1)[1], str(config), overrides, splits=source)
    epochs = with_epochs(spec.config(), sample or available, variant.epochs or plan.epochs)
    return replace(spec, overrides=merge_dicts(overrides, epochs)[0])


def _started(spec: RunSpec, name: str, starts: Mapping[str, RunSpec]) -> RunSpec:
    """``spec`` with the backbone of another run, one that starts from none itself."""
    where = f"variants.{spec.name}.starts_from"
    if name not in starts:
        known = ", ".join(starts) or "none"
        raise ValueError(f"{where}: no run from the beginning {name!r}, only {known}")
    models = [each.config()["model"] for each in (spec, starts[name])]
    if not all(model["name"] == "hydra" for model in models):
        raise ValueError(f"{where}: both need a hydra model, whose backbone is taken over")
    mine, theirs = (model["backbone"] for model in models)
    differing = sorted(k for k in {*mine, *theirs} if mine.get(k) != theirs.get(k))
    if differing:
        raise ValueError(f"{where}: {name} has another backbone ({', '.join(differing)})")
    return replace(spec, starts_from=asdict(starts[name]))
