"""A trained model from its checkpoint alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from yacs.config import CfgNode

from ovenet.builders.data import dataset_info
from ovenet.builders.inference import inference_model, inference_settings
from ovenet.builders.models import build_model
from ovenet.builders.runs import weights_of_run
from ovenet.config import load_config, load_config_text
from ovenet.config.checks import LARGEST_SCALE
from ovenet.data.catalog import find_dataset
from ovenet.data.files import read_image, to_rgb
from ovenet.data.info import LONG_SIDE, DatasetInfo
from ovenet.engine.checkpoint import SAFETENSORS, read_checkpoint, weights_of
from ovenet.errors import UserError
from ovenet.evaluation.inference import InferenceSettings, ScorePredictor
from ovenet.models import Segmentor
from ovenet.models.weights import load_weights
from ovenet.structures import Normalization
from ovenet.utils.bundled import bundled_folder
from ovenet.utils.distributed import choose_device

NATIVE = "native"
MODELS = bundled_folder("pretrained_models")


class Predictor(ScorePredictor):
    """Predicts the classes of any image, without the dataset that the model was trained on.

        predictor = Predictor.from_checkpoint("best.pth")
        mask = predictor(image)

    Args:
        model: a segmentor.
        settings: how images are run through it.
        device: where the model lies.
        info: the classes.

    Attributes:
        info: names, colours and label ids of the classes, in the order of the train ids.
        max_offset: longest offset per axis, the image spanning 2; None for a model without a seed.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: InferenceSettings,
        device: torch.device,
        info: DatasetInfo,
        max_offset: float | None,
    ):
        super().__init__(model, settings, device)
        self.info = info
        self.max_offset = max_offset

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        config: str | Path | None = None,
        device: str = "auto",
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
        long_side: int | str | None = None,
        overrides: Sequence[str] = (),
    ) -> Predictor:
        """Builds the model that a file of weights belongs to.

        Args:
            path: ``best.pth`` or another file that training wrote; it carries its configuration and its classes.
            config: an experiment file, for weights that carry none, such as published ones; it wins over what they
                carry.
            device: ``auto``, ``cpu`` or ``cuda``.
            scales: None takes ``TEST.SCALE_LIST``.
            flip: average with the mirrored image; None takes ``TEST.FLIP_TEST``.
            long_side: side of the image at scale 1, in pixels, that is run in windows of ``TEST.IMAGE_SIZE``;
                ``native`` is each image's own; None does as the dataset's evaluation does.
            overrides: ``KEY VALUE …`` as on a command line.

        Raises:
            UserError: the file cannot be read safely, carries no configuration, or does not fit the configuration.
        """
        content = read_checkpoint(path)
        if config is not None:
            cfg = load_config(config, overrides)
            info = dataset_info(cfg)
        elif isinstance(content.get("config"), str):
            cfg = load_config_text(content["config"], str(path), overrides)
            info = _carried_info(content, cfg, path)
        else:
            raise UserError(f"{path}: holds weights but no configuration; name its experiment file (--cfg FILE)")
        model = build_model(cfg)
        report = load_weights(model, weights_of(content, path), str(path), whole=True)
        report.require(1.0, allow_partial=cfg.MODEL.ALLOW_PARTIAL)
        place = choose_device(device)
        settings = inference_settings(cfg, info, _carried_normalization(content, model, path))
        if scales is not None:
            if not scales or not all(0 < scale <= LARGEST_SCALE for scale in scales):
                raise UserError(
                    f"scales are {list(scales)}; expected at least one, all above 0 and at most {LARGEST_SCALE}"
                )
            settings = replace(settings, scales=tuple(scales))
        if flip is not None:
            settings = replace(settings, flip=flip)
        if long_side is not None:
            settings = replace(settings, base_size=_base_size(long_side), rule=LONG_SIDE, base_box=None)
        return cls(inference_model(model, cfg, place), settings, place, info, model.max_offset)

    def __call__(self, image: np.ndarray | Image.Image | str | Path) -> np.ndarray:
        """The class of every pixel.

        Args:
            image: a file, a Pillow image, or an array ``(H, W, 3)`` RGB, ``(H, W)`` or ``(H, W, 4)``, uint8 or uint16
                (of which the upper 8 bits are taken).

        Returns:
            ``(H, W)`` train ids, uint8 for up to 256 classes: indices into ``info.class_names`` and ``info.palette``.

        Raises:
            UserError: the file cannot be read, or the array is no image.
        """
        return self.predict(as_image(image, upright=self.info.upright), names=("fused",)).labels["fused"].cpu().numpy()


def load(source: str | Path, **options: Any) -> Predictor:
    """A trained model, ready to predict.

        mask = ovenet.load("camvid-lite0")("photo.jpg")

    Args:
        source: the folder of a run, a file of weights, or the name of a model that comes along (``pretrained_models``).
        options: see `Predictor.from_checkpoint`.

    Raises:
        UserError: there is no such folder, file or model; and as `Predictor.from_checkpoint`.
    """
    return Predictor.from_checkpoint(find_weights(source), **options)


def find_weights(source: str | Path) -> Path:
    """The file of weights that a run's folder holds, that has this path, or that comes along under this name.

    Raises:
        UserError: there is none.
    """
    path = Path(source)
    if path.is_dir():
        return weights_of_run(path)
    bundled = MODELS / f"{source}{SAFETENSORS}"
    if not path.exists() and path.name == str(source) and bundled.is_file():
        return bundled
    if not path.exists() and not path.suffix:
        names = sorted(file.stem for file in MODELS.glob(f"*{SAFETENSORS}"))
        raise UserError(f"{source}: no run's folder, file of weights or model that comes along ({', '.join(names)})")
    return path


def as_image(image: np.ndarray | Image.Image | str | Path, *, upright: bool = False) -> np.ndarray:
    """Any image as ``(H, W, 3)`` uint8 RGB, see `Predictor.__call__`."""
    if isinstance(image, (str, Path)):
        return read_image(Path(image), upright=upright)
    if isinstance(image, Image.Image):
        return to_rgb(image, "the image", upright=upright)
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))):
        raise UserError(
            f"an array of shape {image.shape} and type {image.dtype}; expected (H, W), (H, W, 3) or (H, W, 4), "
            "uint8 or uint16"
        )
    if image.ndim == 2 or image.shape[2] == 1:
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(image[..., :3])


def _base_size(long_side: int | str) -> int | None:
    if long_side == NATIVE:
        return None
    if not str(long_side).isdigit() or int(long_side) < 1:
        raise UserError(f"the long side is {long_side!r}; expected a number of pixels, or {NATIVE!r}")
    return int(long_side)


def _carried_normalization(content: dict[str, Any], model: Segmentor, path: str | Path) -> Normalization:
    """How the weights' pixels were normalised; the backbone's own way for files that do not say."""
    if "normalization" not in content:
        return model.normalization
    carried = content["normalization"]
    try:
        normalization = Normalization(tuple(carried["mean"]), tuple(carried["std"]), carried["channel_order"])
        is_whole = len(normalization.mean) == len(normalization.std) == 3 and min(normalization.std) > 0
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: its normalization is damaged ({error!r}); save the weights again") from error
    if not is_whole:
        raise UserError(f"{path}: its normalization is {carried}; expected three numbers each, deviations above 0")
    return normalization


def _carried_info(content: dict[str, Any], cfg: CfgNode, path: str | Path) -> DatasetInfo:
    """The classes that a checkpoint carries, or the catalog's for files of before they were carried."""
    if "dataset_info" in content:
        try:
            return DatasetInfo.from_dict(content["dataset_info"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"{path}: its dataset_info is damaged ({error!r}); name the experiment file (--cfg FILE)"
            ) from error
    folder = Path(cfg.DATASET.ROOT) / cfg.DATASET.DATASET
    return find_dataset(cfg.DATASET.DATASET, folder, num_classes=cfg.DATASET.NUM_CLASSES)
