"""``ocp-faenet data``: make the embedded data set, check what an LMDB holds, time its loading."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.loading import metadata, time_epoch
from ocp_faenet.cli.options import FILE, PATH
from ocp_faenet.cli.output import markdown_table, write_json
from ocp_faenet.data.presets import PRESETS

if TYPE_CHECKING:
    from ocp_faenet.data.check import Report

_SEED = click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Same seed, same bytes.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def data() -> None:
    """Make and check data in the OC20 schema.

    \b
    Examples:
      ocp-faenet data emt data/emt                       about 1,000 training relaxations
      ocp-faenet data emt data/tiny --preset tiny        a few dozen, for tests
      ocp-faenet data emt data/big --preset full --workers 16 --seed 1
      ocp-faenet data charges data/charges               point charges, for long-range messages
      ocp-faenet data check data/emt                     every LMDB below a folder
      ocp-faenet data check data/is2re/10k/train/data.lmdb --json report.json
      ocp-faenet data metadata data/s2ef/2M --workers 16  sizes for load balancing
      ocp-faenet data time configs/oc20/emt/is2re/faenet.yml
    """


data.add_command(metadata)
data.add_command(time_epoch)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@data.command()
@click.argument("out", type=PATH)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="demo",
    show_default=True,
    help="tiny: for tests. demo: 1,000 training relaxations. full: 10,000.",
)
@_SEED
@click.option("--workers", type=click.IntRange(min=1), help="Processes; every core if not given.")
def emt(out: Path, preset: str, seed: int, workers: int | None) -> None:
    """Build the embedded data set in OUT.

    Adsorbates on fcc metals and surface alloys, relaxed by ASE's EMT potential and written as OC20
    and OC20-Dense write theirs: is2re/ and s2ef/ with five splits each, dense/, and a mapping of
    what every sid is. A seed gives the same bytes with any number of workers.

    Interrupted, the same command goes on where it stopped (finished parts wait in OUT/.cache until
    all is written); on a finished OUT it does nothing.
    """
    from ocp_faenet.data.generate import OutputError, generate
    from ocp_faenet.data.jobs import plan

    sizes = PRESETS[preset]
    total = sum(job.count for job in plan(sizes, seed))
    with tqdm(total=total, desc=f"EMT {preset}", unit="relaxation", smoothing=0.05) as bar:
        try:
            manifest = generate(out, sizes, seed, workers=workers or _cores(), progress=bar.update)
        except (OutputError, OSError) as error:
            raise BadInputError(str(error)) from error
        bar.update(total - bar.n)
    click.echo(_summary(manifest))
    click.echo(str(out))


@data.command()
@click.argument("out", type=PATH)
@_SEED
def charges(out: Path, seed: int) -> None:
    """Build point charges on displaced lattices in OUT.

    Ions of one and two atoms, farther apart than a model of cutoff 3.5 Å sees, with their exact
    Ewald energies: what only long-range messages can learn (docs/ewald.md). On a finished OUT it
    does nothing.
    """
    made = make_charges(out, seed)
    click.echo(", ".join(f"{split}: {count} structures" for split, count in made.items()))
    click.echo(str(out))


def make_charges(out: Path, seed: int = 0) -> dict[str, int]:
    """The data set of `charges`, with a progress bar; its number of structures by split.

    Raises:
        BadInputError: the folder holds something else or cannot be written.
    """
    from ocp_faenet.data.charges import SIZES, generate_charges
    from ocp_faenet.data.generate import OutputError

    total = sum(SIZES.values())
    with tqdm(total=total, desc="charges", unit="structure") as bar:
        try:
            manifest = generate_charges(out, seed, progress=bar.update)
        except (OutputError, OSError) as error:
            raise BadInputError(str(error)) from error
        bar.update(total - bar.n)
    counts: dict[str, int] = manifest["counts"]
    return counts


def _summary(manifest: dict[str, Any]) -> str:
    """Records by split, and how many relaxations it took."""
    counts, outcomes = manifest["counts"], manifest["outcomes"]
    rows = []
    for name in ("train", "val_id", "val_ood_ads", "val_ood_cat", "val_ood_both", "dense"):
        structures = counts["dense"] if name == "dense" else counts[f"is2re/{name}"]
        frames = "-" if name == "dense" else str(counts[f"s2ef/{name}"])
        rows.append([name, str(structures), frames, str(sum(outcomes[name].values()))])
    return markdown_table(["split", "structures", "S2EF frames", "relaxations tried"], rows)


@data.command()
@click.argument("path", type=PATH)
@click.option("--json", "json_path", type=FILE, help="Write the findings to this file.")
def check(path: Path, json_path: Path | None) -> None:
    """Say what PATH, an LMDB or a folder of them, holds against the OC20 schema.

    Prints counts, ranges and the first bad record of every file. Exit code 2 when a file cannot be
    read or a record has a fault.
    """
    from ocp_faenet.data.lmdb_io import LmdbError
    from ocp_faenet.data.reader import lmdb_files, open_lmdb

    try:
        files = lmdb_files(path)
        total = 0
        for file in files:
            with open_lmdb(file) as records:
                total += len(records)
        reports = _check_all(files, total)
    except LmdbError as error:
        raise BadInputError(str(error)) from error
    click.echo(_table(path, reports))
    for report in reports:
        for line in _remarks(report):
            click.echo(f"{report.path}: {line}")
    if json_path is not None:
        write_json(json_path, [report.as_json() for report in reports])
    bad = next((report for report in reports if report.first_bad is not None), None)
    if bad is not None and bad.first_bad is not None:
        first = bad.first_bad
        raise BadInputError(
            f"{bad.path}: {bad.bad} of {bad.records} records are bad; "
            f"the first is record {first.index} (sid {first.sid}): {first.fault}"
        )


def _check_all(files: list[Path], total: int) -> list[Report]:
    from ocp_faenet.data.check import check_lmdb

    with tqdm(total=total, desc="checking", unit="record", leave=False) as bar:
        return [check_lmdb(file, progress=bar.update) for file in files]


_COLUMNS = ("natoms", "y_relaxed (eV)", "y (eV)", "force norm (eV/Å)", "edges per atom")


def _table(path: Path, reports: list[Report]) -> str:
    rows = []
    for report in reports:
        name = report.path.name if report.path == path else str(report.path.relative_to(path))
        row = [name, report.kind.value, str(report.records), str(report.bad)]
        row += [_span(report.ranges.get(column)) for column in _COLUMNS]
        rows.append([*row, str(len(report.elements))])
    return markdown_table(["file", "kind", "records", "bad", *_COLUMNS, "elements"], rows)


def _span(limits: tuple[float, float] | None) -> str:
    return "-" if limits is None else f"{limits[0]:.4g} to {limits[1]:.4g}"


def _remarks(report: Report) -> list[str]:
    missing = [f"{key} is missing in {n} records" for key, n in sorted(report.missing.items())]
    return [*missing, *report.notes]
