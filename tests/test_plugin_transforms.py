"""Transforms of the loader: frames and rewiring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fairchem.core.datasets import data_list_collater
from fairchem.core.datasets.base_dataset import create_dataset
from torch_geometric.data import Batch

import ocp_faenet
import plugin_fixtures as fx
from ocp_faenet.adapters.frames import FRAMES, frame_averaging
from ocp_faenet.adapters.rewiring import graph_rewiring
from plugin_cases import faenet


@pytest.fixture
def lmdb_path(tmp_path: Path) -> Path:
    """Three records without edges."""
    return fx.write_lmdb(tmp_path / "data.lmdb", [fx.slab_record(seed) for seed in range(3)])


class TestFrameAveragingTransform:
    """``frame_averaging`` from a dataset configuration, under the stock loader."""

    def load(self, path: Path, **config: Any) -> Batch:
        """All records of the dataset, collated, once a model of ours has been named."""
        assert ocp_faenet.FAENet
        graph = {"otf_graph": True, "cutoff": fx.CUTOFF}
        source = {"src": str(path), "transforms": {"frame_averaging": {**graph, **config}}}
        dataset = create_dataset(source, "train")
        return data_list_collater([dataset[i] for i in range(3)], otf_graph=True)

    def test_training_uses_the_loaders_frames_and_evaluation_its_own(self, lmdb_path: Path) -> None:
        batch = self.load(lmdb_path, frame_averaging="2D", fa_method="all")
        assert batch[FRAMES].shape == (3, 4, 3, 3)
        model = faenet(fa_method="stochastic")
        everything = faenet(fa_method="all")
        expected = everything(batch)["energy"]
        torch.testing.assert_close(model.train()(batch)["energy"], expected)
        assert not torch.allclose(model.eval()(batch)["energy"], expected)
        moved = batch.clone()  # a relaxation moves atoms; stored frames would be stale
        moved.pos = moved.pos @ torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
        moved.cell = moved.cell @ torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
        torch.testing.assert_close(everything(moved)["energy"], expected, rtol=1e-4, atol=1e-5)

    def test_stochastic_frames_are_drawn_anew(self, lmdb_path: Path) -> None:
        config = {"frame_averaging": "3D", "fa_method": "stochastic"}
        draws = torch.stack([self.load(lmdb_path, **config)[FRAMES] for _ in range(8)])
        assert draws.shape == (8, 3, 1, 3, 3)
        assert len(draws.flatten(1).unique(dim=0)) > 1

    @pytest.mark.parametrize("config", ["2D", {"frame": "2D"}, {"frame_averaging": "4D"}])
    def test_bad_configuration(self, config: Any) -> None:
        with pytest.raises(ValueError, match="frame_averaging"):
            frame_averaging(fx.slab_record(0), config)

    def test_a_model_without_frames_is_a_contradiction(self, lmdb_path: Path) -> None:
        batch = self.load(lmdb_path, frame_averaging="2D", fa_method="det")
        model = ocp_faenet.FAENet(**fx.TINY, otf_graph=True).train()
        with pytest.raises(ValueError, match="frame_averaging is null"):
            model(batch)


class TestTagZeroRemoval:
    """``graph_rewiring: remove-tag-0``."""

    def test_atoms_edges_and_counts(self) -> None:
        data = fx.slab_record(1, edges=True)
        data.pos_relaxed = data.pos + 0.1
        before = data.clone()
        out = graph_rewiring(data, "remove-tag-0")
        keep = [i for i in range(data.natoms) if data.tags[i] > 0]
        assert 0 < len(keep) < data.natoms
        assert out.natoms == out.num_nodes == len(keep)
        for key in ("pos", "pos_relaxed", "force", "fixed", "tags", "atomic_numbers"):
            assert torch.equal(out[key], before[key][keep]), key
            assert torch.equal(data[key], before[key]), key
        assert edge_list(out, list(range(len(keep)))) == [
            edge for edge in edge_list(data, keep) if None not in edge
        ]
        assert torch.equal(out.cell, data.cell)
        assert out.y == data.y

    def test_a_graph_left_without_edges_keeps_its_place(self) -> None:
        full = fx.slab_record(1, edges=True)
        bare = fx.slab_record(0, edges=True)
        lonely = (bare.tags[bare.edge_index] == 0).any(0)
        bare.edge_index, bare.cell_offsets = bare.edge_index[:, lonely], bare.cell_offsets[lonely]
        records = [graph_rewiring(record, "remove-tag-0") for record in (full, bare, full)]
        assert records[1].edge_index.shape == (2, 0)
        batch = data_list_collater(records, otf_graph=False)
        edges = records[0].edge_index.shape[1]
        assert batch.neighbors.tolist() == [edges, 0, edges]
        energy = faenet(otf_graph=False, fa_method="all")(batch)["energy"]
        torch.testing.assert_close(energy[0], energy[2])

    @pytest.mark.parametrize("config", [None, False, ""])
    def test_absent(self, config: Any) -> None:
        data = fx.slab_record(0)
        assert graph_rewiring(data, config) is data

    def test_errors(self) -> None:
        data = fx.slab_record(0)
        with pytest.raises(ValueError, match="'remove-tag0' is not known"):
            graph_rewiring(data, "remove-tag0")
        untagged = data.clone()
        untagged.tags = torch.zeros_like(data.tags)
        with pytest.raises(ValueError, match="sid=1000: every tag is 0"):
            graph_rewiring(untagged, "remove-tag-0")
        del untagged.tags
        with pytest.raises(ValueError, match="sid=1000 has no 'tags'"):
            graph_rewiring(untagged, "remove-tag-0")
        with pytest.raises(ValueError, match=r"no 'edge_index' in the batch \(sid 1000\)"):
            frame_averaging(data, {"frame_averaging": "2D", "fa_method": "det"})
        published = {"frame_averaging": "2D", "fa_method": "det", "frame_source": "positions"}
        framed = frame_averaging(data, published)
        with pytest.raises(ValueError, match="before frame_averaging"):
            graph_rewiring(framed, "remove-tag-0")


def edge_list(data: Any, keep: list[int]) -> list[tuple[Any, ...]]:
    """Edges with their images, ends renumbered by their place in ``keep``, ``None`` if gone."""
    number = {atom: place for place, atom in enumerate(keep)}
    ends = [[number.get(atom) for atom in row] for row in data.edge_index.tolist()]
    return list(zip(*ends, map(tuple, data.cell_offsets.tolist()), strict=True))


def test_loader_refuses_frames_that_are_learned() -> None:
    """The network that chooses them lives in the model."""
    with pytest.raises(ValueError, match=r"fa_method 'learned' is learned in the model"):
        frame_averaging(fx.slab_record(0), {"frame_averaging": "2D", "fa_method": "learned"})
