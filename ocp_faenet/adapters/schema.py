"""From a YAML mapping to `FAENetConfig`: strict types, no unknown keys, one line per error."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from enum import Enum
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from ocp_faenet.models.config import DecoderConfig, FAENetConfig
from ocp_faenet.models.ewald_config import EwaldConfig

#: Published spellings of "not used", beside ``False``, for keys whose type allows ``None``.
ABSENT = frozenset({"", "none", "None", "null"})
#: Old published names of values, by key.
RENAMED = {
    key: {"random": "stochastic", "se3-random": "se3-stochastic"}
    for key in ("fa_method", "eval_fa_method")
}
DECODERS = "force_decoder_model_config"
EWALD = "ewald"

_ADAPTER = TypeAdapter(FAENetConfig)
_HINTS = get_type_hints(FAENetConfig)


def validate_config(mapping: Mapping[str, Any]) -> FAENetConfig:
    """Check a model configuration and build it.

    Optional choices may be absent in any published spelling (``False``, ``""``, ``"none"``,
    ``null``); ``fa_method: random`` is read as ``stochastic``. Nothing else is converted: a
    ``"yes"`` is not a boolean, a ``4.0`` not an integer.

    Args:
        mapping: keys of the host's ``model:`` section, without ``name``.

    Raises:
        ValueError: one line that names each wrong key, its value and what is allowed.
    """
    _refuse_unknown("", mapping, [field.name for field in fields(FAENetConfig)])
    plain = {key: _published(key, value) for key, value in mapping.items()}
    if isinstance(plain.get(DECODERS), Mapping):
        plain[DECODERS] = _decoders(plain[DECODERS])
    if isinstance(plain.get(EWALD), Mapping):
        plain[EWALD] = _ewald(plain[EWALD])
    try:
        text = json.dumps(plain)
    except (TypeError, ValueError) as error:
        raise ValueError(f"model configuration: {error}; use plain YAML values") from None
    try:
        return _ADAPTER.validate_json(text, strict=True)
    except ValidationError as error:
        lines = (_line(item) for item in error.errors(include_url=False))
        raise ValueError("model configuration: " + "; ".join(lines)) from None


def is_absent(value: Any) -> bool:
    """Whether ``value`` spells "not used": ``None``, ``False``, or one of `ABSENT`."""
    return value is None or value is False or (isinstance(value, str) and value in ABSENT)


def optional_keys() -> list[str]:
    """Keys for which absence is a choice."""
    return [key for key, hint in _HINTS.items() if type(None) in get_args(hint)]


def _refuse_unknown(prefix: str, mapping: Mapping[str, Any], known: Iterable[str]) -> None:
    known = list(known)
    for key in mapping:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
            raise ValueError(
                f"model configuration: unknown key {prefix + str(key)!r} "
                f"(value {mapping[key]!r}); the nearest known key is {prefix + near[0]!r}"
            )


def _published(key: str, value: Any) -> Any:
    """``value`` with published spellings of absence and old names replaced."""
    if key in optional_keys() and is_absent(value):
        return None
    if isinstance(value, Enum):
        return value.value
    return RENAMED.get(key, {}).get(value, value) if isinstance(value, str) else value


def _decoders(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The published nested form, ``{"mlp": {"hidden_channels": 256, "norm": "batch1d"}}``."""
    plain = {}
    for kind, size in sizes.items():
        if isinstance(size, Mapping):
            prefix = f"{DECODERS}.{kind}."
            _refuse_unknown(prefix, size, [field.name for field in fields(DecoderConfig)])
            size = {k: None if k == "norm" and is_absent(v) else v for k, v in size.items()}
        plain[kind] = size
    return plain


def _ewald(choices: Mapping[str, Any]) -> dict[str, Any]:
    """The ``ewald`` section; none of its keys may be unknown."""
    _refuse_unknown(f"{EWALD}.", choices, [field.name for field in fields(EwaldConfig)])
    return dict(choices)


def _line(item: Any) -> str:
    """``key: value reason; allowed: ...`` from one pydantic error."""
    path = [part for part in item["loc"] if part != "[key]"]
    reason = item["msg"].removeprefix("Value error, ")
    if not path:  # a cross-check of the dataclass itself names its keys
        return reason
    return f"{'.'.join(map(str, path))}: {item['input']!r}; {_lower(reason)}{_or_null(path)}"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _or_null(path: list[Any]) -> str:
    return " or null" if len(path) == 1 and path[0] in optional_keys() else ""
