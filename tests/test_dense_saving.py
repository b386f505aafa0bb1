"""What a model's relaxations save the oracle: counted by hand, and from known ends (issue 7, 8)."""

from __future__ import annotations

import numpy as np
import pytest

from ocp_faenet.adapters.dense_saving import TOP_K, ModelEnd, largest_force, saved
from ocp_faenet.data.dense_oracle import follow, relax_from
from ocp_faenet.data.dense_prepare import SPLITS
from ocp_faenet.data.reader import open_lmdb
from ocp_faenet.data.relaxed_positions import whole_structure
from ocp_faenet.data.schema import array_of
from ocp_faenet.metrics.dense_saving import Ends, by_candidates, each_candidate


def test_calls_and_minima_by_hand():
    first = Ends([10, 5, 7], [None, -1.05, -1.3], lowest=-1.2)
    second = Ends([20], [-0.45], lowest=-0.5)
    assert [first.calls_until(k) for k in (1, 2, 3, 9)] == [10, 15, 22, 22]
    assert [first.found_by(k) for k in (1, 2, 3)] == [False, False, True]
    assert second.found_by(1)
    assert by_candidates([first, second], 2) == {
        "calls": 17.5, "calls_median": 17.5, "found": 0.5,
    }  # fmt: skip
    assert each_candidate([first, second]) == {"mean": 10.5, "median": 8.5}
    with pytest.raises(ValueError, match="no system"):
        by_candidates([], 1)


@pytest.fixture(scope="module")
def records(dense_tiny) -> list[dict]:
    with open_lmdb(dense_tiny / SPLITS / "id" / "data.lmdb") as found:
        return list(found)


def test_fixed_atoms_that_a_loader_dropped_are_where_they_were(records):
    record = next(r for r in records if (array_of(r["tags"]) == 0).any())
    start, seen = array_of(record["pos"]), array_of(record["tags"]) > 0
    moved = start[seen].astype(np.float64) + 0.1
    found = whole_structure(record, moved)
    np.testing.assert_array_equal(found[seen], moved)
    np.testing.assert_array_equal(found[~seen], start[~seen])
    assert whole_structure(record, found) is found
    with pytest.raises(ValueError, match=r"were relaxed: set dataset\.relax"):
        whole_structure(record, moved[:-1])
    free = {**record, "fixed": np.zeros(len(start))}
    with pytest.raises(ValueError, match="were relaxed"):  # what may move has moved somewhere
        whole_structure(free, moved)


def test_what_is_saved_from_known_ends(records):
    """From the oracle's own ends it takes one look; from the starts nothing is saved."""
    systems: dict[str, list[dict]] = {}
    for record in sorted(records, key=lambda each: each["y_relaxed"]):
        systems.setdefault(record["system_id"], []).append(record)
    own = {}
    for name, ranked in systems.items():
        own[name] = [ModelEnd(r, r["y_relaxed"], relax_from(r, array_of(r["pos"])).positions, True)
                     for r in ranked[:TOP_K]]  # fmt: skip
    best = [end for ends in own.values() for end in ends]
    calls = [follow(end.record, array_of(end.record["pos"])).calls for end in best]
    found = saved(own)
    assert found["relaxed: EMT calls, mean"] == found["relaxed: EMT calls, median"] == 1.0
    assert found["initial: EMT calls, mean"] == pytest.approx(np.mean(calls))
    assert np.mean(calls) > 5.0
    assert found["relaxed: max force (eV/Å)"] < 0.03 < found["initial: max force (eV/Å)"]
    for k in (1, TOP_K):
        assert found[f"relaxed: found by k = {k} (%)"] == 100.0
    assert found["model converged %"] == 100.0
    still = {
        name: [ModelEnd(e.record, e.energy, array_of(e.record["pos"]), False) for e in ends]
        for name, ends in own.items()
    }
    nothing = saved(still)
    for column in (
        "EMT calls, mean",
        "EMT calls, median",
        "max force (eV/Å)",
        "found by k = 1 (%)",
    ):
        assert nothing[f"relaxed: {column}"] == nothing[f"initial: {column}"]
    assert nothing["model converged %"] == 0.0
    forces = [largest_force(end.record, end.positions) for end in best]
    assert max(forces) < 0.04
