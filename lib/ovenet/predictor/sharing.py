"""Folders in the form of the Hugging Face hub: weights, configuration and a model card."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from ovenet.builders.models import metadata_of, model_config
from ovenet.config import load_config_text
from ovenet.data.description import Classes, describe_classes
from ovenet.data.info import DatasetInfo
from ovenet.errors import UserError
from ovenet.inference.temperature import KEY, read_temperatures
from ovenet.models import Segmentor
from ovenet.models.weight_files import SAFETENSORS, read_checkpoint, weights_of, write_safetensors
from ovenet.predictor.run_folder import find_test, without_places
from ovenet.report.card import CardSources, failures_picture, model_card
from ovenet.utils.writing import write_bytes, write_text
from ovenet.version import version

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_STATISTICS = re.compile(r"\b(running_mean|running_var|num_batches_tracked)$")  # of batch norms: not trained
CARRIED = ("config", "dataset", "class_names", "palette", "dataset_info", "normalization")


@dataclass(frozen=True)
class CardTexts:
    """What a card says beside what the weights and their test show.

    Attributes:
        test: folder of a test of these weights; None without one.
        seeds: folders of tests, or results of a sweep's runs, of the same model with other random seeds.
        data: a text on the images that it was trained on.
        licence: a text on the licence.
    """

    test: Path | None = None
    seeds: Sequence[Path] = ()
    data: str = ""
    licence: str = ""


def pack(source: Path, path: Path, *, half: bool = False) -> dict[str, Any]:
    """Writes weights, and all that prediction needs, to one small file that other programs read too.

    Args:
        source: weights written by training.
        path: ``*.safetensors``.
        half: write float16.

    Returns:
        The metadata of the file.

    Raises:
        UserError: the weights carry too little to be shared.
        OSError: the file cannot be written.
    """
    content = read_checkpoint(source)
    about = _portable(content, source)
    if temperatures := read_temperatures(source) or content.get(KEY):
        about[KEY] = temperatures
    write_safetensors(path, weights_of(content, source), about, half=half)
    return about


def _portable(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The metadata of a file of weights, without the paths of this machine."""
    missing = [key for key in CARRIED if key not in content]
    if missing:
        raise UserError(f"{path}: carries no {missing[0]}; only weights that training wrote here can be passed on")
    about = {key: content[key] for key in CARRIED}
    return {**about, "config": without_places(load_config_text(content["config"], str(path)))}


def save_folder(source: Path, folder: Path, *, half: bool = False, card: str = "") -> None:
    """Writes a folder that `ovenet.load` reads; ``hf upload NAME FOLDER`` publishes it.

    Args:
        source: weights written by training.
        folder: a new or empty folder.
        half: write float16.
        card: text of the model card; "" for the one that `write_card` writes.

    Raises:
        UserError: the folder is not empty, or the weights carry too little to be shared.
        OSError: a file cannot be written.
    """
    _require_new(folder)
    about = pack(source, folder / WEIGHTS, half=half)
    _describe_folder(folder, about, card, CardTexts(find_test(source, [source.parent])), source.stem)


def save_model(
    model: Segmentor, folder: Path, *, classes: Classes | None = None, half: bool = False, card: str = ""
) -> None:
    """Writes a model in memory to a folder, see `save_folder`.

    Args:
        model: built by `ovenet.create_model` or read by `ovenet.from_pretrained`.
        folder: a new or empty folder.
        classes: see `ovenet.data.description.describe_classes`; None for those that the model came with.
        half: write float16.
        card: text of the model card.

    Raises:
        UserError: the folder is not empty, or the model has no classes, or is composed of parts without names.
        OSError: a file cannot be written.
    """
    cfg, info = config_in_memory(model), classes_in_memory(model, classes)
    about = metadata_of(cfg, info, model.normalization)
    about = {**about, "config": without_places(cfg)}
    _require_new(folder)
    write_safetensors(folder / WEIGHTS, model.state_dict(), about, half=half)
    data = "" if "config" in model.metadata else "What it was trained on is not recorded."
    _describe_folder(folder, about, card, CardTexts(data=data), folder.name)


def config_in_memory(model: Segmentor) -> CfgNode:
    """The configuration that a model came with, or that of its parts, see `ovenet.builders.models.model_config`."""
    if "config" in model.metadata:
        return load_config_text(model.metadata["config"], "the model")
    return model_config(model)


def classes_in_memory(model: Segmentor, classes: Classes | None) -> DatasetInfo:
    """The named classes, or those that a model came with.

    Raises:
        UserError: there are none, or not as many as the model predicts.
    """
    if classes is not None:
        info = describe_classes(classes)
    elif "dataset_info" in model.metadata:
        info = DatasetInfo.from_dict(model.metadata["dataset_info"])
    else:
        raise UserError('this model has no classes yet; name them: classes=["wall", "window", …]')
    num_classes = info.num_classes if model.recipe is None else model.recipe["num_classes"]
    if info.num_classes != num_classes:
        raise UserError(f"classes has {info.num_classes} names, and the model predicts {num_classes} classes")
    return info


def _require_new(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: has files in it already; name a new folder")


def _describe_folder(folder: Path, about: Mapping[str, Any], card: str, texts: CardTexts, name: str) -> None:
    """Writes the files beside the weights: their configuration, and a card unless the user has written one."""
    config = {
        "library_name": "ovenet",
        "ovenet_version": version(),
        "sha256": _digest(folder / WEIGHTS),
        "id2label": dict(enumerate(about["class_names"])),
        **{key: about[key] for key in ("dataset", "normalization", "config")},
    }
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    if card:
        write_text(folder / CARD, card)
    else:
        write_card(folder / WEIGHTS, folder / CARD, texts, name=name, hub=True)


def write_card(source: Path, path: Path, texts: CardTexts, *, name: str = "", hub: bool = False) -> None:
    """Writes the card of a trained model, and beside it the pictures of its worst images, if the test has any.

    Args:
        source: weights written by training, or packed.
        path: path of the Markdown file, replaced if it exists; the pictures have the same name, and ``.jpg``.
        texts: the test and what is known of the data.
        name: name of the model; "" for the file's.
        hub: begin with the lines that the Hugging Face hub reads.

    Raises:
        UserError: the weights carry too little, or a test is missing or damaged.
        OSError: a file cannot be written.
    """
    content = read_checkpoint(source)
    about = _portable(content, source)
    weights = weights_of(content, source)
    picture = failures_picture(texts.test, DatasetInfo.from_dict(about["dataset_info"])) if texts.test else None
    model = CardSources(
        name=name or path.stem,
        load="FOLDER" if hub else path.with_suffix(SAFETENSORS).name,
        hub=hub,
        about=about,
        num_parameters=sum(tensor.numel() for key, tensor in weights.items() if not _STATISTICS.search(key)),
        half=all(tensor.dtype != torch.float32 for tensor in weights.values()),
        version=version(),
        test=texts.test,
        seeds=texts.seeds,
        data=texts.data,
        licence=texts.licence,
        temperature=(read_temperatures(source) or content.get(KEY) or {}).get("fused"),
    )
    if picture is not None:
        write_bytes(path.with_suffix(".jpg"), picture)
    write_text(path, model_card(model, path.with_suffix(".jpg").name if picture is not None else ""))


def weights_of_folder(folder: Path) -> Path:
    """The weights in a folder written by `save_folder`, after a check of their checksum.

    Raises:
        UserError: a file is missing or damaged, or the weights are not the ones saved.
    """
    path = folder / WEIGHTS
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        expected = config["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder}: its {CONFIG} is missing or damaged; save it with Predictor.save_pretrained"
        ) from error
    if not path.is_file() or _digest(path) != expected:
        raise UserError(f"{path}: not the weights that {CONFIG} was written for (its sha256 differs); fetch both again")
    return path


def download(name: str, revision: str | None) -> Path:
    """The local folder of a model on the hub, downloaded if necessary.

    Raises:
        UserError: the model cannot be downloaded.
    """
    from huggingface_hub import snapshot_download  # comes with timm

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[WEIGHTS, CONFIG, CARD]))
    except Exception as error:  # errors of its HTTP library derive from Exception alone
        raise UserError(f"{name}: no such folder, and not to be had from the hub ({type(error).__name__})") from error


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
