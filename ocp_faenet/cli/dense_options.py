"""Options that several verbs of ``ocp-faenet dense`` take, worded once."""

from __future__ import annotations

import click

from ocp_faenet.cli import options

PATH, FILE, JSON = options.PATH, options.FILE, options.JSON

PREDICTIONS = click.option(
    "--predictions",
    type=PATH,
    required=True,
    multiple=True,
    help="Of `dense predict`, once for each file.",
)
DATA = click.option(
    "--data", type=PATH, required=True, multiple=True, help="LMDB of a split, once for each."
)
RELAXED = click.option(
    "--relaxed", type=PATH, multiple=True, help="relaxed_positions.npz of the model."
)
TOP_K = click.option("--top-k", type=click.IntRange(min=1), default=5, show_default=True)
TARGETS = click.option("--targets", type=PATH, required=True, help="oc20dense_targets.pkl")
MAPPING = click.option("--mapping", type=PATH, required=True, help="oc20dense_mapping.pkl")
ONLY = click.option("--only", help="Some of the splits, by commas.")
