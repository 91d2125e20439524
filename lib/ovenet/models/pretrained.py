"""Trained weights by name: the bundled ones, and those that others publish, which are downloaded once.

Downloads lie where torch.hub, torchvision and mmsegmentation put theirs, under the same names:
``$TORCH_HOME/hub/checkpoints``, by default ``~/.cache/torch/hub/checkpoints``. Files put there or into
``pretrained_models/`` by hand are found too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import yaml

from ovenet.errors import UserError, nearest
from ovenet.utils.bundled import bundled_folder
from ovenet.utils.download import begins_with, download

MODELS = bundled_folder("pretrained_models")
BY_HAND = Path("pretrained_models")
MIRROR = "OVENET_MIRROR"  # environment variable: an address that stands in for https://download.openmmlab.com
_TABLE = Path(__file__).with_name("pretrained.yaml")
_HASH = re.compile(r"-([0-9a-f]{8})\.pth")


@dataclass(frozen=True)
class PretrainedModel:
    """A trained model that others publish.

    Attributes:
        name: what `ovenet.load` takes.
        experiment: name of the experiment that describes it.
        mean_iou: as published, in %: at one scale, and at several with flips; None where nothing was published.
        data: name of the dataset.
        terms: of the dataset, in short.
        licence: of the publisher's code and weights.
        page: where its authors publish it.
        file: name of its file.
        address: of its file; "" for a model without a lasting address.
        settings: ``KEY``: value, which make the experiment's test the published one.
    """

    name: str
    experiment: str
    mean_iou: tuple[float | None, float | None]
    data: str
    terms: str
    licence: str
    page: str
    file: str
    address: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """How the digest of the file begins; "" where nothing was published."""
        match = _HASH.search(self.file) if self.address else None
        return match[1] if match else ""

    def find(self) -> Path | None:
        """The file, unchecked; None if it is not on this machine."""
        places = (folder / self.file for folder in (BY_HAND, MODELS, download_folder()))
        return next((path for path in places if path.is_file()), None)

    def fetch(self) -> Path:
        """The file, downloaded if it is not on this machine.

        Raises:
            UserError: it cannot be had, or is not the one that was published.
        """
        path = self.find()
        if path is None and not self.address:
            raise UserError(
                f"{self.name}: has no lasting address; its authors publish it at {self.page}: put the file at "
                f"{BY_HAND / self.file}"
            )
        if path is None:
            path = download_folder() / self.file
            address = _mirrored(self.address)
            download(address, path, self.sha256, notice=f"{self}\n{address} -> {path}")
        elif self.sha256 and not begins_with(path, self.sha256):
            raise UserError(
                f"{path}: not the published file, whose sha256 begins with {self.sha256}; remove it, and it is fetched "
                f"again, or name it with its experiment (--cfg {self.experiment})"
            )
        return path

    def __str__(self) -> str:
        scores = zip(self.mean_iou, ("at one scale", "at several scales"), strict=True)
        published = ", ".join(f"{score:.2f} % {kind}" for score, kind in scores if score is not None)
        return (
            f"{self.name}: {self.data}, published mIoU {published or 'in its paper'}; licence: {self.licence}; "
            f"terms of the data: {self.terms}"
        )


def download_folder() -> Path:
    """Where downloads lie."""
    return Path(torch.hub.get_dir()) / "checkpoints"


@dataclass(frozen=True)
class BundledModel:
    """A trained model that comes along, or that somebody packed into the same folder.

    Attributes:
        name: what `ovenet.load` takes.
        data: name of the dataset.
        mean_iou: at one scale and at several with flips, in %.
        licence: of the weights.
    """

    name: str
    data: str = "–"
    mean_iou: tuple[float | None, float | None] = (None, None)
    licence: str = "–"

    def find(self) -> Path:
        """The file."""
        return MODELS / f"{self.name}.safetensors"


def bundled_models() -> dict[str, BundledModel]:
    """The models in the folder of those that come along, by name."""
    names, known = sorted(path.stem for path in MODELS.glob("*.safetensors")), _table()["bundled"]
    return {name: BundledModel(name, **known.get(name, {})) for name in names}


@lru_cache(maxsize=1)
def pretrained_models() -> dict[str, PretrainedModel]:
    """The models that others publish, by name."""
    table, models = _table(), {}
    for name, entry in table["models"].items():
        data = table["data"][entry["experiment"].split("/")[0]]
        publisher = table["publishers"][entry["publisher"]]
        path = entry.get("file", f"{name}.pth")
        models[name] = PretrainedModel(
            name=name,
            experiment=entry["experiment"],
            mean_iou=tuple(entry["mean_iou"]),
            data=data["name"],
            terms=data["terms"],
            licence=publisher["licence"],
            page=publisher["page"],
            file=path.rsplit("/", 1)[-1],
            address=f"{publisher['address']}/{path}" if "address" in publisher else "",
            settings=publisher.get("settings", {}),
        )
    return models


def pretrained_of(path: Path) -> PretrainedModel | None:
    """The published model whose file has this name."""
    return next((model for model in pretrained_models().values() if model.file == path.name), None)


def weights_path(source: str | Path) -> Path:
    """The file of weights of a path or a name; published ones are downloaded if necessary.

    Args:
        source: a path, whether there is something or not; or the name of a bundled or a published model.

    Raises:
        UserError: there is no model of that name, or it cannot be had.
    """
    path, name = Path(source), str(source)
    if path.exists():
        return path
    if name in bundled_models():
        return bundled_models()[name].find()
    if name in pretrained_models():
        return pretrained_models()[name].fetch()
    if not path.suffix:
        close = nearest(name, [*bundled_models(), *pretrained_models()], num=3)
        raise UserError(
            f"{source}: no run's folder, file of weights or model of that name; the nearest names are {close} "
            f"(bundled: {', '.join(bundled_models())}; all: ovenet models --pretrained)"
        )
    return path


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    return yaml.safe_load(_TABLE.read_text(encoding="utf-8"))


def _mirrored(address: str) -> str:
    """The address, on the mirror that the environment names."""
    mirror = os.environ.get(MIRROR, "").rstrip("/")
    return mirror + urlsplit(address).path if mirror else address
