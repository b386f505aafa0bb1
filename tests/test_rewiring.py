"""``graph_rewiring`` with supernodes: a literal twin, symmetries, counts, odd records, the host."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch
from fairchem.core.common.utils import get_pbc_distances
from fairchem.core.datasets import data_list_collater
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data

import ocp_faenet
import plugin_fixtures as fx
from ocp_faenet.adapters.frames import FRAMES, frame_averaging
from ocp_faenet.adapters.preflight import check_run_config
from ocp_faenet.adapters.rewiring import Rewiring, graph_rewiring

GRAPH, ELEMENT = Rewiring.ONE_PER_GRAPH.value, Rewiring.ONE_PER_ELEMENT.value
SUPERNODES = pytest.mark.parametrize("mode", [GRAPH, ELEMENT])


def alloy(seed: int = 1, **changes: Any) -> Data:
    """A float64 record whose two subsurface elements are mixed."""
    data = fx.slab_record(seed, edges=True)
    below = (data.tags == 0).nonzero().view(-1)
    data.atomic_numbers[below[::2]] = 78.0
    data.pos_relaxed = data.pos.clone()
    for key in ("pos", "cell", "force", "pos_relaxed"):
        data[key] = data[key].double()
    for key, value in changes.items():
        data[key] = value
    return data


def vectors(data: Data) -> torch.Tensor:
    """``(E, 3)`` source minus target."""
    source, target = data.edge_index
    shift = data.cell_offsets.to(data.pos.dtype) @ data.cell.view(3, 3)
    return data.pos[source] - data.pos[target] + shift


def by_pair(data: Data) -> dict[tuple[int, int], list[torch.Tensor]]:
    """Vectors of all edges, by source and target."""
    found: dict[tuple[int, int], list[torch.Tensor]] = {}
    for (source, target), vector in zip(data.edge_index.T.tolist(), vectors(data), strict=True):
        found.setdefault((source, target), []).append(vector)
    return found


def literal(data: Data, mode: str) -> tuple[list[int], list[list[int]], dict]:
    """Atoms that stay, atoms of each supernode, edges by pair; one edge at a time."""
    tags, numbers = data.tags.tolist(), data.atomic_numbers.tolist()
    stay = [a for a, tag in enumerate(tags) if tag > 0]
    kinds = sorted({numbers[a] for a, tag in enumerate(tags) if tag == 0})
    groups = [[a for a, t in enumerate(tags) if t == 0 and numbers[a] == k] for k in kinds]
    if mode == GRAPH:
        groups = [[a for a, t in enumerate(tags) if t == 0]]
    place = {a: n for n, a in enumerate(stay)}
    place |= {a: len(stay) + g for g, group in enumerate(groups) for a in group}
    plain: dict[tuple[int, int], list[torch.Tensor]] = {}
    merged: dict[tuple[int, int], list[torch.Tensor]] = {}
    for (source, target), found in by_pair(data).items():
        ends = (place[source], place[target])
        for vector in found:
            if tags[source] > 0 and tags[target] > 0:
                plain.setdefault(ends, []).append(vector)
            elif tags[source] == 0 and tags[target] > 0:
                merged.setdefault(ends, []).append(vector)
            elif tags[source] > 0 and tags[target] == 0:
                merged.setdefault(ends[::-1], []).append(-vector)
    for (source, target), found in merged.items():
        mean = torch.stack(found).mean(0)
        plain[(source, target)], plain[(target, source)] = [mean], [-mean]
    return stay, groups, plain


def same_edges(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for pair, rows in expected.items():
        torch.testing.assert_close(torch.stack(found[pair]), torch.stack(rows))


class TestAgainstTheLiteralTwin:
    """Atoms, edges and per-atom values, one at a time."""

    @SUPERNODES
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_record(self, mode: str, seed: int) -> None:
        data = alloy(seed)
        before = copy.deepcopy(data)
        out = graph_rewiring(data, mode)
        stay, groups, edges = literal(before, mode)
        assert out.natoms == out.num_nodes == len(stay) + len(groups)
        same_edges(by_pair(out), edges)
        assert (out.edge_index[1].diff() >= 0).all()
        for key in ("pos", "pos_relaxed", "force", "fixed", "tags", "atomic_numbers"):
            assert torch.equal(out[key][: len(stay)], before[key][stay]), key
            assert torch.equal(data[key], before[key]), key  # the input stays as it was
        for n, group in enumerate(groups, len(stay)):
            x = before.pos[group]
            expected = torch.stack([x[:, 0].mean(), x[:, 1].mean(), x[:, 2].max()])
            torch.testing.assert_close(out.pos[n], expected)
            torch.testing.assert_close(out.pos_relaxed[n], expected)
            torch.testing.assert_close(out.force[n], before.force[group].sum(0))
            assert out.tags[n] == 0
            assert out.fixed[n] == 1
            number = 84 if mode == GRAPH else before.atomic_numbers[group[0]]
            assert out.atomic_numbers[n] == number
        assert (out.y, out.sid) == (before.y, before.sid)
        assert torch.equal(out.cell, before.cell)

    @SUPERNODES
    def test_stored_lengths_and_counts_follow(self, mode: str) -> None:
        data = alloy()
        data.distances, data.edge_distance_vec = vectors(data).norm(dim=-1), vectors(data)
        data.neighbors = torch.tensor([data.edge_index.shape[1]])
        data.natoms = torch.tensor([data.natoms])
        data.charges = torch.arange(len(data.pos)).double()
        out = graph_rewiring(data, mode)
        torch.testing.assert_close(out.edge_distance_vec, vectors(out))
        torch.testing.assert_close(out.distances, vectors(out).norm(dim=-1))
        assert out.neighbors.tolist() == [out.edge_index.shape[1]]
        assert out.natoms.tolist() == [len(out.pos)]
        gone = data.charges[data.tags == 0]
        if mode == GRAPH:
            torch.testing.assert_close(out.charges[-1], gone.mean())

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_any_record(self, data: st.DataObject) -> None:
        """Random atoms, tags, cells; one-directional, repeated and missing edges."""
        mode = data.draw(st.sampled_from([GRAPH, ELEMENT]))
        rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
        n, e = data.draw(st.integers(1, 9)), data.draw(st.integers(0, 30))
        record = Data(
            pos=torch.tensor(rng.normal(scale=3, size=(n, 3))),
            atomic_numbers=torch.tensor(rng.integers(1, 5, n)),
            tags=torch.tensor(rng.integers(0, 3, n)),
            natoms=n,
            cell=torch.tensor(rng.normal(size=(1, 3, 3)) + 4 * np.eye(3)),
            edge_index=torch.tensor(rng.integers(0, n, (2, e))),
            cell_offsets=torch.tensor(rng.integers(-2, 3, (e, 3))),
        )
        if not (record.tags > 0).any():
            with pytest.raises(ValueError, match="every tag is 0"):
                graph_rewiring(record, mode)
            return
        out = graph_rewiring(record, mode)
        stay, groups, edges = literal(record, mode)
        if not (record.tags == 0).any():
            groups = []
        assert out.natoms == len(stay) + len(groups) == len(out.pos)
        same_edges(by_pair(out), edges)
        assert out.cell_offsets.dtype == record.pos.dtype

    def test_without_a_cell(self) -> None:
        """A molecule on a cluster: an edge leads to where the supernode stands."""
        data = alloy()
        del data.cell, data.cell_offsets
        out = graph_rewiring(data, GRAPH)
        pairs = {
            frozenset(pair) for pair in out.edge_index.T.tolist() if max(pair) == len(out.pos) - 1
        }
        stay, _, edges = literal(alloy(), GRAPH)
        assert pairs == {frozenset(pair) for pair in edges if max(pair) == len(stay)}
        torch.testing.assert_close(out.pos[-1, :2], data.pos[data.tags == 0, :2].mean(0))
        batch = data_list_collater([out], otf_graph=False)
        model = ocp_faenet.FAENet(**fx.TINY, use_pbc=False).eval()
        assert torch.isfinite(model(batch)["energy"]).all()


class TestSymmetry:
    """Energies of rewired records, whatever the record was turned, moved or shuffled into."""

    def energy(self, data: Data, mode: str, *, otf_graph: bool = False) -> torch.Tensor:
        torch.manual_seed(0)
        model = ocp_faenet.FAENet(
            **fx.TINY, frame_averaging="3D", fa_method="det", frame_source="edges",
            otf_graph=otf_graph,
        ).double().eval()  # fmt: skip
        batch = data_list_collater([graph_rewiring(data, mode)], otf_graph=otf_graph)
        return model(batch)["energy"].detach()

    def wrapped(self, data: Data) -> Data:
        """The same structure moved along the slab and written down in the cell."""
        cell = data.cell.view(3, 3)
        out = data.clone()
        moved = data.pos @ torch.linalg.inv(cell) + torch.tensor([0.37, 0.61, 0.0]).double()
        shift = moved.floor()
        out.pos = (moved - shift) @ cell
        source, target = data.edge_index
        out.cell_offsets = data.cell_offsets + (shift[source] - shift[target]).long()
        torch.testing.assert_close(vectors(out), vectors(data))
        assert (shift != 0).any()
        return out

    @SUPERNODES
    def test_another_image(self, mode: str) -> None:
        data = alloy()
        expected = self.energy(data, mode)
        torch.testing.assert_close(self.energy(self.wrapped(data), mode), expected)
        # Control: found anew around where it stands, a supernode's edges do depend on the image.
        found = self.energy(data, mode, otf_graph=True)
        again = self.energy(self.wrapped(data), mode, otf_graph=True)
        assert (found - again).abs() > 1e-6

    @SUPERNODES
    def test_pose(self, mode: str) -> None:
        data = alloy()
        turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(3)))
        turned = data.clone()
        turned.pos, turned.cell = data.pos @ turn.double(), data.cell @ turn.double()
        out, again = graph_rewiring(data, mode), graph_rewiring(turned, mode)
        torch.testing.assert_close(again.pos, out.pos @ turn.double())
        torch.testing.assert_close(vectors(again), vectors(out) @ turn.double())
        torch.testing.assert_close(self.energy(turned, mode), self.energy(data, mode))

    @SUPERNODES
    def test_order_of_atoms(self, mode: str) -> None:
        data = alloy()
        order = torch.randperm(len(data.pos), generator=torch.Generator().manual_seed(1))
        shuffled = data.clone()
        for key in ("pos", "atomic_numbers", "tags", "fixed", "force"):
            shuffled[key] = data[key][order]
        shuffled.edge_index = torch.argsort(order)[data.edge_index]
        torch.testing.assert_close(self.energy(shuffled, mode), self.energy(data, mode))

    @SUPERNODES
    def test_the_subsurface_is_seen(self, mode: str) -> None:
        """Unlike under remove-tag-0, which cannot tell what was below."""
        data = alloy()
        other = data.clone()
        other.pos[data.tags == 0] += torch.tensor([0.0, 0.0, -0.3]).double()
        assert (self.energy(data, mode) - self.energy(other, mode)).abs() > 1e-6
        removed = Rewiring.REMOVE_TAG_0.value
        torch.testing.assert_close(self.energy(data, removed), self.energy(other, removed))

    @SUPERNODES
    def test_net_force(self, mode: str) -> None:
        data = alloy(force=torch.randn(alloy().natoms, 3).double())
        out = graph_rewiring(data, mode)
        torch.testing.assert_close(out.force.sum(0), data.force.sum(0))


class TestBatches:
    """In the host's collater, before the frames, for the host's own models."""

    @SUPERNODES
    def test_with_and_without_edges_or_subsurface(self, mode: str) -> None:
        bare, flat = fx.slab_record(0, edges=True), fx.slab_record(2, edges=True)
        bare.edge_index, bare.cell_offsets = bare.edge_index[:, :0], bare.cell_offsets[:0]
        flat.tags = flat.tags.clamp(min=1)
        records = [fx.slab_record(1, edges=True), bare, flat, fx.slab_record(1, edges=True)]
        rewired = [graph_rewiring(record, mode) for record in records]
        assert rewired[1].edge_index.shape == (2, 0)
        assert rewired[2].natoms == flat.natoms
        assert {record.cell_offsets.dtype for record in rewired} == {torch.float32}
        batch = data_list_collater(rewired, otf_graph=False)
        assert batch.neighbors.tolist() == [r.edge_index.shape[1] for r in rewired]
        torch.manual_seed(0)
        model = ocp_faenet.FAENet(**fx.TINY, frame_averaging="2D", fa_method="all").eval()
        energy = model(batch)["energy"]
        assert torch.isfinite(energy).all()
        torch.testing.assert_close(energy[0], energy[3])

    def test_the_host_sees_the_same_lengths(self) -> None:
        records = [graph_rewiring(fx.slab_record(seed, edges=True), ELEMENT) for seed in (0, 1)]
        batch = data_list_collater(records, otf_graph=False)
        found = get_pbc_distances(
            batch.pos, batch.edge_index, batch.cell, batch.cell_offsets, batch.neighbors
        )
        expected = torch.cat([vectors(record).norm(dim=-1) for record in records])
        torch.testing.assert_close(found["distances"], expected)

    @SUPERNODES
    def test_without_stored_edges(self, mode: str) -> None:
        """Records as S2EF has them: the model finds a supernode's neighbours like an atom's."""
        out = graph_rewiring(fx.slab_record(1), mode)
        assert "edge_index" not in out
        batch = data_list_collater([out], otf_graph=True)
        model = ocp_faenet.FAENet(**fx.TINY, otf_graph=True).eval()
        assert torch.isfinite(model(batch)["energy"]).all()

    @SUPERNODES
    def test_frames_come_after(self, mode: str) -> None:
        config = {"frame_averaging": "2D", "fa_method": "all"}
        framed = frame_averaging(graph_rewiring(alloy(), mode), config)
        assert framed[FRAMES].shape == (1, 4, 3, 3)
        with pytest.raises(ValueError, match="before frame_averaging"):
            graph_rewiring(frame_averaging(alloy(), config), mode)


class TestErrors:
    """One line that names the record, the value and the remedy."""

    @SUPERNODES
    def test_records(self, mode: str) -> None:
        untagged = alloy(tags=None)
        with pytest.raises(ValueError, match=f"sid=1001 has no 'tags', which .*{mode} needs"):
            graph_rewiring(untagged, mode)
        with pytest.raises(ValueError, match="sid=1001: its cell is singular"):
            graph_rewiring(alloy(cell=torch.zeros(1, 3, 3).double()), mode)
        site = torch.arange(alloy().natoms)
        with pytest.raises(ValueError, match="sid=1001: 'site' differs among"):
            graph_rewiring(alloy(site=site), mode)
        assert graph_rewiring(alloy(site=0 * site + 7), mode).site[-1] == 7

    def test_polonium(self) -> None:
        data = alloy()
        data.atomic_numbers[-1] = 84.0
        with pytest.raises(ValueError, match="sid=1001: an atom of atomic number 84"):
            graph_rewiring(data, GRAPH)
        graph_rewiring(data, ELEMENT)

    def test_before_a_run(self, tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
        fx.write_splits(tmp_path, train=2, test=1)
        config = fx.run_config(tmp_path, {"name": "schnet"})
        train = config["dataset"]["train"]
        train["transforms"] = {"graph_rewiring": "one-supernode"}
        with pytest.raises(
            ValueError, match=r"dataset.train.transforms.*'one-supernode-per-graph'"
        ):
            check_run_config(config)
        train["transforms"] = {"frame_averaging": {}, "graph_rewiring": GRAPH}
        with pytest.raises(
            ValueError, match=r"dataset.train.transforms: put graph_rewiring before"
        ):
            check_run_config(config)
        train["transforms"] = {"graph_rewiring": GRAPH}
        with caplog.at_level(logging.WARNING):
            check_run_config(config)
            assert "differs between splits" not in caplog.text  # val has train's
            config["dataset"]["val"]["transforms"] = {}
            check_run_config(config)
        assert "differs between splits" in caplog.text
