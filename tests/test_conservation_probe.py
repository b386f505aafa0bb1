"""Closed paths and drifts against force fields whose answer is known (issue 4, point 2)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from click.testing import CliRunner

import plugin_fixtures as fx
from ocp_faenet.adapters.conservation_probe import ProbeSettings, trajectory
from ocp_faenet.cli import main
from ocp_faenet.metrics.conservation import drift, random_path, work

FREE = np.array([True, False, True, True])


def path(seed: int = 0, points: int = 16):
    generator = np.random.default_rng(seed)
    start = generator.normal(size=(4, 3))
    return random_path(start, FREE, radius=0.2, points=points, generator=generator)


def test_a_path_is_closed_and_moves_only_what_is_free():
    found = path()
    start = found.positions.mean(0)
    assert np.abs(found.positions[:, ~FREE] - start[~FREE]).max() < 1e-12
    moved = (found.positions - start)[:, FREE]
    np.testing.assert_allclose(np.sqrt((moved**2).sum(2).mean(1)), 0.2)
    with pytest.raises(ValueError, match="every atom is fixed"):
        random_path(start, FREE & False, radius=0.1, points=4, generator=np.random.default_rng(0))


def test_forces_with_an_energy_do_no_work_and_a_curl_does_what_stokes_says():
    found = path()
    matrix = np.random.default_rng(1).normal(size=(12, 12))
    flat = found.positions.reshape(len(found.positions), 12)

    def around(field):
        return work(found, (flat @ field.T).reshape(found.positions.shape))

    conservative, along = around(matrix + matrix.T)
    assert abs(conservative) < 1e-12 < along
    curled, _ = around(matrix - matrix.T)
    # Stokes for F = A x with A antisymmetric: area times the curl in the plane of the circle.
    start = flat.mean(0)
    u, v = flat[0] - start, flat[len(flat) // 4] - start
    assert curled == pytest.approx(2 * np.pi * (v @ (matrix - matrix.T) @ u), rel=1e-9)
    assert abs(curled) > 1e-3


def test_drift_is_a_slope():
    times = np.linspace(0, 1, 9)
    assert drift(2.0 - 3.0 * times, times) == pytest.approx(-3.0)


class Spring(Calculator):
    """Atoms bound to their places, with a push along x that has no energy where asked for."""

    implemented_properties = ("energy", "forces")

    def __init__(self, places, push: float = 0.0) -> None:
        super().__init__()
        self.places, self.push = places, push

    def calculate(self, atoms=None, properties=(), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        moved = atoms.positions - self.places
        turned = np.stack([-moved[:, 1], moved[:, 0], 0 * moved[:, 2]], axis=1)
        self.results = {
            "energy": 2.0 * float((moved**2).sum()),
            "forces": -4.0 * moved + self.push * turned,
        }


def test_a_force_without_energy_drifts():
    places = 3.0 * np.arange(12.0).reshape(4, 3)
    found = {}
    for push in (0.0, 0.5):
        atoms = Atoms("Cu4", positions=places)
        times, energies = trajectory(
            atoms, Spring(places, push), ProbeSettings(steps=100), np.random.default_rng(0)
        )
        found[push] = abs(drift(energies, times))
    assert found[0.0] < 2e-3 < 0.02 < found[0.5]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Weights that were never trained, forces from the energy and direct."""
    folder, found = tmp_path_factory.mktemp("probe"), {}
    for mode in ("from_energy", "direct"):
        options = {**fx.TINY, "otf_graph": True, "regress_forces": mode, "skip_co": None}
        options |= {"frame_averaging": "2D", "eval_fa_method": "all", "frame_source": "edges"}
        found[mode] = fx.untrained(folder / f"{mode}.pt", options, scale=5.0)
    return found


def verb(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["conservation", *map(str, arguments)])
    return result.exit_code, result.output


def test_verb_tells_the_two_apart(checkpoints, tiny_data, tmp_path):
    src = tiny_data / "s2ef" / "val_id" / "data.lmdb"
    options = ["--structures", 2, "--steps", 30, "--loops", 2, "--radius", 0.05]
    options += ["--json", tmp_path / "out.json"]
    code, output = verb(*checkpoints.values(), "--src", src, *options)
    assert code == 0, output
    rows = json.loads((tmp_path / "out.json").read_text())["checkpoints"]
    energy, direct = (rows[str(checkpoints[mode])] for mode in ("from_energy", "direct"))
    assert energy["work_share"] < 1e-3 < 0.05 < direct["work_share"], rows


def test_verb_refuses_what_it_cannot_measure(tiny_data, tmp_path):
    src = tiny_data / "s2ef" / "val_id" / "data.lmdb"
    code, output = verb(tmp_path / "none.pt", "--src", src)
    assert code == 2
    assert "none.pt" in output
