"""Folders in the form of the Hugging Face hub: weights, configuration and a model card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovenet.config import load_config_text
from ovenet.errors import UserError
from ovenet.inference.temperature import KEY, read_temperatures
from ovenet.models.weight_files import read_checkpoint, weights_of, write_safetensors
from ovenet.predictor.run_folder import without_places
from ovenet.utils.writing import write_text
from ovenet.version import version

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
CARRIED = ("config", "dataset", "class_names", "palette", "dataset_info", "normalization")


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
        card: text of the model card; "" for one with the classes and the configuration.

    Raises:
        UserError: the folder is not empty, or the weights carry too little to be shared.
        OSError: a file cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: has files in it already; name a new folder")
    about = pack(source, folder / WEIGHTS, half=half)
    config = {
        "library_name": "ovenet",
        "ovenet_version": version(),
        "sha256": _digest(folder / WEIGHTS),
        "id2label": dict(enumerate(about["class_names"])),
        **{key: about[key] for key in ("dataset", "normalization", "config")},
    }
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    write_text(folder / CARD, card or _card(source, about))


def _card(source: Path, about: dict[str, Any]) -> str:
    classes = "\n".join(f"| {k} | {name} |" for k, name in enumerate(about["class_names"]))
    return f"""---
library_name: ovenet
pipeline_tag: image-segmentation
tags: [semantic-segmentation, ovenet]
---

# {source.stem}

A segmentation model trained with OVeNet {version()} on {about["dataset"]}.

    import ovenet

    ovenet.load("FOLDER")("photo.jpg").overlay().show()

Add the scores, the licence of the data and the command before you publish it.

| train id | class |
|--:|---|
{classes}

## Configuration

```yaml
{about["config"].rstrip()}
```
"""


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
