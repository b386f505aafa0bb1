"""Scale factors of one of the host's models, for ``model.scale_file`` of its configuration.

    python scripts/fit_scale_factors.py configs/oc20/emt/s2ef/painn.yml

The host's own script (``python -m fairchem.core.modules.scaling.fit``) asks 1.10's parser for an
option that it no longer has; its function works.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import torch
from fairchem.core.common.flags import flags
from fairchem.core.common.utils import build_config
from fairchem.core.modules.scaling.fit import compute_scaling_factors


def main(config_yml: str) -> None:
    """Fit on 16 training batches, seed 0, and print lines of YAML."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "scales.pt"
        command = ["--mode=train", f"--config-yml={config_yml}", "--cpu", "--seed=0", "--debug"]
        command += [f"--checkpoint={checkpoint}", f"--run-dir={folder}", "--timestamp-id=fit"]
        config = build_config(*flags.get_parser().parse_known_args(command))
        config["model"].pop("scale_file", None)
        compute_scaling_factors(config)
        found = torch.load(checkpoint, weights_only=True)
    print("  scale_file:")
    for name, value in found.items():
        print(f"    {name}: {float(value):.4f}")


if __name__ == "__main__":
    os.environ.setdefault("WANDB_MODE", "offline")
    main(sys.argv[1])
