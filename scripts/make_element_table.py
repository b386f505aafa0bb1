"""Generate ``ocp_faenet/nn/data/elements.json``: elements 0 to 118 from mendeleev 0.15.0.

Rules, the first two being those of the ``faenet`` 0.1.3 package:

* every property is normalised with the mean and the (n - 1) standard deviation of elements 1 to 85;
* up to Z = 85 a missing value is filled with the mean of its normalised column over those elements;
* above Z = 85 a missing value is that of the element one period above (Z - 32) where that one is
  known, and the same column mean where it is not;
* an element without a group (Ce to Lu, Th to Lr) is in group 19;
* row 0, which no atom uses, has zero properties, group 1 and period 1.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd

from ocp_faenet.nn.elements import MAX_ATOMIC_NUMBER as LAST
from ocp_faenet.nn.elements import PROPERTY_NAMES as PROPERTIES

MENDELEEV = "0.15.0"
REFERENCE_LAST = 85
PERIOD_LENGTH = 32
NO_GROUP = 19
OUT = Path(__file__).parents[1] / "ocp_faenet" / "nn" / "data" / "elements.json"


def fetch() -> pd.DataFrame:
    """mendeleev's table of elements 1 to 118, with the first two ionisation energies."""
    import mendeleev
    from mendeleev.fetch import fetch_ionization_energies, fetch_table

    if mendeleev.__version__ != MENDELEEV:
        raise click.ClickException(
            f"mendeleev {mendeleev.__version__} found, the table is defined by {MENDELEEV}: "
            f"pip install mendeleev=={MENDELEEV}"
        )
    elements = fetch_table("elements").set_index("atomic_number")
    return pd.concat([elements, fetch_ionization_energies(degree=[1, 2])], axis=1).loc[:LAST]


def impute(normalised: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, dict[str, list[int]]]]:
    """Fill what is missing; also say, by rule and property, which elements were filled."""
    filled = normalised.copy()
    listed: dict[str, dict[str, list[int]]] = {"column_mean": {}, "element_above": {}}
    column_mean = normalised.loc[:REFERENCE_LAST].mean()
    for name in normalised.columns:
        for number in normalised.index[normalised[name].isna()]:
            above = normalised[name].get(number - PERIOD_LENGTH, math.nan)
            use_above = number > REFERENCE_LAST and not math.isnan(above)
            filled.loc[number, name] = above if use_above else column_mean[name]
            rule = "element_above" if use_above else "column_mean"
            listed[rule].setdefault(str(name), []).append(int(number))
    return filled, listed


def shortest(value: float) -> float:
    """The shortest decimal that reads back as the same float32."""
    short = float(str(np.float32(value)))
    if np.float32(short) != np.float32(value):
        raise click.ClickException(f"{value!r} does not survive printing as float32")
    return short


def build() -> dict[str, Any]:
    """The whole table as plain Python objects."""
    table = fetch()
    raw = table[list(PROPERTIES)]
    mean, std = raw.loc[:REFERENCE_LAST].mean(), raw.loc[:REFERENCE_LAST].std()
    filled, listed = impute((raw - mean) / std)
    groups = table["group_id"].fillna(NO_GROUP).astype(int)
    rows: list[dict[str, Any]] = [
        {"z": 0, "symbol": "X", "group": 1, "period": 1, "raw": [None] * len(PROPERTIES)}
        | {"normalised": [0.0] * len(PROPERTIES)}
    ]
    for z in range(1, LAST + 1):
        rows.append(
            {
                "z": z,
                "symbol": str(table["symbol"][z]),
                "group": int(groups[z]),
                "period": int(table["period"][z]),
                "raw": [None if math.isnan(x) else float(x) for x in raw.loc[z]],
                "normalised": [shortest(x) for x in filled.loc[z]],
            }
        )
    return {
        "source": f"mendeleev {MENDELEEV}, by scripts/make_element_table.py",
        "properties": list(PROPERTIES),
        "mean": [float(mean[name]) for name in PROPERTIES],
        "std": [float(std[name]) for name in PROPERTIES],
        "imputed": listed,
        "elements": rows,
    }


def render(table: dict[str, Any]) -> str:
    """JSON with one line for each element and for each list of imputed elements."""
    parts = []
    for key, value in table.items():
        if key == "elements":
            body = "[\n" + ",\n".join(json.dumps(row) for row in value) + "\n]"
        elif key == "imputed":
            rules = [
                f'"{rule}": {{\n' + ",\n".join(f'"{n}": {z}' for n, z in names.items()) + "\n}"
                for rule, names in value.items()
            ]
            body = "{\n" + ",\n".join(rules) + "\n}"
        else:
            body = json.dumps(value)
        parts.append(f'"{key}": {body}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=OUT, help="Where to write.")
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if the file differs.")
def main(out: Path, check: bool) -> None:
    text = render(build())
    if not check:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
        click.echo(f"wrote {out}")
    elif not out.is_file() or out.read_text(encoding="utf-8") != text:
        raise click.ClickException(f"{out} is missing or out of date: run {Path(__file__).name}")
    else:
        click.echo(f"{out} is up to date")


if __name__ == "__main__":
    main()
