"""``ocp-faenet dense``: splits, predictions and success rates of OC20-Dense."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import click
from tqdm import tqdm

from ocp_faenet.cli.dense_evaluate import evaluate
from ocp_faenet.cli.dense_export import export, oracle
from ocp_faenet.cli.dense_plot import plot
from ocp_faenet.cli.dense_predict import predict
from ocp_faenet.cli.dense_sensitivity import sensitivity
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
from ocp_faenet.data.lmdb_io import LmdbError

_PATH = click.Path(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def dense() -> None:
    """Find the most stable adsorption among many placements: OC20-Dense.

    \b
    Example, on the embedded data:
      ocp-faenet dense split --data data/emt/demo/dense/data.lmdb \\
        --validation data/emt/demo/is2re \\
        --oc20-mapping data/emt/demo/oc20_data_mapping.pkl data/emt/demo/dense/splits
      ocp-faenet dense evaluate --predictions id.npz --predictions ood_ads.npz ... \\
        --targets data/emt/demo/dense/oc20dense_targets.pkl \\
        --mapping data/emt/demo/dense/oc20dense_mapping.pkl --splits data/emt/demo/dense/splits
    """


for _command in (evaluate, export, oracle, plot, predict, sensitivity):
    dense.add_command(_command)


@dense.command()
@click.option("--data", type=_PATH, required=True, help="LMDB of the initial structures.")
@click.option("--mapping", type=_PATH, help="oc20dense_mapping.pkl; beside the LMDB if absent.")
@click.option("--targets", type=_PATH, help="oc20dense_targets.pkl, likewise.")
@click.option("--ref-energies", type=_PATH, help="oc20dense_ref_energies.pkl, likewise.")
@click.option("--tags", type=_PATH, help="oc20dense_tags.pkl, for records without tags.")
@click.option("--oc20-mapping", type=_PATH, required=True, help="OC20's oc20_data_mapping.pkl.")
@click.option("--validation", type=_PATH, help="Folder of OC20's val_id, val_ood_ads, ... .")
@click.option("--train", type=_PATH, help="OC20's training LMDB, or a folder of them.")
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
    "--finetune-share",
    type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True),
    default=0.8,
    show_default=True,
    help="Of the ID systems, to fine-tune on; the others choose its checkpoint.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of that.")
@click.option("--json", "json_path", type=_PATH, help="Write the counts to this file too.")
@click.argument("out", type=_PATH)
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
    finetune_share: float,
    seed: int,
    json_path: Path | None,
    out: Path,
) -> None:
    """Cut OC20-Dense into ID, OOD-ads, OOD-cat and OOD-both LMDBs below OUT.

    Records get y_relaxed, system_id, config_id and ref_energy. Every record that is in no split is
    counted with its reason. OUT/finetune/{train,val} is the ID split cut by system.
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
        own = plan.systems[DenseSplit.ID]
        cut = splits.finetuning_systems(own, finetune_share, seed) if len(own) > 1 else None
        kept = {"definition": by, "overlapping": overlapping, "finetune": cut}
        total = sum(map(len, plan.places.values())) + len(plan.places[DenseSplit.ID])
        with tqdm(total=total, desc="splitting", unit="record", file=sys.stderr) as bar:
            written = splits.write_splits(out, data, plan, found, cut, kept, bar.update)
    except (tables.DenseTableError, LmdbError, OSError) as error:
        raise BadInputError(str(error)) from error
    _report(plan, written, found, overlapping or by == Definition.TRAINING.value)
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


def _report(
    plan: splits.SplitPlan, written: dict[str, int], found: splits.DenseTables, other: bool
) -> None:
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
    if sum(map(len, found.targets.values())) == splits.PUBLISHED_TARGETS and not other:
        click.echo(_published({each: len(places) for each, places in plan.places.items()}))


def _published(counts: dict[DenseSplit, int]) -> str:
    """How the splits of the published files compare with the report's."""
    wrong = [
        f"{each.value} {counts[each]} instead of {wanted}"
        for each, wanted in splits.PUBLISHED_COUNTS.items()
        if counts[each] != wanted
    ]
    return "Not the report's counts: " + ", ".join(wrong) if wrong else "The report's counts."
