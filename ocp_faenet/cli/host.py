"""``ocp-faenet main``: all of ``fairchem``, its faults mended, its sweeps everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.options import FILE, PATH
from ocp_faenet.cli.output import markdown_table, write_json

if TYPE_CHECKING:
    from ocp_faenet.adapters.sweeps import Job


class HostCommand(click.Command):
    """A command whose help ends with the host's own arguments."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the host's arguments as the host does."""
        from ocp_faenet.adapters.overrides import host_parser

        formatter.write("\nArguments of fairchem, all of which are taken:\n\n")
        formatter.write(host_parser().format_help())


@click.command(
    cls=HostCommand,
    context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]},
    options_metavar="ARGUMENTS OF fairchem [--section.key=value ...]",
)
@click.option("--dry-run", is_flag=True, help="Print each run's configuration and start nothing.")
@click.option(
    "--collect",
    "logdir",
    type=PATH,
    metavar="LOGDIR",
    help="Print the runs started with --logdir LOGDIR, best first; needs nothing else.",
)
@click.option("--json", "json_path", type=FILE, help="Write that here too.")
@click.option(
    "--requeues",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="How often SLURM may stop a job by a signal and have it go on later.",
)
@click.option(
    "--signal-delay",
    type=click.IntRange(min=1),
    default=90,
    show_default=True,
    help="Seconds between that signal and the end; a step and a checkpoint have to fit in.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="")
def main(
    dry_run: bool,
    logdir: Path | None,
    json_path: Path | None,
    requeues: int,
    signal_delay: int,
    arguments: tuple[str, ...],
) -> None:
    """Train, validate, predict or relax: here, or on SLURM with --submit.

    \b
    One run, here:
      ocp-faenet main --mode train --config-yml configs/oc20/is2re/10k/faenet.yml
    On SLURM, from a login node without a GPU; a job that is preempted or runs out of time
    goes on at the same step:
      ocp-faenet main --mode train --config-yml configs/oc20/is2re/all/faenet.yml \\
        --submit --slurm-partition gpu --slurm-mem 64 --slurm-timeout 24 --requeues 5
    A sweep: a YAML file of lists, nested or dotted; without --submit in turn, here:
      printf 'optim: {lr_initial: [0.001, 0.003]}\\nseed: [0, 1]\\n' > sweep.yml
      ocp-faenet main --mode train --config-yml configs/oc20/is2re/10k/faenet.yml \\
        --sweep-yml sweep.yml --logdir logs/lr --submit --slurm-partition gpu --dry-run
      ocp-faenet main --collect logs/lr
    A leaderboard file, from the best checkpoint and the four test splits:
      ocp-faenet submission build --task is2re --checkpoint best_checkpoint.pt \\
        --id .../test_id/data.lmdb --ood-ads ... --ood-cat ... --ood-both ... out.npz
    """
    if logdir is not None:
        if arguments or dry_run:
            raise BadInputError("--collect: takes nothing but --json beside it")
        _collect(logdir, json_path)
        return
    try:
        parsed, jobs = _grid(arguments, requeues, signal_delay)
        _check(jobs, here=not parsed.submit)
    except ValueError as error:
        raise BadInputError(" ".join(str(error).split())) from None
    if dry_run:
        _print_grid(jobs, json_path)
    elif parsed.submit:
        _submit(jobs, parsed, requeues, signal_delay)
    else:
        _run(jobs, parsed)


def _grid(arguments: Sequence[str], requeues: int, signal_delay: int) -> tuple[Any, list[Job]]:
    from ocp_faenet.adapters.launch import ClusterOptions, complete
    from ocp_faenet.adapters.overrides import read_arguments
    from ocp_faenet.adapters.sweeps import make_grid

    parsed, config = read_arguments(arguments)
    jobs = make_grid(config, parsed.sweep_yml)
    return parsed, complete(jobs, ClusterOptions(requeues, signal_delay))


def _check(jobs: Sequence[Job], here: bool) -> None:
    """Refuse what cannot run; data may lie where only the jobs see them."""
    from ocp_faenet.adapters.preflight import check_run_config

    for job in jobs:
        which = f"{job.run_id}: " if len(jobs) > 1 else ""
        try:
            check_run_config(job.config, data=here)
        except ValueError as error:
            raise ValueError(f"{which}{error}") from None


def _print_grid(jobs: Sequence[Job], json_path: Path | None) -> None:
    for job in jobs:
        click.echo(f"# {job.run_id}: {job.description or 'as configured'}")
        click.echo(yaml.safe_dump(job.config, sort_keys=False, default_flow_style=False))
    click.echo(f"{len(jobs)} {'job' if len(jobs) == 1 else 'jobs'}, none started (--dry-run)")
    if json_path is not None:
        rows = [{"run": j.run_id, "varied": j.varied, "config": j.config} for j in jobs]
        write_json(json_path, {"count": len(jobs), "runs": rows})


def _submit(jobs: Sequence[Job], parsed: Any, requeues: int, signal_delay: int) -> None:
    from ocp_faenet.adapters.launch import ClusterOptions, submit, write_manifest

    try:
        numbers = submit(jobs, parsed, ClusterOptions(requeues, signal_delay))
    except ValueError as error:
        raise BadInputError(str(error)) from None
    write_manifest(parsed.logdir, jobs, numbers)
    rows = [
        [number, job.run_id, job.description or "-", str(parsed.logdir / number)]
        for number, job in zip(numbers, jobs, strict=True)
    ]
    click.echo(markdown_table(["job", "run", "varied", "output"], rows))
    click.echo(f"Checkpoints and results: {jobs[0].config['run_dir']}, by run")
    click.echo(f"{len(jobs)} submitted; ocp-faenet main --collect {parsed.logdir}")


def _run(jobs: Sequence[Job], parsed: Any) -> None:
    from ocp_faenet.adapters import launch

    launch.write_manifest(parsed.logdir, jobs)
    if parsed.sweep_yml is None:
        try:
            launch.run_here(jobs[0].config, parsed.num_gpus)
        except launch.RankDiedError as error:
            raise click.ClickException(str(error)) from None
        return

    def tell(index: int, job: Job) -> None:
        click.echo(f"Run {index + 1} of {len(jobs)}: {job.run_id} ({job.description})")

    failed = launch.run_in_turn(jobs, parsed.num_gpus, tell)
    click.echo(f"{len(jobs) - len(failed)} of {len(jobs)} runs finished")
    if failed:
        names = ", ".join(job.run_id for job in failed)
        raise click.ClickException(f"failed: {names}")


def _collect(logdir: Path, json_path: Path | None) -> None:
    from ocp_faenet.adapters.collect import collect

    try:
        rows = collect(logdir)
    except ValueError as error:
        raise BadInputError(str(error)) from None
    keys = list(dict.fromkeys(key for row in rows for key in row["varied"]))
    metric = next(
        (row["primary_metric"] for row in rows if row["primary_metric"]), "primary metric"
    )
    header = ["run", *keys, f"best {metric}", "step", "epoch", "state", "requeued", "job"]
    lines = [
        [
            row["run"],
            *[str(row["varied"].get(key, "-")) for key in keys],
            _number(row["best"], "{:.4f}"),
            _number(row["step"], "{}"),
            _number(row["epoch"], "{:.2f}"),
            row["state"],
            _number(row["requeued"], "{}"),
            row["job"] or "-",
        ]
        for row in rows
    ]
    click.echo(markdown_table(header, lines))
    for row in rows:
        if row["error"]:
            click.echo(f"{row['run']}: {row['error']}")
    if json_path is not None:
        write_json(json_path, {"runs": rows})


def _number(value: Any, form: str) -> str:
    return "-" if value is None else form.format(value)
