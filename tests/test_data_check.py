"""`data check` and the reader on good and on damaged files."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch
from click.testing import CliRunner
from torch_geometric.data import Data

from data_cases import damaged, stored, write_raw
from ocp_faenet.cli.data import data
from ocp_faenet.data.check import check_lmdb
from ocp_faenet.data.lmdb_io import LmdbError
from ocp_faenet.data.reader import lmdb_files, open_lmdb
from ocp_faenet.data.schema import Kind
from ocp_faenet.data.unpickle import UnsafePickleError, restricted_loads


def run(*arguments):
    result = CliRunner().invoke(data, ["check", *map(str, arguments)])
    return result.exit_code, result.output


@pytest.fixture
def good(tiny_data):
    return tiny_data / "is2re/val_id/data.lmdb"


def test_good_folder(tiny_data, tmp_path):
    target = tmp_path / "deep" / "report.json"
    code, output = run(tiny_data, "--json", target)
    assert code == 0
    reports = {r["path"].split("tiny/data/")[-1]: r for r in json.loads(target.read_text())}
    assert len(reports) == 11
    for report in reports.values():
        assert report["bad"] == 0
        assert report["first_bad"] is None
        assert report["missing"] == {}
    kinds = {report["kind"] for report in reports.values()}
    assert kinds == {"is2re", "s2ef", "structures"}
    assert "is2re/train/data.lmdb" in output


def test_ranges_are_those_of_the_records(good):
    report = check_lmdb(good)
    records = list(open_lmdb(good))
    energies = [record["y_relaxed"] for record in records]
    assert report.kind is Kind.IS2RE
    assert report.records == len(records)
    assert report.ranges["y_relaxed (eV)"] == pytest.approx((min(energies), max(energies)))
    sizes = [record["natoms"] for record in records]
    assert report.ranges["natoms"] == (min(sizes), max(sizes))
    assert sum(report.elements.values()) == sum(sizes)


NAN = float("nan")
DAMAGE = {
    "NaN in positions": ({"pos": torch.full((5, 3), NAN)}, "pos"),
    "element 119": ({"atomic_numbers": 119}, "atomic number 119 is outside 1 to 118"),
    "element 0": ({"atomic_numbers": 0}, "atomic number 0 is outside"),
    "no tags": ({"tags": None}, "no tags"),
    "no cell": ({"cell": None}, "no cell"),
    "no relaxed energy": ({"y_relaxed": None}, "no y_relaxed"),
    "NaN energy": ({"y_relaxed": NAN}, "y_relaxed holds NaN"),
    "edge to nowhere": ({"edge_index": 500}, "edge_index runs from"),
    "wrong natoms": ({"natoms": 3}, "natoms is [3]"),
    "flat cell": ({"cell": torch.zeros(1, 3, 3)}, "the cell has no volume"),
    "tag 7": ({"tags": 7}, "tags holds 7"),
    "no offsets": ({"cell_offsets": None}, "edge_index without cell_offsets"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_where_it_is(good, tmp_path, name):
    changes, fault = DAMAGE[name]
    record = open_lmdb(good)[2]
    ready = {}
    for key, value in changes.items():
        if key == "pos":
            value = record["pos"].clone()
            value[1] = NAN
        elif isinstance(value, int) and key in ("atomic_numbers", "tags", "edge_index"):
            value = record[key].clone().reshape(-1)
            value[1] = changes[key]
            value = value.reshape(record[key].shape)
        ready[key] = value
    path = damaged(good, tmp_path / "bad.lmdb", 2, **ready)
    report = check_lmdb(path)
    assert report.bad == 1
    assert report.first_bad is not None
    assert report.first_bad.index == 2
    assert report.first_bad.sid == str(record["sid"])
    assert fault in report.first_bad.fault
    code, output = run(path)
    last = output.strip().splitlines()[-1]
    assert code == 2
    assert last.startswith("Error: ")
    assert f"record 2 (sid {record['sid']})" in last
    assert fault in last


def test_overlapping_atoms_and_wrong_distances(good, tmp_path):
    record = open_lmdb(good)[0]
    close = record["pos"].clone()
    close[1] = close[0] + 0.05
    report = check_lmdb(damaged(good, tmp_path / "a.lmdb", 0, pos=close, distances=None))
    assert report.first_bad is not None
    assert "are 0.087 Å apart" in report.first_bad.fault
    off = check_lmdb(damaged(good, tmp_path / "b.lmdb", 0, distances=record["distances"] + 0.5))
    assert off.first_bad is not None
    assert "distances disagree" in off.first_bad.fault


def test_oc22_tags_and_absent_edges_are_notes(good, tmp_path):
    record = open_lmdb(good)[0]
    zero = torch.zeros_like(record["tags"])
    path = damaged(good, tmp_path / "a.lmdb", 0, tags=zero)
    assert check_lmdb(path).bad == 0
    code, output = run(path)
    assert code == 0
    assert "1 of 16 records have all tags zero" in output
    as_ase = torch.tensor([2, 1, 0])[record["tags"]]  # layers from the top, the adsorbate 0
    code, output = run(damaged(good, tmp_path / "c.lmdb", 0, tags=as_ase))
    assert code == 0
    assert "1 of 16 records have tag 0 on top" in output
    bare = damaged(good, tmp_path / "b.lmdb", 0, edge_index=None, cell_offsets=None, distances=None)
    report = check_lmdb(bare)
    assert report.bad == 0
    assert report.missing == {"edge_index": 1, "cell_offsets": 1}
    assert any("otf_graph" in note for note in report.notes)


def test_missing_record_is_bad(good, tmp_path):
    content = stored(good)
    del content[b"3"]
    report = check_lmdb(write_raw(tmp_path / "gap.lmdb", content))
    assert report.bad == 1
    assert report.first_bad is not None
    assert report.first_bad.index == 3
    assert "missing" in report.first_bad.fault


def test_unusable_files_are_refused_in_one_line(good, tmp_path):
    truncated = tmp_path / "truncated.lmdb"
    truncated.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    stub = tmp_path / "stub.lmdb"
    stub.write_bytes(good.read_bytes()[:1000])
    foreign = tmp_path / "foreign.lmdb"
    foreign.write_text("no database\n" * 1000)
    empty = write_raw(tmp_path / "empty.lmdb", {b"length": pickle.dumps(0)})
    nothing = write_raw(tmp_path / "nothing.lmdb", {})
    zero = tmp_path / "zero.lmdb"
    zero.touch()
    folder = tmp_path / "folder"
    folder.mkdir()
    for path, words in (
        (truncated, "truncated"),
        (stub, "not a readable LMDB"),
        (foreign, "not a readable LMDB"),
        (empty, "no record"),
        (nothing, "no record"),
        (zero, "not a readable LMDB"),
        (folder, "no .lmdb file"),
        (tmp_path / "absent", "no such file"),
    ):
        code, output = run(path)
        lines = [line for line in output.strip().splitlines() if line]
        assert code == 2, path
        assert len(lines) == 1, output
        assert str(path) in lines[0]
        assert words in lines[0]
        if path.is_file():
            with pytest.raises(LmdbError, match=words):
                open_lmdb(path)


def test_records_of_another_world_are_bad_not_run(good, tmp_path):
    content = stored(good)
    content[b"1"] = pickle.dumps(os.getcwd)
    content[b"4"] = b"garbage"
    report = check_lmdb(write_raw(tmp_path / "odd.lmdb", content))
    assert report.bad == 2
    assert report.first_bad is not None
    assert report.first_bad.index == 1
    assert "posix.getcwd" in report.first_bad.fault
    with pytest.raises(UnsafePickleError):
        restricted_loads(pickle.dumps(print))
    with pytest.raises(ValueError, match="not a readable pickle"):
        restricted_loads(b"garbage")


def test_ordinary_and_old_pickles_are_read(tmp_path):
    """Tensors as PyTorch pickles them, and `Data` as PyG before 2.0 pickled it."""
    new = Data(pos=torch.rand(2, 3), sid=7, y_relaxed=0.5)
    old = Data.__new__(Data)
    old.__dict__.update(pos=torch.rand(3, 3), sid=8, y_relaxed=1.5, x=None)
    path = write_raw(tmp_path / "old.lmdb", {b"0": pickle.dumps(new), b"1": pickle.dumps(old)})
    with open_lmdb(path) as records:
        assert len(records) == 2
        assert records[0]["sid"] == 7
        assert torch.equal(records[0]["pos"], new.pos)
        assert records[1]["y_relaxed"] == 1.5
        assert "x" not in records[1]
        with pytest.raises(IndexError):
            records[2]
    assert lmdb_files(path) == [path]
