"""Ewald messages from YAML: the plugin, its hydra form, and errors that name the record."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fairchem.core.datasets import data_list_collater
from torch_geometric.data import Batch, Data

import ocp_faenet
import plugin_fixtures as fx
from ocp_faenet.adapters.schema import validate_config
from ocp_faenet.models.ewald_config import EwaldForm
from plugin_cases import batch_of, faenet, hydra_like

FORMS: dict[str, dict[str, Any]] = {
    "box": {"ewald": {"box": [1, 1, 3]}},
    "cutoff": {"ewald": {"k_cutoff": 1.5, "num_gaussians": 8}},
    "voxels": {
        "ewald": {"k_cutoff": 1.0, "voxel": 0.4},
        "use_pbc": False,
        "frame_source": "positions",
    },
}


def test_the_section_of_a_yaml():
    config = validate_config({"ewald": {"box": [1, 1, 3], "down_projection": 4}})
    assert config.ewald.form is EwaldForm.BOX
    assert (config.ewald.box, config.ewald.down_projection) == ((1, 1, 3), 4)
    for absent in (None, False, "", "none"):
        assert validate_config({"ewald": absent}).ewald is None


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"boks": [1, 1, 3]}, "unknown key 'ewald.boks' (value [1, 1, 3]); the nearest known key "
         "is 'ewald.box'"),
        ({"box": [1, 1]}, "ewald.box"),
        ({"box": [1, 1, 2.5]}, "ewald.box.2: 2.5; input should be a valid integer"),
        ({"box": [1, 1, 3], "k_cutoff": 0.6}, "give one of them"),
        ({"k_cutoff": "0.6"}, "ewald.k_cutoff: '0.6'; input should be a valid number"),
        ({"k_cutoff": 1.0, "voxel": 0.2}, "ewald.voxel: 0.2 is for free structures"),
        (True, "ewald: True"),
    ],
)  # fmt: skip
def test_wrong_sections_end_in_one_line(section, told):
    with pytest.raises(ValueError, match=re.escape(told)) as caught:
        ocp_faenet.FAENet(ewald=section)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_hydra_form_and_gradients(form):
    config = {**FORMS[form], "regress_forces": "direct_with_gradient_target"}
    decoder = {"mlp": {"hidden_channels": 16, "norm": "layer"}}
    model = faenet(force_decoder_model_config=decoder, **config).train()
    hydra = hydra_like(model, force_decoder_model_config=decoder, **config).train()
    batch = batch_of(0, 1, 2)
    expected, found = model(batch), hydra(batch)
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0)
    (expected["energy"].sum() + expected["forces"].square().sum()).backward()
    idle = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert idle == []
    # Negative control: without the section the energies are others.
    plain = faenet(**{**config, "ewald": None}, force_decoder_model_config=decoder)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "long_range" not in k})
    assert not torch.allclose(plain(batch)["energy"], model.eval()(batch)["energy"], rtol=1e-3)


def flat(record: Data) -> None:
    record.cell[0, 2] = record.cell[0, 1]


def absent(record: Data) -> None:
    del record["cell"]


def slab_pbc(record: Data) -> None:
    record.pbc = torch.tensor([[True, True, False]])


def sound(record: Data) -> None:
    record.pbc = torch.tensor([[True, True, True]])


def small(record: Data) -> None:
    """A cell that is small along all axes."""
    record.cell *= 0.25


FAULTS = [
    ("box", flat, "cell has no volume.*: sid 1001"),
    ("cutoff", flat, "cell has no volume.*: sid 1001"),
    ("box", absent, "no 'cell'"),
    ("box", slab_pbc, r"pbc is \[True, True, False\].*: sid 1001"),
    ("cutoff", slab_pbc, r"pbc is \[True, True, False\].*: sid 1001"),
    ("cutoff", small, r"k_cutoff: 1.5 Å⁻¹ holds no wave vector but zero.*: sid 1001"),
]


@pytest.mark.parametrize(("form", "fault", "told"), FAULTS)
def test_bad_records_are_named(form, fault, told):
    model = ocp_faenet.FAENet(**{**fx.TINY, **FORMS[form]})
    assert torch.isfinite(model(one_wrong(sound))["energy"]).all()
    with pytest.raises(ValueError, match=told) as caught:
        model(one_wrong(fault))
    assert "\n" not in str(caught.value)
    if fault is not absent:
        assert "sid 1000" not in str(caught.value)


def one_wrong(fault: Callable[[Data], None]) -> Batch:
    """Two records, a fault in the second."""
    records = [fx.slab_record(seed, edges=True) for seed in (0, 1)]
    for record in records:
        sound(record)
    if fault is absent:
        fault(records[0])
    fault(records[1])
    return data_list_collater(records, otf_graph=False)
