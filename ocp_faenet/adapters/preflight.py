"""What can be known to be wrong with a run before anything heavy starts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from ocp_faenet.adapters.conservation import NAME, Scales, split_losses
from ocp_faenet.adapters.datasets import LMDB_FORMATS, CheckedLmdbDataset, check_lmdb
from ocp_faenet.adapters.finetuning import check_finetuning
from ocp_faenet.adapters.noise import check_noise
from ocp_faenet.adapters.records import graph_names, record_name
from ocp_faenet.adapters.rewiring import parse_rewiring
from ocp_faenet.adapters.schema import is_absent, validate_config
from ocp_faenet.models.config import ForceMode

#: Names under which a model of ours stands in a configuration.
MODELS = ("faenet", "ocp_faenet.FAENet")
BACKBONES = ("faenet_backbone", "ocp_faenet.FAENetBackbone")
SPLITS = ("train", "val", "test", "relax")
_FORMATS = (*LMDB_FORMATS, "faenet_lmdb", f"ocp_faenet.{CheckedLmdbDataset.__name__}")


def check_run_config(config: Mapping[str, Any], data: bool = True) -> None:
    """Check a run as the host will see it: model, targets, data of every split.

    Args:
        config: the merged configuration, includes and overrides resolved.
        data: whether the data are to be looked at from here.

    Raises:
        ValueError: the first thing wrong, naming the key or file, the value and the remedy.
    """
    for name in ("model", "dataset", "optim"):
        if not config.get(name):
            raise ValueError(f"configuration: no {name!r} section; the host needs one")
    check_model(config["model"])
    check_finetuning(config["model"])
    check_targets(config)
    sections = split_sections(config["dataset"])
    check_rewiring(sections)
    check_noise(sections, config.get("outputs") or {})
    for split, section in sections.items() if data else ():
        check_split(split, section)


def check_model(model: Mapping[str, Any]) -> None:
    """Validate the configuration of a FAENet, or of the FAENet backbone of a hydra model."""
    if model.get("name") in MODELS:
        validate_config({key: value for key, value in model.items() if key != "name"})
    backbone = model.get("backbone")
    if isinstance(backbone, Mapping) and backbone.get("model") in BACKBONES:
        validate_config({key: value for key, value in backbone.items() if key != "model"})


def check_targets(config: Mapping[str, Any]) -> None:
    """Every loss needs a coefficient and an output; FAENet must predict what is asked of it."""
    outputs = config.get("outputs") or {}
    term, entries = split_losses(config.get("loss_functions"))
    if term is not None:
        check_conservation(config, outputs)
    for entry in entries:
        for target, loss in entry.items():
            if not isinstance(loss, Mapping) or "coefficient" not in loss:
                raise ValueError(
                    f"loss_functions.{target}: no 'coefficient'; the host needs one, e.g. 1"
                )
            if target not in outputs:
                raise ValueError(
                    f"loss_functions.{target}: not among the outputs ({', '.join(outputs)})"
                )
    model = config["model"]
    if model.get("name") not in MODELS:
        return
    absent = is_absent(model.get("regress_forces"))
    if "forces" in outputs and absent:
        raise ValueError(
            "outputs.forces: the model predicts none; set model.regress_forces to direct, "
            "from_energy or direct_with_gradient_target, or drop the output"
        )
    if config.get("mode") == "train" and not absent and "forces" not in _losses(config):
        raise ValueError(
            f"model.regress_forces: {model['regress_forces']!r}, but no loss trains the forces, "
            "and the host refuses weights without a gradient; add a loss on forces, or set null"
        )


def check_conservation(config: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
    """The loss ``energy_conservation`` needs energy, forces and the gradient between them."""
    if not {"energy", "forces"} <= set(outputs):
        raise ValueError(f"loss_functions.{NAME}: needs the outputs energy and forces")
    model = config["model"]
    ours = model.get("backbone") or {} if model.get("name") == "hydra" else model
    mode = ours.get("regress_forces")
    if mode != ForceMode.DIRECT_WITH_GRADIENT_TARGET.value:
        raise ValueError(
            f"loss_functions.{NAME}: model.regress_forces is {mode!r}; only "
            f"{ForceMode.DIRECT_WITH_GRADIENT_TARGET.value!r} has forces and a gradient to compare"
        )


def check_labels(split: str, record: Any, outputs: Mapping[str, Any]) -> None:
    """The first record of a split that is trained or evaluated on has a target for each output."""
    for name, output in outputs.items():
        if name not in record and "decomposition" not in output:
            raise ValueError(
                f"dataset.{split}: {record_name(record)} has no {name!r}, the target of "
                f"outputs.{name}; map a key of the records to it (dataset.{split}.key_mapping), "
                "take labelled records, or drop the output"
            )


def check_free_atoms(batch: Any, outputs: Mapping[str, Any]) -> None:
    """Each structure has an atom that counts, where fixed ones do not.

    The host would divide by no atoms: losses and metrics that are not numbers.
    """
    keys = ("train_on_free_atoms", "eval_on_free_atoms")
    if not any(output.get(key) for output in outputs.values() for key in keys):
        return
    free = torch.zeros(batch.num_graphs, device=batch.fixed.device)
    free.index_add_(0, batch.batch, (batch.fixed == 0).to(free.dtype))
    if bool((free == 0).any()):
        names = graph_names(batch, (free == 0).nonzero().view(-1).tolist())
        raise ValueError(
            f"every atom is fixed: {names}; losses and metrics count free atoms alone. Drop these "
            "records, or set train_on_free_atoms and eval_on_free_atoms: false in the outputs"
        )


def check_scales(model: Mapping[str, Any], scales: Scales) -> None:
    """Forces that are the gradient of the energy must be normalised by the same deviation.

    The host divides both by deviations of their own: with unlike ones, the forces that come out
    are not the gradient of the energy that comes out.
    """
    ours = model.get("backbone") or {} if model.get("name") == "hydra" else model
    if ours.get("regress_forces") != ForceMode.FROM_ENERGY.value:
        return
    if abs(scales.energy / scales.forces - 1) > 1e-4:
        raise ValueError(
            f"dataset.train.transforms.normalizer: stdev {scales.energy:g} of the energy, "
            f"{scales.forces:g} of the forces, which are its gradient (regress_forces: "
            "from_energy); give the forces the stdev of the energy and mean 0"
        )


def _losses(config: Mapping[str, Any]) -> list[str]:
    return [target for entry in config.get("loss_functions") or [] for target in entry]


def split_sections(dataset: Any) -> dict[str, dict[str, Any]]:
    """Each split's configuration as the host resolves it: val, test, relax start from train."""
    if isinstance(dataset, list):
        dataset = dict(zip(SPLITS, dataset, strict=False))
    elif "src" in dataset:
        dataset = {"train": dataset}
    train = dict(dataset.get("train") or {})
    sections = {}
    for split in SPLITS:
        own = dict(dataset.get(split) or {})
        if "src" in own:
            inherit = split != "train" and own.get("use_train_settings", True)
            sections[split] = {**train, **own} if inherit else own
    return sections


def check_rewiring(sections: Mapping[str, Mapping[str, Any]]) -> None:
    """``graph_rewiring`` of every split: known, before the frames, best the same everywhere."""
    modes = {}
    for split, section in sections.items():
        transforms = section.get("transforms") or {}
        try:
            modes[split] = parse_rewiring(transforms.get("graph_rewiring"))
        except ValueError as error:
            raise ValueError(f"dataset.{split}.{error}") from error
        order = [name for name in transforms if name in ("frame_averaging", "graph_rewiring")]
        if modes[split] is not None and order[0] == "frame_averaging":
            raise ValueError(
                f"dataset.{split}.transforms: put graph_rewiring before frame_averaging"
            )
    if len(set(modes.values())) > 1:
        named = {split: "none" if mode is None else mode.value for split, mode in modes.items()}
        logging.warning(
            f"transforms.graph_rewiring differs between splits ({named}): the model is evaluated "
            "on other graphs than it learns from. val and test need it in their own transforms."
        )


def check_split(split: str, section: Mapping[str, Any]) -> None:
    """Look at the files of one split, if they are LMDBs."""
    if section.get("format", "lmdb") not in _FORMATS:
        return
    src = section["src"]
    if not isinstance(src, str) or not src:
        raise ValueError(f"dataset.{split}.src: {src!r}; must be the path of one LMDB")
    try:
        check_lmdb(src)
    except ValueError as error:
        raise ValueError(f"dataset.{split}.src: {error}") from error
