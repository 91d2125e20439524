"""A trained model, ready to predict any image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ovenet.builders.loading import load_model
from ovenet.data.files import read_image, to_rgb
from ovenet.data.info import LONG_SIDE, DatasetInfo
from ovenet.deployment.about import is_exported
from ovenet.errors import UserError
from ovenet.inference.inferencer import InferenceSettings, SlidingWindowInferencer
from ovenet.inference.result import SegResult
from ovenet.inference.settings import LARGEST_SCALE
from ovenet.predictor.sharing import download, save_folder, weights_of_folder
from ovenet.predictor.sources import find_weights
from ovenet.utils.distributed import choose_device

NATIVE = "native"
ImageLike = np.ndarray | Image.Image | Tensor | str | Path
_Image = TypeVar("_Image", bound=ImageLike)


class Predictor(SlidingWindowInferencer):
    """Predicts the classes of any image, without the dataset that the model was trained on.

        predictor = ovenet.load("best.pth")
        result = predictor("photo.jpg")
        result.mask, result.class_share, result.overlay().show()

    Args:
        model: a segmentor.
        settings: how images are run through it.
        device: device of the model.
        info: the classes.
        max_offset: longest offset per axis, in normalised units (the image spans 2); None for a model without a seed.
        path: file of the model.

    Attributes:
        info: names, colours and label ids of the classes, in the order of the train ids.
        max_offset: as the argument.
        path: as the argument.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: InferenceSettings,
        device: torch.device,
        info: DatasetInfo,
        max_offset: float | None,
        path: Path,
    ):
        super().__init__(model, settings, device)
        self.info = info
        self.max_offset = max_offset
        self.path = path

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        config: str | Path | None = None,
        device: str = "auto",
        runtime: str | None = None,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
        long_side: int | str | None = None,
        overrides: Sequence[str] = (),
    ) -> Predictor:
        """The predictor for a file of weights or an exported file.

        Args:
            path: ``best.pth`` or another file written by training, which carries its configuration and classes; or one
                written by ``ovenet export``.
            config: an experiment file, for weights that carry no configuration, such as published ones; it replaces
                the one in the file.
            device: ``auto``, ``cpu`` or ``cuda``.
            runtime: ``torch``, ``onnxruntime``, ``openvino``, or ``auto``, the fastest one installed for the CPU; None
                is ``TEST.RUNTIME``, or the usual runtime of an exported file.
            scales: None is ``TEST.SCALE_LIST``.
            flip: average with the flipped image; None is ``TEST.FLIP_TEST``.
            long_side: long side of the image at scale 1, in pixels, run in windows of ``TEST.IMAGE_SIZE``; ``native``
                is each image's own; None follows the dataset's evaluation.
            overrides: ``KEY VALUE …`` as on a command line.

        Raises:
            UserError: the file cannot be read safely, carries no configuration, or does not fit the configuration.
        """
        if runtime is not None:
            overrides = [*overrides, "TEST.RUNTIME", runtime]
        trained = load_model(path, config, overrides, runtime=runtime)
        settings = trained.settings
        model, place = trained.on(choose_device("cpu" if is_exported(path) else device))
        if scales is not None:
            if not scales or not all(0 < scale <= LARGEST_SCALE for scale in scales):
                raise UserError(
                    f"scales are {list(scales)}; expected at least one, all above 0 and at most {LARGEST_SCALE}"
                )
            settings = replace(settings, scales=tuple(scales))
        if flip is not None:
            settings = replace(settings, flip=flip)
        if long_side is not None:
            rule = settings.rule if settings.rule.resize == "long_side" else LONG_SIDE
            settings = replace(settings, base_size=_base_size(long_side), rule=rule, base_box=None, first_rule=None)
        return cls(model, settings, place, trained.info, trained.network.max_offset, Path(path))

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None, **options: Any) -> Predictor:
        """The predictor for a folder written by `save_pretrained`.

        Args:
            name: the folder, or the model's name on the Hugging Face hub.
            revision: branch, tag or commit on the hub.
            options: see `from_checkpoint`.

        Raises:
            UserError: the model is not found, or its weights are not the ones saved.
        """
        folder = Path(name) if Path(name).is_dir() else download(str(name), revision)
        return cls.from_checkpoint(weights_of_folder(folder), **options)

    def save_pretrained(self, folder: str | Path, *, half: bool = False, card: str = "") -> None:
        """Writes a folder for the Hugging Face hub, see `ovenet.predictor.sharing.save_folder`.

        Raises:
            UserError: the folder is not empty, or the model came from an exported file.
        """
        if is_exported(self.path):
            raise UserError(f"{self.path}: an exported file; save the weights that it was made from")
        save_folder(self.path, Path(folder), half=half, card=card)

    @overload
    def __call__(self, images: ImageLike, *, scores: bool = ..., probability: bool = ...) -> SegResult: ...

    @overload
    def __call__(
        self, images: list[_Image] | tuple[_Image, ...], *, scores: bool = ..., probability: bool = ...
    ) -> list[SegResult]: ...

    @overload
    def __call__(
        self, images: Iterator[ImageLike], *, scores: bool = ..., probability: bool = ...
    ) -> Iterator[SegResult]: ...

    def __call__(self, images: Any, *, scores: bool = False, probability: bool = False) -> Any:
        """Predicts one image, a list of images, or the images of an iterator one by one.

        Args:
            images: a file or a Pillow image, which is turned upright by its EXIF tag, as is the result (see
                `ovenet.data.files.read_image`); an array ``(H, W, 3)`` RGB, ``(H, W)`` or ``(H, W, 4)``, uint8 or
                uint16 (its upper 8 bits are used); or a tensor ``(3, H, W)`` or ``(1, H, W)`` RGB, uint8 or floats
                in [0, 1]. A list or a tuple of these, or a tensor ``(B, 3, H, W)``, gives a list; any other iterable
                gives a generator, which reads the next image while it predicts one, and keeps none.
            scores: return the probabilities of all classes too, ``4 K`` bytes a pixel.
            probability: return the probability of the predicted class too.

        Raises:
            UserError: a file cannot be read, or an item is not an image.
        """
        if isinstance(images, Tensor) and images.ndim == 4:
            images = list(images)
        if isinstance(images, (np.ndarray, Image.Image, Tensor, str, Path)):
            return self._result(as_image(images), scores=scores, probability=probability)
        if isinstance(images, (list, tuple)):
            return list(self._results(images, scores=scores, probability=probability))
        if isinstance(images, Iterable):
            return self._results(images, scores=scores, probability=probability)
        raise UserError(f"{type(images).__name__} is no image; expected a path, a Pillow image, an array or a tensor")

    def _results(self, images: Iterable[ImageLike], *, scores: bool, probability: bool) -> Iterator[SegResult]:
        source = iter(images)

        def read() -> np.ndarray | None:
            for image in source:
                return as_image(image)
            return None

        with ThreadPoolExecutor(1, thread_name_prefix="images") as pool:
            waiting = pool.submit(read)
            while (image := waiting.result()) is not None:
                waiting = pool.submit(read)
                yield self._result(image, scores=scores, probability=probability)

    def _result(self, image: np.ndarray, *, scores: bool, probability: bool) -> SegResult:
        has_seed = self.max_offset is not None
        side = max(image.shape[:2]) if scores else 0
        prediction = self.predict(image, names=("fused",), seeds=has_seed, score_side=side, probability=probability)
        seed = confidence = None
        if prediction.offset is not None and prediction.confidence is not None:
            seed = seed_pixels(prediction.offset.cpu().numpy())
            confidence = prediction.confidence[0].cpu().numpy()
        return SegResult(
            image=image,
            mask=prediction.labels["fused"].cpu().numpy(),
            info=self.info,
            confidence=confidence,
            seed=seed,
            scores=self._probabilities(prediction.scores["fused"]).cpu().numpy() if scores else None,
            probability=prediction.probability["fused"].cpu().numpy() if probability else None,
        )

    def _probabilities(self, scores: Tensor) -> Tensor:
        """Probabilities ``(K, H, W)``; scores of ``exp`` are sums of exponentials, and normalised here."""
        return scores / scores.sum(dim=0) if self.settings.score == "exp" else scores

    def __repr__(self) -> str:
        classes = f"{len(self.info.class_names)} classes of {self.info.name}"
        seed = "no seed" if self.max_offset is None else f"seeds within {self.max_offset:g}"
        scales = ", ".join(f"{scale:g}" for scale in self.settings.scales)
        return f"Predictor({self.path.stem}: {classes}, {seed}, scales {scales}, {self.device})"


def load(source: str | Path, **options: Any) -> Predictor:
    """A trained model, ready to predict.

        mask = ovenet.load("camvid-lite0")("photo.jpg").mask

    Args:
        source: the folder of a run, a file of weights, a file written by ``ovenet export``, or the name of a bundled
            model (``pretrained_models``).
        options: see `Predictor.from_checkpoint`.

    Raises:
        UserError: the folder, file or model does not exist; and as `Predictor.from_checkpoint`.
    """
    return Predictor.from_checkpoint(find_weights(source), **options)


def seed_pixels(offset: np.ndarray) -> np.ndarray:
    """Positions of the seeds, ``(H, W, 2)`` float32 ``(x, y)`` in pixels.

    Args:
        offset: ``(2, H, W)``, in normalised units.
    """
    height, width = offset.shape[1:]
    x = np.arange(width, dtype=np.float32) + offset[0] * ((width - 1) / 2)
    y = np.arange(height, dtype=np.float32)[:, None] + offset[1] * ((height - 1) / 2)
    return np.stack((x.clip(0, width - 1), y.clip(0, height - 1)), axis=-1)


def as_image(image: ImageLike) -> np.ndarray:
    """Any image as ``(H, W, 3)`` uint8 RGB, see `Predictor.__call__`."""
    if isinstance(image, (str, Path)):
        if "://" in str(image):
            raise UserError(f"{image}: addresses are not fetched; download the image, and name its file")
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return to_rgb(image, "the image")
    if isinstance(image, Tensor):
        image = _tensor_as_array(image)
    if not isinstance(image, np.ndarray):
        raise UserError(f"{type(image).__name__} is no image; expected a path, a Pillow image, an array or a tensor")
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))):
        raise UserError(
            f"an array of shape {image.shape} and type {image.dtype}; expected (H, W), (H, W, 3) or (H, W, 4), "
            "uint8 or uint16"
        )
    if not image.size:
        raise UserError(f"an array of shape {image.shape}; expected at least one pixel")
    if image.ndim == 2 or image.shape[2] == 1:
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(image[..., :3])


def _tensor_as_array(image: Tensor) -> np.ndarray:
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise UserError(f"a tensor of shape {tuple(image.shape)}; expected (3, H, W) or (1, H, W)")
    if image.is_floating_point():
        low, high = (float(x) for x in image.aminmax()) if image.numel() else (0.0, 1.0)
        if not (low >= 0 and high <= 1):
            raise UserError(f"a tensor of real numbers from {low:g} to {high:g}; expected 0 to 1, not normalised")
        image = image.float().mul(255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise UserError(f"a tensor of type {image.dtype}; expected uint8, or real numbers from 0 to 1")
    return np.ascontiguousarray(image.detach().cpu().permute(1, 2, 0).numpy())


def _base_size(long_side: int | str) -> int | None:
    if long_side == NATIVE:
        return None
    if not str(long_side).isdigit() or int(long_side) < 1:
        raise UserError(f"the long side is {long_side!r}; expected a number of pixels, or {NATIVE!r}")
    return int(long_side)
