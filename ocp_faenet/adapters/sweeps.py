"""A grid of runs from a sweep file: nested or dotted keys, lists of values."""

from __future__ import annotations

import datetime
import itertools
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from fairchem.core.common.utils import UniqueKeyLoader

from ocp_faenet.adapters.host_keys import check_path
from ocp_faenet.adapters.overrides import replaced

#: YAML 1.1 reads ``1e-3`` as a string, for want of a point.
_FLOAT = re.compile(r"[+-]?\d+e[+-]?\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Job:
    """One run of a grid.

    Attributes:
        run_id: names its folders; unique.
        config: resolved configuration, as the host's trainer gets it.
        varied: what the sweep gives this run, by dotted key.
    """

    run_id: str
    config: dict[str, Any]
    varied: dict[str, Any] = field(default_factory=dict)

    @property
    def description(self) -> str:
        """What the sweep gives this run, in words; nothing for a run alone."""
        return describe(self.varied)


def read_sweep(path: Path) -> dict[str, list[Any]]:
    """Values by dotted key, in the order of the file.

    Mappings nest; a list holds the values to try; anything else, a string too, is one value.

    Raises:
        ValueError: the file is missing, no YAML or no mapping, or a key has nothing to try.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=UniqueKeyLoader)
    except OSError as error:
        raise ValueError(f"--sweep-yml: {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path}: not a mapping of keys to lists of values")
    values: dict[str, list[Any]] = {}
    for key, options in _flat(content, str(path)):
        if key in values:
            raise ValueError(f"{path}: {key} is given twice")
        values[key] = options
    return values


def _flat(section: Mapping[Any, Any], origin: str, root: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        name = f"{root}.{key}" if root else str(key)
        if isinstance(value, Mapping) and value:
            yield from _flat(value, origin, name)
        elif isinstance(value, list | Mapping) and not value:
            raise ValueError(f"{origin}: {name} has no values to try; write a list")
        else:
            options = value if isinstance(value, list) else [value]
            yield name, [_number(option) for option in options]


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and _FLOAT.fullmatch(value) else value


def make_grid(base: Mapping[str, Any], sweep_yml: Path | None) -> list[Job]:
    """Every combination of a sweep's values laid over ``base``; without a sweep, one run.

    The host's ``timestamp_id`` becomes the run's own in each configuration, so a job that is
    started again goes on in the same folders.

    Raises:
        ValueError: see `read_sweep`; an unknown key.
    """
    identifier = str(base.get("identifier") or "")
    stem = base.get("timestamp_id") or unique_id(identifier)
    if sweep_yml is None:
        return [Job(stem, {**base, "timestamp_id": stem})]
    sweep = read_sweep(sweep_yml)
    for key in sweep:
        check_path(base, key.split("."), str(sweep_yml))
    jobs = []
    for number, values in enumerate(itertools.product(*sweep.values())):
        varied = dict(zip(sweep, values, strict=True))
        config = dict(base)
        for key, value in varied.items():
            config = replaced(config, key.split("."), value)
        config["timestamp_id"] = f"{stem}-run{number}"
        name = f"{identifier}_run{number}" if identifier else f"run{number}"
        config["identifier"] = f"{name} {describe(varied)}"
        jobs.append(Job(config["timestamp_id"], config, varied))
    return jobs


def describe(varied: Mapping[str, Any]) -> str:
    """``optim.lr_initial=0.001, seed=1``."""
    return ", ".join(f"{key}={value}" for key, value in varied.items())


def unique_id(identifier: str = "") -> str:
    """Second, a random tail, and what of ``identifier`` may stand in a file name."""
    stamp = datetime.datetime.now().strftime("%Y-%m-%d-%H-%M-%S")
    name = re.sub(r"[^\w.+-]+", "_", identifier).strip("_")[:60]
    return "-".join([f"{stamp}-{uuid.uuid4().hex[:6]}", *([name] if name else [])])
