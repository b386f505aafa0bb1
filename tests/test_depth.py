"""MAD by layer and the verb that reports it (issue 5, point 4)."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports
from fairchem.core.datasets import data_list_collater

from ocp_faenet.adapters.depth import diversity_by_layer, last_layer_diversity, open_faenet
from ocp_faenet.adapters.runs import RunSpec
from ocp_faenet.adapters.unpack import unpack
from ocp_faenet.cli import main
from ocp_faenet.metrics.diversity import mean_average_distance
from plugin_fixtures import TINY, slab_record, write_lmdb

BACKBONE = {**TINY, "frame_averaging": "2D", "fa_method": "stochastic", "eval_fa_method": "all"}
PLAIN = {"name": "ocp_faenet.FAENet", **BACKBONE}
NOISY = {
    "name": "hydra",
    "backbone": {"model": "ocp_faenet.FAENetBackbone", **BACKBONE, "num_interactions": 3},
    "heads": {"denoising": {"module": "ocp_faenet.FAENetDenoisingHead"}},
    "pass_through_head_outputs": True,
}


def write_checkpoint(path, model, outputs):
    setup_imports()
    torch.manual_seed(0)
    config = {key: value for key, value in model.items() if key != "name"}
    network = registry.get_model_class(model["name"])(**config)
    atom = {"level": "atom", "train_on_free_atoms": False, "eval_on_free_atoms": False}
    saved = {
        "task": {},
        "trainer": "ocp",
        "model": model,
        "outputs": {key: atom if key == "denoising" else {"level": "system"} for key in outputs},
        "optim": {},
        "loss_functions": [{outputs[0]: {"fn": "mae", "coefficient": 1}}],
        "evaluation_metrics": {"metrics": {outputs[0]: ["mae"]}},
        "dataset": {"src": "unused", "transforms": {"noisy_nodes": {"std": 9.0}}},
        "cmd": {"seed": 0},
    }
    content = {"state_dict": network.state_dict(), "normalizers": {}, "elementrefs": {}}
    torch.save({**content, "config": saved}, path)
    return network


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("depth")
    write_lmdb(root / "data.lmdb", [slab_record(seed, edges=True) for seed in range(5)])
    write_checkpoint(root / "plain.pt", PLAIN, ["energy"])
    write_checkpoint(root / "noisy.pt", NOISY, ["denoising"])
    write_checkpoint(
        root / "schnet.pt",
        {"name": "schnet", "hidden_channels": 8, "num_filters": 8, "num_interactions": 1},
        ["energy"],
    )
    return root


def by_pairs(h, batch, num_graphs):
    """The definition, pair by pair."""
    out = torch.full((h.shape[0], num_graphs), torch.nan, dtype=torch.float64)
    for f in range(h.shape[0]):
        for b in range(num_graphs):
            atoms = h[f, batch == b].double()
            distances = [
                1 - torch.cosine_similarity(atoms[i], atoms[j], dim=0)
                for i in range(len(atoms))
                for j in range(len(atoms))
                if i != j
            ]
            if distances:
                out[f, b] = torch.stack(distances).mean()
    return out


def test_mad_is_the_mean_over_pairs():
    torch.manual_seed(0)
    h, batch = torch.randn(2, 12, 5), torch.tensor([0] * 6 + [1] * 5 + [2])
    found = mean_average_distance(h, batch, 4)
    torch.testing.assert_close(found, by_pairs(h, batch, 4), equal_nan=True, atol=1e-12, rtol=0)
    assert bool(found[:, 2:].isnan().all()), "one atom or none: no pairs"
    same = torch.randn(1, 1, 5).expand(1, 4, 5) * torch.tensor([1.0, 2, 3, 4])[:, None]
    zero = mean_average_distance(same, torch.zeros(4, dtype=torch.int64), 1)
    assert float(zero) == pytest.approx(0.0, abs=1e-6), "lengths do not matter"
    axes = torch.eye(4).unsqueeze(0)
    assert float(mean_average_distance(axes, torch.zeros(4, dtype=torch.int64), 1)) == 1.0


def test_layers_are_those_of_the_model_without_noise(place):
    """The same numbers as from the embeddings of the network itself."""
    network = write_checkpoint(place / "again.pt", PLAIN, ["energy"]).eval()
    model = open_faenet(place / "again.pt")
    parts = diversity_by_layer(model, place / "data.lmdb", limit=5, batch_size=2)
    found = torch.cat(list(parts), 1)
    assert found.shape == (TINY["num_interactions"] + 1, 5)
    batch = data_list_collater([slab_record(seed, edges=True) for seed in range(5)])
    with torch.no_grad():
        embedding = network.core.backbone(unpack(batch, network.config))
    assert embedding.layers[-1].shape[0] > 1, "several frames"
    expected = torch.stack([by_pairs(h, batch.batch, 5).mean(0) for h in embedding.layers])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    spec = RunSpec("any", "any.yml", splits={"val": str(place / "data.lmdb")})
    numbers = last_layer_diversity(spec, {"checkpoint": str(place / "again.pt")})
    assert list(numbers.values()) == pytest.approx(expected[[1, -1]].mean(1).tolist())


def depth(place, *names):
    arguments = ["diagnose", "depth", *[str(place / name) for name in names]]
    arguments += ["--src", str(place / "data.lmdb"), "--json", str(place / "depth.json")]
    return CliRunner().invoke(main, [*arguments, "--plot", str(place / "depth.png")])


def test_the_verb_reports_every_checkpoint(place):
    result = depth(place, "plain.pt", "noisy.pt")
    assert result.exit_code == 0, result.output
    models = json.loads((place / "depth.json").read_text())["models"]
    assert [len(each["mad"]) for each in models] == [3, 4]
    assert all(0 < value < 2 for each in models for value in each["mad"])
    assert f"{models[1]['mad'][3]:.3f}" in result.output
    assert (place / "depth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.pt", "nowhere.pt: no such checkpoint"),
        ("schnet.pt", "its model is schnet, not a FAENet"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(place, name, message):
    result = depth(place, "plain.pt", name)
    assert result.exit_code == 2
    assert message in result.output
