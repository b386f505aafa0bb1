"""The static element table against mendeleev and the reference package."""

from __future__ import annotations

import importlib.util
import json
from importlib import resources
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ocp_faenet.nn import elements

SCRIPT = Path(__file__).parents[1] / "scripts" / "make_element_table.py"


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("mendeleev")
    spec = importlib.util.spec_from_file_location("make_element_table", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def raw():
    path = resources.files("ocp_faenet.nn") / "data" / "elements.json"
    return json.loads(path.read_text())


def test_identical_to_the_reference_up_to_85():
    embedding = pytest.importorskip("faenet.embedding").PhysEmbedding(props=True, pg=True)
    assert embedding.properties_list == list(elements.PROPERTY_NAMES)
    assert torch.equal(elements.element_properties()[:86], embedding.properties)
    assert torch.equal(elements.groups()[: len(embedding.group)], embedding.group)
    assert torch.equal(elements.periods()[: len(embedding.period)], embedding.period)


def test_every_element_is_there_and_finite():
    properties, groups, periods = (
        elements.element_properties(),
        elements.groups(),
        elements.periods(),
    )
    n = elements.MAX_ATOMIC_NUMBER + 1
    assert properties.shape == (n, elements.NUM_PROPERTIES)
    assert properties.dtype == torch.float32
    assert properties.isfinite().all()
    assert (properties[0] == 0).all()
    assert groups.shape == periods.shape == (n,)
    assert set(groups.tolist()) == set(range(1, elements.NUM_GROUPS))
    assert set(periods.tolist()) == set(range(1, elements.NUM_PERIODS))
    # Periods hold 2, 8, 8, 18, 18, 32, 32 elements; row 0 adds one to the first.
    assert periods.bincount().tolist() == [0, 3, 8, 8, 18, 18, 32, 32]
    assert [z for z in range(n) if groups[z] == 19] == [*range(58, 72), *range(90, 104)]


def test_rows_are_in_order_with_the_right_symbols():
    data = pytest.importorskip("ase.data")
    assert list(elements.symbols()) == data.chemical_symbols[:119]


def test_callers_cannot_spoil_the_table():
    elements.element_properties().zero_()
    elements.groups().zero_()
    assert elements.element_properties()[1:].abs().sum() > 0
    assert (elements.groups() > 0).all()


def test_normalised_values_follow_from_the_raw_ones(raw):
    """Known values are (raw - mean) / std; the imputed list is exactly the set of unknown ones."""
    imputed = elements.imputed_elements()
    mean = torch.tensor(raw["mean"], dtype=torch.float64)
    std = torch.tensor(raw["std"], dtype=torch.float64)
    for row in raw["elements"][1:]:
        for c, name in enumerate(elements.PROPERTY_NAMES):
            value = row["raw"][c]
            assert (value is None) == (row["z"] in imputed[name])
            if value is not None:
                expected = float((value - mean[c]) / std[c])
                assert row["normalised"][c] == pytest.approx(expected, rel=1e-6, abs=1e-9)
    known = [[x for x in column if x is not None] for column in zip(*_light(raw), strict=True)]
    assert [sum(x) / len(x) for x in known] == pytest.approx(raw["mean"])


def _light(raw):
    return [row["raw"] for row in raw["elements"][1:86]]


def test_imputed_values_follow_their_rules(raw):
    table = elements.element_properties()
    names = elements.PROPERTY_NAMES
    for name, numbers in raw["imputed"]["element_above"].items():
        for z in numbers:
            assert z > 85
            assert z - 32 not in elements.imputed_elements()[name]
            assert table[z, names.index(name)] == table[z - 32, names.index(name)]
    for name, numbers in raw["imputed"]["column_mean"].items():
        for z in numbers:
            assert abs(table[z, names.index(name)]) < 1e-12
            assert z <= 85 or z - 32 in elements.imputed_elements()[name]


def test_regenerating_gives_the_committed_file(script, tmp_path):
    out = tmp_path / "elements.json"
    result = CliRunner().invoke(script.main, ["--out", str(out)])
    assert result.exit_code == 0, result.output
    assert out.read_bytes() == script.OUT.read_bytes()


def test_check_mode_tells_a_stale_file_and_leaves_it(script, tmp_path):
    assert CliRunner().invoke(script.main, ["--check"]).exit_code == 0
    stale = tmp_path / "elements.json"
    stale.write_text(script.OUT.read_text().replace('"Pt"', '"Pr"'))
    before = stale.read_bytes()
    result = CliRunner().invoke(script.main, ["--check", "--out", str(stale)])
    assert result.exit_code == 1
    assert "out of date" in result.output
    assert stale.read_bytes() == before
    assert CliRunner().invoke(script.main, ["--check", "--out", "absent.json"]).exit_code == 1
