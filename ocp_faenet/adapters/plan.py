"""A study as a file: variants of one configuration, trained over seeds, evaluated on splits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml
from fairchem.core.common.utils import merge_dicts
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ocp_faenet.adapters.runs import RunSpec, count_records, with_epochs

SPLITS = ("val_id", "val_ood_ads", "val_ood_cat", "val_ood_both")


class Variant(BaseModel):
    """One row of the table: what differs from the study's configuration.

    Attributes:
        label: what the table calls it; the variant's key where there is none.
        config: another YAML to start from, relative to the study's file.
        epochs: another number of epochs than the study's.
        overrides: nested dictionary laid over the study's overrides.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    label: str | None = None
    config: str | None = None
    epochs: int | None = Field(default=None, ge=1)
    overrides: dict[str, Any] = {}


class StudyPlan(BaseModel):
    """What a study file holds.

    Attributes:
        title: of table and picture.
        config: YAML of every variant that names no other, relative to the study's file.
        data: data set that the study makes for itself where ``--data`` names none.
        task: folder of the LMDBs below the data set, ``is2re`` or ``s2ef``.
        splits: on which the final weights are evaluated, in the table's order.
        metrics: of the host's evaluator, by name, and what the table calls them; the first is
            drawn, and averaged over the splits.
        sample: number of training structures, drawn once for all runs; all where it is absent.
        epochs: of every run, its schedule stretched to them.
        seeds: how many, from 0.
        overrides: nested dictionary laid over every configuration.
        measurements: of `ocp_faenet.adapters.measurements`, made of every checkpoint.
        variants: the rows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    title: str
    config: str
    data: Literal["charges"] | None = None
    task: str = "is2re"
    splits: tuple[str, ...] = SPLITS
    metrics: dict[str, str] = {"energy_mae": "MAE (eV)"}
    sample: int | None = Field(default=None, ge=1)
    epochs: int = Field(ge=1)
    seeds: int = Field(default=3, ge=1)
    overrides: dict[str, Any] = {}
    measurements: tuple[str, ...] = ()
    variants: dict[str, Variant] = Field(min_length=1)


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
        raise ValueError(f"{path}: {where}: {first['msg']}") from error


def specs_of(plan: StudyPlan, folder: Path, data: Path) -> list[RunSpec]:
    """The runs, every variant of the first seed before those of the second.

    Args:
        plan: the study.
        folder: where its file lies: paths of configurations are relative to it.
        data: data set with ``{task}/{split}/data.lmdb``.

    Raises:
        ValueError: a configuration or an LMDB that is missing.
    """
    source = {split: str(data / plan.task / split / "data.lmdb") for split in plan.splits}
    train = str(data / plan.task / "train" / "data.lmdb")
    size = count_records(train)
    if plan.sample is not None and plan.sample > size:
        raise ValueError(f"sample: {plan.sample} of the {size} structures of {train}")
    for path in source.values():
        count_records(path)
    dataset: dict[str, Any] = {"train": {"src": train}, "val": {"src": source[plan.splits[0]]}}
    if plan.sample is not None:
        dataset["train"]["sample_n"] = plan.sample
        dataset["val"]["sample_n"] = None  # or it would be inherited
    specs = []
    for key, variant in plan.variants.items():
        config = folder / (variant.config or plan.config)
        if not config.is_file():
            raise ValueError(f"variants.{key}: no configuration {config}")
        overrides = merge_dicts(plan.overrides, variant.overrides)[0]
        overrides = merge_dicts(overrides, {"dataset": dataset})[0]
        spec = RunSpec(key, str(config), overrides, splits=source)
        epochs = with_epochs(spec.config(), plan.sample or size, variant.epochs or plan.epochs)
        specs.append(replace(spec, overrides=merge_dicts(overrides, epochs)[0]))
    return [replace(spec, seed=seed) for seed in range(plan.seeds) for spec in specs]
