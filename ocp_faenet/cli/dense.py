"""``ocp-faenet dense``: splits, predictions and success rates of OC20-Dense."""

from __future__ import annotations

import click

from ocp_faenet.cli.dense_evaluate import evaluate
from ocp_faenet.cli.dense_export import export
from ocp_faenet.cli.dense_oracle import oracle
from ocp_faenet.cli.dense_plot import plot
from ocp_faenet.cli.dense_predict import predict
from ocp_faenet.cli.dense_sensitivity import sensitivity
from ocp_faenet.cli.dense_split import split


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


for _command in (split, predict, evaluate, export, oracle, plot, sensitivity):
    dense.add_command(_command)
