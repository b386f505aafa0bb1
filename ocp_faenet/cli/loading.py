"""``ocp-faenet data metadata`` and ``ocp-faenet data time``: sizes, and what loading costs."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.options import FILE, JSON, PATH
from ocp_faenet.cli.output import machine_class, markdown_table, write_json

if TYPE_CHECKING:
    from ocp_faenet.adapters.epoch import EpochTimes


@click.command(
    epilog="""Examples:

\b
  ocp-faenet data metadata data/is2re/10k/train/data.lmdb
  ocp-faenet data metadata data/s2ef/2M --workers 16
"""
)
@click.argument("path", type=PATH)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True)
@click.option("--force", is_flag=True, help="Write anew what is there.")
@click.option("--json", "json_path", type=FILE, help="Write the counts to this file.")
def metadata(path: Path, workers: int, force: bool, json_path: Path | None) -> None:
    """Write metadata.npz for PATH, an LMDB or a folder of them.

    The host reads it to give every GPU as many atoms (optim.load_balancing: atoms) and to filter
    by size (max_atoms). `data emt` writes it itself; OC20's downloads do not all have it. A folder
    with several LMDBs is one data set, in the host's order.
    """
    from ocp_faenet.data.lmdb_io import LmdbError
    from ocp_faenet.data.sizes import data_sets, sizes_fit, write_sizes

    rows: list[dict[str, Any]] = []
    try:
        found = data_sets(path)
        for data in found:
            if sizes_fit(data) and not force:
                click.echo(f"{data.metadata}: already there, {len(data)} records")
                continue
            total = len(data)
            with tqdm(total=total, desc="sizes", unit="record", file=sys.stderr) as bar:
                atoms, edges = write_sizes(data, workers=workers, progress=bar.update)
            rows.append(
                {"file": str(data.metadata), "records": total, "atoms": atoms, "edges": edges}
            )
            stored = "none stored" if edges is None else f"{edges:,}"
            click.echo(f"{data.metadata}: {total:,} records, {atoms:,} atoms, edges: {stored}")
    except (LmdbError, OSError) as error:
        raise BadInputError(str(error)) from error
    if json_path is not None:
        write_json(json_path, rows)


@click.command(
    "time",
    epilog="""Examples:

\b
  ocp-faenet data time configs/oc20/emt/is2re/faenet.yml
  ocp-faenet data time configs/oc20/is2re/all/faenet.yml --sample 2000 --workers 8
""",
)
@click.argument("config", type=PATH)
@click.option("--train", type=PATH, help="LMDB instead of the configuration's.")
@click.option("--val", type=PATH, help="Likewise, for the validation.")
@click.option("--sample", type=click.IntRange(2), help="Training structures; all if absent.")
@click.option("--workers", type=click.IntRange(0), help="Loader processes, likewise.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@JSON
def time_epoch(
    config: Path,
    train: Path | None,
    val: Path | None,
    sample: int | None,
    workers: int | None,
    threads: int,
    json_path: Path | None,
) -> None:
    """Train two epochs of CONFIG on the CPU and say where the time of the second went.

    Nothing is kept. With --workers 0 reading, unpickling, transforms and collating are told apart;
    with more, only the time that the trainer waits for them is seen.
    """
    from ocp_faenet.adapters.epoch import time_epoch as measure
    from ocp_faenet.adapters.runs import RunSpec

    if not config.is_file():
        raise BadInputError(f"{config}: no such configuration")
    sources = {"train": train, "val": val}
    dataset: dict[str, Any] = {k: {"src": str(v)} for k, v in sources.items() if v is not None}
    if sample is not None:
        dataset.setdefault("train", {})["sample_n"] = sample
        dataset.setdefault("val", {})["sample_n"] = None
    logging.disable(logging.INFO)  # the host's
    with tqdm(desc="two epochs", unit="step", file=sys.stderr) as bar:
        try:
            spec = RunSpec(config.stem, str(config), {"dataset": dataset}, threads=threads)
            times = measure(spec, workers, bar.update)
        except (ValueError, OSError) as error:
            raise BadInputError(str(error)) from error
        finally:
            logging.disable(logging.NOTSET)
    click.echo(_table(times))
    click.echo(_verdict(times, threads))
    if json_path is not None:
        content = {**vars(times), "machine": machine_class(), "threads": threads}
        rates = {"model_rate": times.model_rate, "loader_rate": times.loader_rate}
        write_json(json_path, {**content, **rates})


def _table(times: EpochTimes) -> str:
    rows = []
    total = sum(times.cpu.values())
    for name, seconds in times.cpu.items():
        if seconds == times.wall[name] == 0:
            continue
        share, each = seconds / total, 1e3 * seconds / times.samples
        rows.append(
            [name, f"{times.wall[name]:.2f}", f"{seconds:.2f}", f"{each:.2f}", f"{100 * share:.1f}"]
        )
    rows.append(["in all", f"{sum(times.wall.values()):.2f}", f"{total:.2f}",
                 f"{1e3 * total / times.samples:.2f}", "100"])  # fmt: skip
    return markdown_table(["stage", "wall s", "CPU s", "CPU ms/sample", "% of CPU"], rows)


def _verdict(times: EpochTimes, threads: int) -> str:
    clock = "wall" if times.workers else "CPU"
    return (
        f"\n{times.samples} training structures, {times.validated} in the validation, "
        f"{times.workers} loader processes. Loader alone {times.loader_rate:.0f} samples/s, model "
        f"alone (training) {times.model_rate:.0f}: {times.loader_rate / times.model_rate:.1f} "
        f"times, by {clock} time. {machine_class()}, {threads} "
        f"thread{'s' if threads > 1 else ''}."
    )
