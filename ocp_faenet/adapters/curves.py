"""Training curves out of the host's TensorBoard logs."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read_curves(logs: Path) -> dict[str, list[tuple[int, float]]]:
    """Every logged scalar below ``logs`` as ``(step, value)`` pairs in the order of steps.

    Where a run was resumed, the later value of a step stands.
    """
    values: dict[str, dict[int, tuple[float, float]]] = {}
    for folder in sorted({file.parent for file in logs.rglob("events.out.tfevents.*")}):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            curve = values.setdefault(tag, {})
            for event in events.Scalars(tag):
                if event.step not in curve or event.wall_time >= curve[event.step][0]:
                    curve[event.step] = (event.wall_time, event.value)
    return {
        tag: [(step, value) for step, (_, value) in sorted(curve.items())]
        for tag, curve in sorted(values.items())
    }
