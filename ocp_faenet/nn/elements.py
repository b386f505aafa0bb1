"""Elements 1 to 118: group, period and normalised properties, from a file in the package.

The file is made by ``scripts/make_element_table.py`` out of mendeleev 0.15.0, so nothing is fetched
or computed at run time. Up to Z = 85 the numbers are those of ``faenet`` 0.1.3, bit for bit; that
package stops there (its embeddings hold 85 rows, its group table is one row short).
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from typing import Any

import torch
from torch import Tensor

MAX_ATOMIC_NUMBER = 118
#: Groups 1 to 18, and 19 for the lanthanides and actinides that have none; index 0 is unused.
NUM_GROUPS = 20
#: Periods 1 to 7; index 0 is unused.
NUM_PERIODS = 8
PROPERTY_NAMES = (
    "atomic_radius",
    "atomic_volume",
    "density",
    "dipole_polarizability",
    "electron_affinity",
    "en_allen",
    "vdw_radius",
    "metallic_radius",
    "metallic_radius_c12",
    "covalent_radius_pyykko_double",
    "covalent_radius_pyykko_triple",
    "covalent_radius_pyykko",
    "IE1",
    "IE2",
)
NUM_PROPERTIES = len(PROPERTY_NAMES)


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    path = resources.files("ocp_faenet.nn") / "data" / "elements.json"
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return table


def _column(name: str, dtype: torch.dtype) -> Tensor:
    return torch.tensor([row[name] for row in _table()["elements"]], dtype=dtype)


def element_properties() -> Tensor:
    """Fourteen properties of each element, normalised over Z = 1 to 85.

    Returns:
        (119, 14) float32, dimensionless; row = atomic number, columns as ``PROPERTY_NAMES``. Row 0
        is zero. Values that mendeleev lacks are imputed, see ``imputed_elements``.
    """
    return _column("normalised", torch.float32)


def groups() -> Tensor:
    """Group of each element, (119,) int64 in 1 to 19; 19 stands for no group. Row 0 is 1."""
    return _column("group", torch.int64)


def periods() -> Tensor:
    """Period of each element, (119,) int64 in 1 to 7. Row 0 is 1."""
    return _column("period", torch.int64)


def symbols() -> tuple[str, ...]:
    """Chemical symbol of each element, 119 strings; row 0 is ``"X"``."""
    return tuple(row["symbol"] for row in _table()["elements"])


def imputed_elements() -> dict[str, tuple[int, ...]]:
    """Property name to the atomic numbers whose value is imputed.

    Up to Z = 85, and where nothing better is known, by the column mean, as ``faenet`` 0.1.3 does;
    above, by the element one period up (Z - 32) where that one's value is known. The file lists
    the two rules apart.
    """
    rules = _table()["imputed"].values()
    return {
        name: tuple(sorted(z for rule in rules for z in rule.get(name, ())))
        for name in PROPERTY_NAMES
    }
