"""How many calls EMT takes until its largest force is below some value: docs/dense.md.

python scripts/emt_calls_by_force.py data/emt/demo/dense_splits/id/data.lmdb
"""

from __future__ import annotations

import sys

import numpy as np

from ocp_faenet.data.dense_oracle import potential_of
from ocp_faenet.data.reader import open_lmdb
from ocp_faenet.data.relax import relax
from ocp_faenet.data.schema import Fields, array_of
from ocp_faenet.data.simulate import FMAX, MAX_STEPS
from ocp_faenet.metrics.relaxations import max_force

#: eV/Å; the last is where a relaxation ends.
FORCES = (1.0, 0.85, 0.5, 0.2, 0.1, FMAX)
#: Every fourth configuration.
STRIDE = 4


def calls_until(record: Fields) -> list[float]:
    """Calls until the largest force on a free atom is at most each of `FORCES`; NaN for never."""
    potential, free = potential_of(record), array_of(record["fixed"]) == 0
    start = array_of(record["pos"]).astype(np.float64)
    done = relax(potential, start, free, fmax=FMAX, max_steps=MAX_STEPS)
    largest = [max_force(potential(frame).forces[free]) for frame in done.frames]
    below = [[call for call, force in enumerate(largest, 1) if force <= f] for f in FORCES]
    return [float(calls[0]) if calls else np.nan for calls in below]


if __name__ == "__main__":
    with open_lmdb(sys.argv[1]) as records:
        counts = np.array([calls_until(records[k]) for k in range(0, len(records), STRIDE)])
    for force, median, mean in zip(
        FORCES, np.nanmedian(counts, axis=0), np.nanmean(counts, axis=0), strict=True
    ):
        sys.stdout.write(f"{force:.2f} eV/Å: median {median:.1f}, mean {mean:.1f} calls\n")
    sys.stdout.write(f"{len(counts)} configurations\n")
