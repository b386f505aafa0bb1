"""``ocp-faenet dense evaluate``: success rates, errors and ranking by split."""

from __future__ import annotations

from pathlib import Path

import click

from ocp_faenet.cli import dense_options as options
from ocp_faenet.cli.dense_report import table_of
from ocp_faenet.cli.dense_scoring import Asked, EmtFiles, evaluated
from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.output import write_json


@click.command()
@click.option(
    "--predictions",
    type=options.PATH,
    required=True,
    multiple=True,
    help="Of `fairchem --mode predict` (.npz, once per file), or AdsorbML's results (.pkl).",
)
@options.TARGETS
@options.MAPPING
@click.option("--compute", type=options.PATH, help="oc20dense_compute.pkl, for the speed-ups.")
@click.option("--splits", type=options.PATH, help="Folder that `dense split` made.")
@options.ONLY
@click.option(
    "--references", type=options.PATH, help="Reference energies of the proposed structures."
)
@click.option("--references-key", help="Part of that file, gemnet-oc-2M say.")
@click.option(
    "--validation",
    type=click.Choice(["energies", "emt"]),
    default="energies",
    show_default=True,
    help="emt: EMT checks the five best-ranked structures of a system (embedded data).",
)
@click.option(
    "--data", type=options.PATH, multiple=True, help="LMDB of a split, for --validation emt."
)
@click.option(
    "--relaxed",
    type=options.PATH,
    multiple=True,
    help="relaxed_positions.npz, for --validation emt.",
)
@click.option(
    "--missing",
    type=click.Choice(["error", "fail"]),
    default="error",
    show_default=True,
    help="A configuration without a prediction: refuse, or count it as a failure.",
)
@options.JSON
def evaluate(
    predictions: tuple[Path, ...],
    targets: Path,
    mapping: Path,
    compute: Path | None,
    splits: Path | None,
    only: str | None,
    references: Path | None,
    references_key: str | None,
    validation: str,
    data: tuple[Path, ...],
    relaxed: tuple[Path, ...],
    missing: str,
    json_path: Path | None,
) -> None:
    """Success rates, errors and ranking of predictions, with 95 % intervals over systems.

    \b
    SR: the configuration of lowest predicted energy is valid (its prediction within 0.1 eV of its
    reference) and within 0.1 eV of the system's minimum, or below. Direct predictions have no
    reference energy of their own structure: the target of the configuration stands in, and the
    column says proxy. --references gives those of relaxed structures, and --validation emt
    computes them where EMT is the reference: an anomaly (AdsorbML's) is never valid.
    hybrid: the best reference energy among the k lowest predictions is as good as the minimum.
    offset, within: the part of the error that a whole system shares, and what is left without it.
    regret: the target of the chosen configuration above the minimum.

    \b
    Example:
      ocp-faenet dense evaluate --predictions results/dense/id.npz --only id \\
        --targets data/emt/demo/dense/oc20dense_targets.pkl \\
        --mapping data/emt/demo/dense/oc20dense_mapping.pkl \\
        --compute data/emt/demo/dense/oc20dense_compute.pkl \\
        --splits data/emt/demo/dense/splits --json scores.json
    """
    emt = _emt_files(validation, data, relaxed, references)
    if references_key is not None and references is None:
        raise BadInputError("--references-key: needs --references, the file that it is a part of")
    asked = Asked(
        predictions,
        targets,
        mapping,
        compute,
        splits,
        only,
        references,
        references_key,
        missing == "fail",
        emt,
    )
    report = evaluated(asked)
    click.echo(table_of(report))
    if json_path is not None:
        write_json(json_path, report.as_json())


def _emt_files(
    validation: str, data: tuple[Path, ...], relaxed: tuple[Path, ...], references: Path | None
) -> EmtFiles | None:
    if validation == "energies":
        if data or relaxed:
            raise BadInputError("--data and --relaxed: are for --validation emt")
        return None
    if not data:
        raise BadInputError("--validation emt: needs the structures; give --data for each split")
    if references is not None:
        raise BadInputError("--validation emt: computes what --references gives; leave one out")
    return EmtFiles(data, relaxed)
