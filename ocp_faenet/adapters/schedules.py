"""Schedules that end with the run, whose number of steps depends on the number of ranks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

#: Schedulers of one cycle, and the key that holds its length in steps.
LENGTHS: Mapping[str, str] = {"CosineAnnealingLR": "T_max", "OneCycleLR": "total_steps"}


def fitted_schedule(optim: Mapping[str, Any], steps: int | None) -> dict[str, Any]:
    """The section ``optim`` with a schedule as long as the run.

    Args:
        optim: ``scheduler``, and perhaps its length: ``T_max`` or ``total_steps``. One that is
            given stays. With more ranks than it was meant for the run would end at a high rate,
            with fewer at one that rises again: what differs is logged.
        steps: of the run, on each rank; ``None`` where nothing is trained.

    Raises:
        ValueError: ``OneCycleLR`` is shorter than the run, which would end in its error.
    """
    scheduler = str(optim.get("scheduler"))
    if scheduler not in LENGTHS or "steps_per_epoch" in optim:
        return dict(optim)
    key = LENGTHS[scheduler]
    given = optim.get(key)
    if given is None:
        return {**optim, key: steps or 1}
    if steps is not None:
        check_length(scheduler, given, steps, f"optim.{key}")
    return dict(optim)


def check_length(scheduler: str, given: int, steps: int, origin: str) -> None:
    """Tell of a schedule that is not as long as the run.

    Args:
        scheduler: one of `LENGTHS`.
        given: its length in steps.
        steps: of the run, on each rank.
        origin: where the length stands, for the message.

    Raises:
        ValueError: ``OneCycleLR`` is shorter than the run, which would end in its error.
    """
    if given == steps:
        return
    mismatch = (
        f"{origin}: {given}, but this run takes {steps} steps (max_epochs x batches of a rank); "
        f"without optim.{LENGTHS[scheduler]} {scheduler} lasts as long as the run, and a resumed "
        "run keeps the schedule of its checkpoint"
    )
    if scheduler == "OneCycleLR" and given < steps:
        raise ValueError(mismatch)
    logging.warning(mismatch)
