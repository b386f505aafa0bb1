"""``ocp-faenet dense split``: OC20-Dense in four, every record accounted for."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import click
from tqdm import tqdm

from ocp_faenet.cli import dense_options as options
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.output import markdown_table, write_json
from ocp_faenet.data import dense_split as splits
from ocp_faenet.data import dense_tables as tables
from ocp_faenet.data.dense_membership import (
    Definition,
    DenseSplit,
    by_training,
    by_validation,
    members,
    read_oc20_mapping,
    sids_of,
)
from ocp_faenet.data.dense_published import PublishedCounts, differences, seems_published
from ocp_faenet.data.lmdb_io import LmdbError

PUBLISHED = PublishedCounts()


@click.command()
@click.option("--data", type=options.PATH, required=True, help="LMDB of the initial structures.")
@click.option(
    "--mapping", type=options.PATH, help="oc20dense_mapping.pkl; beside the LMDB if absent."
)
@click.option("--targets", type=options.PATH, help="oc20dense_targets.pkl, likewise.")
@click.option("--ref-energies", type=options.PATH, help="oc20dense_ref_energies.pkl, likewise.")
@click.option("--tags", type=options.PATH, help="oc20dense_tags.pkl, for records without tags.")
@click.option(
    "--oc20-mapping", type=options.PATH, required=True, help="OC20's oc20_data_mapping.pkl."
)
@click.option("--validation", type=options.PATH, help="Folder of OC20's val_id, val_ood_ads, ... .")
@click.option("--train", type=options.PATH, help="OC20's training LMDB, or a folder of them.")
@click.option(
    "--by",
    type=click.Choice([definition.value for definition in Definition]),
    default=Definition.VALIDATION.value,
    show_default=True,
    help="validation: the report's. training: by what occurs in OC20's training set.",
)
@click.option(
    "--overlapping/--disjoint", default=False, show_default=True, help="With --by validation."
)
@click.option(
    "--published/--any",
    "published",
    default=None,
    help="Insist that these are the published files, or do not compare. By default files with as "
    "many placements or targets as those are compared, and what differs is a warning.",
)
@click.option(
    "--finetune-share",
    type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True),
    default=0.8,
    show_default=True,
    help="Of the ID systems, to fine-tune on; the others choose its checkpoint.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of that.")
@click.option("--json", "json_path", type=options.FILE, help="Write the counts to this file too.")
@click.argument("out", type=options.PATH)
def split(
    data: Path,
    mapping: Path | None,
    targets: Path | None,
    ref_energies: Path | None,
    tags: Path | None,
    oc20_mapping: Path,
    validation: Path | None,
    train: Path | None,
    by: str,
    overlapping: bool,
    published: bool | None,
    finetune_share: float,
    seed: int,
    json_path: Path | None,
    out: Path,
) -> None:
    """Cut OC20-Dense into ID, OOD-ads, OOD-cat and OOD-both LMDBs below OUT.

    Records get y_relaxed, system_id, config_id and ref_energy. Every record that is in no split is
    counted with its reason. OUT/finetune/{train,val} is the ID split cut by system. Counts of the
    published files are compared with the report's before anything is written.

    \b
    Examples:
      ocp-faenet dense split --data data/emt/demo/dense/data.lmdb \\
        --validation data/emt/demo/is2re \\
        --oc20-mapping data/emt/demo/oc20_data_mapping.pkl data/emt/demo/dense/splits
      ocp-faenet dense split --data data/oc20_dense/data.lmdb --published \\
        --validation data/is2re/all --oc20-mapping data/oc20_data_mapping.pkl \\
        data/oc20_dense/splits
    """
    if overlapping and by == Definition.TRAINING.value:
        raise BadInputError("--overlapping: by training every system is of one split; drop it")
    try:
        found = splits.DenseTables(
            tables.read_mapping(mapping or _beside(data, "mapping")),
            tables.read_targets(targets or _beside(data, "targets")),
            tables.read_ref_energies(ref_energies or _beside(data, "ref_energies")),
            {} if tags is None else tables.read_tags(tags),
        )
        rule = _rule(Definition(by), oc20_mapping, validation, train, overlapping)
        plan = splits.plan_splits(sids_of(data), found, rule)
        as_reported = by == Definition.VALIDATION.value and not overlapping
        verdict = _compared(plan, found, published, as_reported)
        own = plan.systems[DenseSplit.ID]
        cut = splits.finetuning_systems(own, finetune_share, seed) if len(own) > 1 else None
        kept = {"definition": by, "overlapping": overlapping, "finetune": cut}
        total = sum(map(len, plan.places.values())) + len(plan.places[DenseSplit.ID])
        with tqdm(total=total, desc="splitting", unit="record", file=sys.stderr) as bar:
            written = splits.write_splits(out, data, plan, found, cut, kept, bar.update)
    except (tables.DenseTableError, LmdbError, OSError) as error:
        raise BadInputError(str(error)) from error
    _report(plan, written)
    if verdict is not None:
        click.echo(verdict)
    if json_path is not None:
        write_json(json_path, {**plan.summary(), **kept, "written": written})


def _beside(data: Path, name: str) -> Path:
    folder = data if data.is_dir() else data.parent
    return folder / f"oc20dense_{name}.pkl"


def _rule(
    definition: Definition,
    oc20_mapping: Path,
    validation: Path | None,
    train: Path | None,
    overlapping: bool,
) -> splits.Rule:
    mapping = read_oc20_mapping(oc20_mapping)
    if definition is Definition.TRAINING:
        if train is None:
            raise BadInputError("--by training: give --train, OC20's training LMDB")
        return partial(by_training, train=members(mapping, sids_of(train)))
    if validation is None:
        raise BadInputError("--by validation: give --validation, the folder of val_id and so on")
    occurring = {
        each: members(mapping, sids_of(validation / each.oc20))
        for each in tqdm(DenseSplit, desc="OC20 validation", leave=False, file=sys.stderr)
    }
    return partial(by_validation, validation=occurring, overlapping=overlapping)


def _compared(
    plan: splits.SplitPlan, found: splits.DenseTables, insist: bool | None, as_reported: bool
) -> str | None:
    """One line on the published counts, if they are to be compared.

    Raises:
        BadInputError: they differ, and ``insist`` is true.
    """
    if insist is False or (insist is None and not seems_published(found, PUBLISHED)):
        return None
    wrong = differences(plan, found, PUBLISHED, as_reported=as_reported)
    if not wrong:
        return "The published counts" + (", and the report's splits." if as_reported else ".")
    line = "Not the published counts: " + "; ".join(wrong)
    if insist:
        raise BadInputError(f"{line}. Nothing is written; --any takes the files as they are")
    click.echo(f"Warning: {line}", err=True)
    return None


def _report(plan: splits.SplitPlan, written: dict[str, int]) -> None:
    rows = [
        [name.value, str(len(plan.systems[name])), str(len(plan.places[name]))]
        for name in DenseSplit
    ]
    click.echo(markdown_table(["split", "systems", "configurations"], rows))
    for loss, count in plan.losses.items():
        click.echo(f"{count} of {plan.records} records in no split: {loss.value}")
    if plan.targets_without_record:
        system, name = plan.targets_without_record[0]
        click.echo(
            f"{len(plan.targets_without_record)} targets without a record, the first is {name} of "
            f"system {system}"
        )
    cut = {name: count for name, count in written.items() if name.startswith(splits.FINETUNE)}
    click.echo(", ".join(f"{name}: {count}" for name, count in cut.items()) or "no fine-tuning cut")
