"""Command line and overrides of ``fairchem``, read as the host reads them, with clear errors."""

from __future__ import annotations

import argparse
import ast
import copy
import difflib
import os
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import yaml
from fairchem.core.common.flags import flags
from fairchem.core.common.utils import build_config, merge_dicts

from ocp_faenet.adapters.host_keys import check_path

#: How YAML spells what Python calls ``True``, ``False`` and ``None``.
_YAML = {"true": True, "false": False, "null": None}


def host_parser() -> argparse.ArgumentParser:
    """The host's own parser, whose errors are `ValueError`."""
    parser = copy.deepcopy(flags.get_parser())
    parser.prog = "ocp-faenet main"

    def refuse(message: str) -> NoReturn:
        raise ValueError(message)

    parser.error = refuse
    return parser


def read_arguments(arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Arguments of ``fairchem`` and the configuration that they describe.

    Args:
        arguments: as on the command line; what is no argument is an override ``--a.b=value``.

    Raises:
        ValueError: one line that names the argument, file or key.
    """
    parser = host_parser()
    parsed, rest = parser.parse_known_args(list(arguments))
    if parsed.mode is None:
        raise ValueError("--mode: missing; one of train, predict, run-relaxations, validate")
    if parsed.num_gpus < 1 or parsed.num_nodes < 1:
        raise ValueError("--num-gpus, --num-nodes: count ranks and nodes; at least 1, on CPUs too")
    if parsed.mode != "train" and parsed.checkpoint is None:
        raise ValueError(f"--checkpoint: missing; --mode {parsed.mode} needs one")
    if parsed.checkpoint is not None and not os.path.isfile(parsed.checkpoint):
        raise ValueError(f"--checkpoint {parsed.checkpoint}: no such file")
    overrides = [_split(argument, parser) for argument in rest]
    config = _configuration(parsed)
    for path, value in overrides:
        origin = f"--{'.'.join(path)}"
        check_path(config, path, origin)
        config = replaced(config, path, value)
    return parsed, config


def _configuration(parsed: argparse.Namespace) -> dict[str, Any]:
    try:
        config: dict[str, Any] = build_config(parsed, [])
    except OSError as error:
        raise ValueError(f"--config-yml: {error.filename}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{parsed.config_yml}: not YAML ({' '.join(str(error).split())})"
        ) from None
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{parsed.config_yml}: not a configuration ({error})") from None
    return config


def _split(argument: str, parser: argparse.ArgumentParser) -> tuple[list[str], Any]:
    """Path and value of ``--a.b=value``; only the first ``=`` separates them."""
    name, equals, value = argument.partition("=")
    keys = name.removeprefix("--").split(".")
    if not equals or not name.startswith("--") or not all(keys):
        options = [text for text in parser._option_string_actions if text.startswith("--")]
        near = difflib.get_close_matches(name, options, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"{argument!r}: neither an argument nor an override --section.key=value{hint}"
        )
    return keys, parse_value(value)


def parse_value(text: str) -> Any:
    """A Python literal, ``true``, ``false`` or ``null``; anything else is a string."""
    if text in _YAML:
        return _YAML[text]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def replaced(config: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy of ``config`` with ``value`` at ``path``; a mapping is merged into a mapping."""
    new = copy.deepcopy(dict(config))
    level: Any = new
    for key in path[:-1]:
        if isinstance(level, list):
            level = level[int(key)]
            continue
        if level.get(key) is None:
            level[key] = {}
        level = level[key]
    last: Any = int(path[-1]) if isinstance(level, list) else path[-1]
    old = level[last] if isinstance(level, list) else level.get(last)
    both = isinstance(old, Mapping) and isinstance(value, Mapping)
    level[last] = merge_dicts(old, value)[0] if both else copy.deepcopy(value)
    return new
