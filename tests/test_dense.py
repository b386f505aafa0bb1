"""OC20-Dense: splits, scores against fairchem's own and a slow oracle, bad input (issue 7)."""

from __future__ import annotations

import json
import math
import pickle
import random
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dense_cases import (
    RECORDED,
    adsorbml_case,
    dense,
    refusal,
    slow_success,
    split_args,
    table,
    write,
)
from ocp_faenet.data.dense_membership import (
    DenseSplit,
    Members,
    by_training,
    by_validation,
)
from ocp_faenet.data.lmdb_io import write_lmdb
from ocp_faenet.data.reader import open_lmdb
from ocp_faenet.data.records import to_data
from ocp_faenet.data.unpickle import restricted_loads
from ocp_faenet.metrics.bootstrap import ratio
from ocp_faenet.metrics.dense import TOP_K, Calls, Candidate, perfect, random_choice, scores
from ocp_faenet.metrics.ranks import spearman

# Scores


@pytest.mark.parametrize("seed", sorted(RECORDED))
def test_the_scores_are_those_of_dense_eval(tmp_path, seed):
    paths = write(tmp_path, adsorbml_case(seed))
    args = ["evaluate", "--targets", paths["targets"], "--mapping", paths["mapping"]]
    args += ["--compute", paths["compute"], "--predictions", paths["results"]]
    assert "configurations have no prediction" in refusal(dense(*args))
    done = dense(*args, "--missing", "fail", "--json", tmp_path / "r.json")
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "r.json").read_text())
    found, recorded = report["splits"]["overall"]["scores"], RECORDED[seed]
    for key in ("hybrid", "much_better", "scf_speedup", "ionic_speedup"):
        assert [found[f"{key}@{k}"]["value"] for k in TOP_K] == recorded[key], key
    assert 100 * found["ml_success"]["value"] == recorded["ml_success"]
    assert report["missing_counted_as_failures"] > 0
    assert "configurations without a prediction count as failures" in done.output


@pytest.mark.parametrize("seed", sorted(RECORDED))
def test_the_score_is_that_of_the_challenge(tmp_path, seed):
    """Predictions as the host writes them, in several files and any order (as ranks would)."""
    tables = adsorbml_case(seed)
    sids = {(e["system_id"], e["config_id"]): sid for sid, e in tables["mapping"].items()}
    rows = [
        (f"{sids[system, name]}_0", entry["ml_energy"])
        for system, own in tables["results"].items()
        for name, entry in own.items()
    ]
    tables["references"] = {
        "made": {
            system: {name: entry["ml+dft_energy"] for name, entry in own.items()}
            for system, own in tables.pop("results").items()
        }
    }
    paths = write(tmp_path, tables)
    args = ["evaluate", "--targets", paths["targets"], "--mapping", paths["mapping"]]
    args += ["--missing", "fail", "--references", paths["references"]]
    args += ["--references-key", "made", "--json", tmp_path / "r.json"]
    reports = []
    for parts in (1, 3):
        random.Random(seed).shuffle(rows)
        files = []
        for part in range(parts):
            ids, energy = zip(*rows[part::parts], strict=True)
            path = tmp_path / f"{parts}_{part}.npz"
            np.savez(path, ids=np.array(ids), energy=np.array(energy, dtype=np.float32)[:, None])
            files += ["--predictions", path]
        done = dense(*args, *files)
        assert done.exit_code == 0, done.output
        reports.append(json.loads((tmp_path / "r.json").read_text()))
    found = reports[0]["splits"]["overall"]["scores"]
    assert 100 * found["ml_success"]["value"] == RECORDED[seed]["ml_success"]
    assert reports[0] == reports[1]


def test_zero_is_an_energy_and_none_is_missing():
    """`dense_eval.py` takes a reference of 0.0 eV as missing."""
    targets = {"s": {"a": 0.0, "b": 0.5}}
    right = {"s": {"a": Candidate(0.02, 0.0), "b": Candidate(0.6, 0.5)}}
    found = scores(right, targets, samples=2)
    assert (found["ml_success"].value, found["hybrid@1"].value) == (1.0, 1.0)
    absent = {"s": {"a": Candidate(0.02, None), "b": Candidate(0.6, 0.5)}}
    found = scores(absent, targets, samples=2)
    assert (found["ml_success"].value, found["hybrid@2"].value) == (0.0, 0.0)


energies = st.floats(-2, 2).map(lambda x: round(x, 2))
systems = st.dictionaries(
    st.sampled_from("pqr"),
    st.dictionaries(st.sampled_from("abcdef"), energies, min_size=1),
    min_size=1,
)


@settings(max_examples=40, deadline=None)
@given(targets=systems, data=st.data())
def test_scores_equal_a_slow_reading_whatever_the_order(targets, data):
    proposed = {
        system: {
            name: (data.draw(energies), data.draw(st.none() | energies))
            for name in data.draw(st.lists(st.sampled_from("abcdef"), unique=True))
        }
        for system in targets
    }
    candidates = {
        s: {n: Candidate(*each) for n, each in own.items()} for s, own in proposed.items()
    }
    found = scores(candidates, targets, samples=2)
    wanted = [slow_success(proposed[s], min(own.values())) for s, own in targets.items()]
    assert found["ml_success"].value == pytest.approx(np.mean(wanted))
    pairs = [
        (proposed[s][n][0], e) for s, own in targets.items() for n, e in own.items()
        if n in proposed[s]
    ]  # fmt: skip
    if pairs:
        assert found["mae"].value == pytest.approx(np.mean([abs(p - t) for p, t in pairs]))
    backwards = {
        s: dict(reversed(list(own.items()))) for s, own in reversed(list(candidates.items()))
    }
    turned = {s: dict(reversed(list(own.items()))) for s, own in reversed(list(targets.items()))}
    again = scores(backwards, turned, samples=2)
    for key, value in found.items():
        assert again[key].value == pytest.approx(value.value, nan_ok=True, abs=1e-12), key


def test_one_system_by_hand():
    targets = {"s": {"a": -1.0, "b": -1.05, "c": 0.0}}
    model = {"s": {"a": Candidate(-0.5, -1.0, 30, 3), "b": Candidate(-0.4, -1.05, 50, 5),
                   "c": Candidate(0.6, 0.0, 70, 7)}}  # fmt: skip
    found = {k: v.value for k, v in scores(model, targets, {"s": Calls(150, 15)}).items()}
    assert found["success_proxy"] == 0.0  # a is chosen, within 0.1 eV of the best, but predicted
    assert found["found@1"] == found["hybrid@1"] == 1.0  # 0.5 eV too high
    assert found["mae"] == pytest.approx((0.5 + 0.65 + 0.6) / 3)
    assert found["offset"] == pytest.approx(1.75 / 3)
    assert found["regret"] == pytest.approx(0.05)
    assert found["spearman"] == pytest.approx(0.5)
    assert found["scf_speedup@2"] == 150 / 80
    assert found["ionic_speedup@5"] == 1.0
    # Shifted by its offset the same ranking is a success: the negative control.
    shifted = {"s": {n: Candidate(c.predicted - 0.55, c.reference) for n, c in model["s"].items()}}
    assert scores(shifted, targets)["success_proxy"].value == 1.0


def test_perfect_and_random():
    rng = np.random.default_rng(0)
    targets = {
        f"s{k}": {str(i): float(e) for i, e in enumerate(rng.normal(0, 0.2, 3 + k))}
        for k in range(4)
    }
    best = scores(perfect(targets), targets)
    assert {best[k].value for k in ("success_proxy", "ml_success", "hybrid@1", "spearman")} == {1.0}
    assert best["mae"].value == best["regret"].value == 0.0
    expected = random_choice(targets)
    for k in (1, 2):  # every choice of k, counted
        shares = []
        for own in targets.values():
            good = {n for n, e in own.items() if e <= min(own.values()) + 0.1}
            sets = list(combinations(own, k))
            shares.append(Fraction(sum(bool(good & set(each)) for each in sets), len(sets)))
        assert expected[f"found@{k}"] == pytest.approx(float(sum(shares) / len(shares)))
    pairs = [abs(a - b) for own in targets.values() for a in own.values() for b in own.values()]
    weights = [1 / len(own) for own in targets.values() for _ in range(len(own) ** 2)]
    assert expected["mae"] == pytest.approx(
        np.dot(pairs, weights) / sum(map(len, targets.values()))
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=9))
def test_spearman_is_scipys(pairs):
    a, b = map(list, zip(*pairs, strict=True))
    found = spearman(a, b)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(stats.spearmanr(a, b).statistic)


def test_intervals_of_a_share():
    """Against the exact quantiles of a binomial: 30 successes in 100 systems."""
    found = ratio([1.0] * 30 + [0.0] * 70, [1.0] * 100, samples=4000)
    low, high = stats.binom.ppf([0.025, 0.975], 100, 0.3) / 100
    assert found.value == 0.3
    assert found.low == pytest.approx(low, abs=0.011)
    assert found.high == pytest.approx(high, abs=0.011)
    assert ratio([1.0, 1.0], [0.0, 0.0], samples=5).value == math.inf
    assert ratio([0.0], [0.0], samples=5).as_json() == {"value": None, "low": None, "high": None}


# Splits


def test_definitions_of_the_splits():
    train = Members(frozenset("ab"), frozenset("xy"))
    found = {pair: by_training(*pair, train)[0].value for pair in ("ax", "cx", "az", "cz")}
    assert found == {"ax": "id", "cx": "ood_ads", "az": "ood_cat", "cz": "ood_both"}
    validation = {
        DenseSplit.ID: Members(frozenset("ab"), frozenset("xy")),
        DenseSplit.OOD_ADS: Members(frozenset("bc"), frozenset("y")),
        DenseSplit.OOD_CAT: Members(frozenset("a"), frozenset("z")),
        DenseSplit.OOD_BOTH: Members(frozenset("c"), frozenset("z")),
    }

    def splits(pair: str, overlapping: bool) -> list[str]:
        return [s.value for s in by_validation(*pair, validation, overlapping=overlapping)]

    assert splits("by", False) == ["id"]  # known comes before new
    assert splits("by", True) == ["id", "ood_ads"]
    assert splits("cy", True) == ["ood_ads"]
    assert splits("cx", True) == splits("bz", False) == []  # each occurs, but not both in one


@pytest.fixture(scope="module")
def tiny_splits(tiny_data, tmp_path_factory) -> Path:
    """Folders `validation` and `training`, by definition."""
    out = tmp_path_factory.mktemp("dense")
    train = ["--by", "training", "--train", tiny_data / "is2re" / "train"]
    for name, more in (("validation", []), ("training", train)):
        done = dense(*split_args(tiny_data), *more, out / name)
        assert done.exit_code == 0, done.output
    return out


def oc20_sets(tiny: Path) -> dict[str, tuple[set[str], set[str]]]:
    """Adsorbates and bulks by folder of the tiny set's `is2re`."""
    known = restricted_loads((tiny / "oc20_data_mapping.pkl").read_bytes())
    found = {}
    for folder in sorted((tiny / "is2re").iterdir()):
        with open_lmdb(folder / "data.lmdb") as records:
            entries = [known[f"random{record['sid']}"] for record in records]
        found[folder.name] = (
            {entry["ads_symbols"] for entry in entries},
            {entry["bulk_mpid"] for entry in entries},
        )
    return found


@pytest.mark.parametrize("by", ["validation", "training"])
def test_every_record_is_accounted_for(tiny_data, tiny_splits, by):
    """Each record is where its adsorbate and bulk say, unchanged, or counted as lost."""
    folder = tiny_splits / by
    summary = json.loads((folder / "splits.json").read_text())
    mapping, targets = table(tiny_data, "mapping"), table(tiny_data, "targets")
    sets = oc20_sets(tiny_data)
    with open_lmdb(tiny_data / "dense" / "data.lmdb") as records:
        original = {record["sid"]: record for record in records}

    def expected(entry) -> str | None:
        adsorbate, bulk = entry["adsorbate"], entry["mpid"]
        if by == "validation":
            names = [s.value for s in DenseSplit]
            fits = [n for n in names if adsorbate in sets[f"val_{n}"][0]]
            return next((n for n in fits if bulk in sets[f"val_{n}"][1]), None)
        new = (adsorbate not in sets["train"][0], bulk not in sets["train"][1])
        return ["id", "ood_cat", "ood_ads", "ood_both"][2 * new[0] + new[1]]

    wanted = {name.value: set() for name in DenseSplit}
    lost = {"no_target": 0, "no_split": 0}
    for sid, entry in mapping.items():
        name = expected(entry)
        if entry["config_id"] not in dict(targets[entry["system_id"]]):
            lost["no_target"] += 1
        elif name is None:
            lost["no_split"] += 1
        else:
            wanted[name].add(sid)
    assert summary["lost"] == {reason: count for reason, count in lost.items() if count}
    assert summary["counts"] == {name: len(sids) for name, sids in wanted.items()}
    assert sum(summary["counts"].values()) + sum(lost.values()) == len(original) == 80
    for name, sids in wanted.items():
        if not sids:
            assert not (folder / name).exists()
            continue
        with open_lmdb(folder / name / "data.lmdb") as records:
            found = {record["sid"]: record for record in records}
        assert set(found) == sids
        for sid, record in found.items():
            entry = mapping[sid]
            assert record["system_id"] == entry["system_id"]
            assert record["config_id"] == entry["config_id"]
            assert record["y_relaxed"] == dict(targets[entry["system_id"]])[entry["config_id"]]
            for key in ("pos", "edge_index", "tags", "cell", "atomic_numbers"):
                np.testing.assert_array_equal(record[key], original[sid][key])


def test_fine_tuning_is_cut_by_system(tiny_splits):
    tiny_splits = tiny_splits / "training"
    summary = json.loads((tiny_splits / "splits.json").read_text())
    names = {}
    for part in ("train", "val"):
        with open_lmdb(tiny_splits / "finetune" / part / "data.lmdb") as records:
            names[part] = {record["system_id"] for record in records}
    assert not names["train"] & names["val"]
    assert names["train"] | names["val"] == set(summary["systems"]["id"])
    assert [sorted(names[part]) for part in ("train", "val")] == summary["finetune"]


def test_losses_have_their_reasons(tiny_data, tmp_path):
    """Records that are in no split for each reason there is, counted one by one."""
    with open_lmdb(tiny_data / "dense" / "data.lmdb") as records:
        chosen = [records[k] for k in range(40)]
    write_lmdb(tmp_path / "data.lmdb", (to_data(record) for record in chosen))
    tables = {n: table(tiny_data, n) for n in ("mapping", "targets", "ref_energies")}
    first, last = tables["targets"]["1_0"], tables["targets"]["2_1"]
    unknown = next(s for s, e in tables["mapping"].items() if e["config_id"] == first[0][0])
    del tables["mapping"][unknown]
    del tables["ref_energies"]["1_1"]
    lost_system = tables["targets"].pop("2_0")
    for entry in tables["mapping"].values():  # 1_0 is known to val_id, 2_1 to no split
        if entry["system_id"] == "2_1":
            entry["adsorbate"] = "*X"
        elif entry["system_id"] == "1_0":
            adsorbates, bulks = oc20_sets(tiny_data)["val_id"]
            entry.update(adsorbate=min(adsorbates), mpid=min(bulks))
    for name, content in tables.items():
        (tmp_path / f"oc20dense_{name}.pkl").write_bytes(pickle.dumps(content))
    done = dense(*split_args(tiny_data), "--data", tmp_path / "data.lmdb", tmp_path / "out")
    assert done.exit_code == 0, done.output
    summary = json.loads((tmp_path / "out" / "splits.json").read_text())
    assert summary["lost"] == {
        "no_mapping": 1,
        "no_system": 10,
        "no_target": 30 - len(first) - len(last) - len(tables["targets"]["1_1"]),
        "no_reference": len(tables["targets"]["1_1"]),
        "no_split": len(last),
    }
    assert lost_system
    assert summary["counts"]["id"] == len(first) - 1
    assert sum(summary["counts"].values()) + sum(summary["lost"].values()) == len(chosen)
    assert summary["targets_without_record"] == 1 + sum(
        len(own) for system, own in tables["targets"].items() if system[0] in "34"
    )
