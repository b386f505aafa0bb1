"""The data set on which long-range messages are tried: exact energies that no cutoff reaches."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ocp_faenet.adapters.plan import read_plan
from ocp_faenet.cli import main
from ocp_faenet.cli.study_run import own_data
from ocp_faenet.data import charges
from ocp_faenet.data.generate import OutputError
from ocp_faenet.data.pairs import periodic_pairs
from ocp_faenet.geometry import kspace

ROOT = Path(__file__).parent.parent


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31))
@example(20389)  # two hydrogens met in the first draw
def test_no_model_of_the_cutoff_sees_another_ion(seed):
    positions, cell, numbers, charge = charges.ions(np.random.default_rng(seed))
    assert sorted(numbers) == [1] * 4 + [8] * 4 + [11] * 4
    assert sum(charge) == pytest.approx(0.0, abs=1e-12)
    pairs = periodic_pairs(positions, cell, charges.REACH)
    elements = {
        frozenset((numbers[a], numbers[b]))
        for a, b in zip(pairs.centre, pairs.neighbour, strict=True)
    }
    assert elements == {frozenset((1, 8))}
    assert len(pairs.centre) == 8  # four bonds, each from both ends


def test_energies_are_exact():
    """Beside a sum over images and wave vectors written out here, in another split of the two."""
    positions, cell, numbers, charge = charges.ions(np.random.default_rng(3))
    eta = 0.35  # Å⁻¹
    x, q, a = torch.tensor(positions), torch.tensor(charge).double(), torch.tensor(cell)
    shifts = torch.tensor(list(product(range(-3, 4), repeat=3))).double() @ a
    distance = (x[:, None, None] - x[None, :, None] + shifts).norm(dim=-1)
    real = torch.where(distance > 0, torch.erfc(eta * distance) / distance, 0.0).sum(-1)
    vectors = kspace.vectors_within(kspace.reciprocal_cells(a[None]), a[None], 4.0)
    waves = kspace.plane_waves(x @ torch.linalg.inv(a), vectors.indices[0])
    factors = (q[:, None] * waves).sum(0).square().view(2, -1).sum(0)
    square = vectors.norms[0].square()
    weights = torch.where(square > 0, 4 * math.pi / square * (-square / (4 * eta**2)).exp(), 0.0)
    volume = float(torch.linalg.det(a))
    energy = 0.5 * float(q @ real @ q)
    energy += 0.5 * float((weights * factors * vectors.multiplicity[0]).sum()) / volume
    energy -= eta / math.sqrt(math.pi) * float(q.square().sum())
    found = charges.coulomb_energy(positions, cell, numbers, charge)
    assert found == pytest.approx(14.399645478 * energy, abs=1e-6)


def test_command_makes_the_same_bytes_again(tmp_path, monkeypatch):
    monkeypatch.setattr(charges, "SIZES", {"train": 3, "val_id": 2})
    for name in ("a", "b"):
        done = CliRunner().invoke(main, ["data", "charges", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.lmdb"))
    assert len(files) == 2
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    checked = CliRunner().invoke(main, ["data", "check", str(tmp_path / "a")])
    assert checked.exit_code == 0, checked.output
    before = (tmp_path / "a" / files[0]).stat().st_mtime_ns
    charges.generate_charges(tmp_path / "a")
    assert (tmp_path / "a" / files[0]).stat().st_mtime_ns == before
    with pytest.raises(OutputError, match="another data set"):
        charges.generate_charges(tmp_path / "a", seed=1)


def test_the_study_makes_its_data(tmp_path, monkeypatch):
    monkeypatch.setattr(charges, "SIZES", {"train": 2, "val_id": 1})
    plan = read_plan(ROOT / "configs" / "studies" / "long_range.yml")
    monkeypatch.chdir(tmp_path)
    folder = own_data(plan)
    assert (folder / "is2re" / "val_id" / "data.lmdb").is_file()
