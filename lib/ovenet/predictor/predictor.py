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

from ovenet.builders.inference import inference_settings
from ovenet.builders.loading import load_model
from ovenet.data.description import Classes
from ovenet.data.info import LONG_SIDE, DatasetInfo
from ovenet.deployment.about import is_exported
from ovenet.errors import UserError
from ovenet.inference.images import RGB, ImageLike, as_image
from ovenet.inference.inferencer import InferenceSettings, SlidingWindowInferencer
from ovenet.inference.inputs import find_inputs, is_one_image, read_inputs
from ovenet.inference.result import SegResult
from ovenet.inference.settings import LARGEST_SCALE
from ovenet.models import Segmentor
from ovenet.models.segmentor import unwrapped
from ovenet.predictor.sharing import (
    classes_in_memory,
    config_in_memory,
    download,
    save_folder,
    save_model,
    weights_of_folder,
)
from ovenet.predictor.sources import find_weights, title_of
from ovenet.utils.distributed import choose_device

NATIVE = "native"
_IN_MEMORY = Path("model in memory")
_Image = TypeVar("_Image", bound=ImageLike)


class Predictor(SlidingWindowInferencer):
    """Predicts the classes of any image, without the dataset that the model was trained on.

        predictor = ovenet.load("best.pth")
        result = predictor("photo.jpg")
        result.mask, result.class_share, result.show()

    A model in memory needs its classes alone, and stays where it is. Each call puts it into evaluation mode:

        predictor = ovenet.Predictor(model, classes=["wall", "window"])

    Args:
        model: a segmentor.
        settings: how images are run through it; None follows the configuration that the model came with, or runs images
            at their own size, in windows of 2048x1024 pixels where they are larger.
        device: device of the model; None asks its weights.
        info: the classes; None for `classes`.
        max_offset: longest offset per axis, in normalised units (the image spans 2); None for the model's own.
        path: file of the model; None for a model in memory.
        classes: names of the classes, see `ovenet.data.description.describe_classes`; None for those that the model
            came with.
        scales, flip, long_side: see `from_checkpoint`.

    Attributes:
        info: names, colours and label ids of the classes, in the order of the train ids.
        max_offset: as the argument; None for a model without a seed.
        path: as the argument.

    Raises:
        UserError: the model has no classes, or another number of them.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: InferenceSettings | None = None,
        device: torch.device | None = None,
        info: DatasetInfo | None = None,
        max_offset: float | None = None,
        path: Path | None = None,
        *,
        classes: Classes | None = None,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
        long_side: int | str | None = None,
    ):
        if info is None:
            info = classes_in_memory(unwrapped(model), classes)
        if settings is None:
            segmentor = unwrapped(model)
            settings = inference_settings(config_in_memory(segmentor), info, segmentor.normalization)
            settings = replace(settings, cuda_graph=False)  # which would not know of weights that are loaded later
        settings = _changed(settings, scales=scales, flip=flip, long_side=long_side)
        super().__init__(model, settings, device or next(model.parameters()).device)
        self.info = info
        self.max_offset = max_offset if path is not None else unwrapped(model).max_offset
        self.path = _IN_MEMORY if path is None else path

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
            config: an experiment file, for weights that carry no configuration; it replaces the one in the file. Files
                under the names that they were published with need none.
            device: see `ovenet.utils.distributed.choose_device`.
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
        settings = _changed(settings, scales=scales, flip=flip, long_side=long_side)
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
        if self.path is _IN_MEMORY:
            save_model(unwrapped(self.model), Path(folder), classes=self.info, half=half, card=card)
        else:
            save_folder(self.path, Path(folder), half=half, card=card)

    @overload
    def __call__(self, images: str | Path, *, scores: bool = ..., probability: bool = ...) -> Any: ...

    @overload
    def __call__(
        self, images: np.ndarray | Image.Image | Tensor | bytes, *, scores: bool = ..., probability: bool = ...
    ) -> SegResult: ...

    @overload
    def __call__(
        self, images: list[_Image] | tuple[_Image, ...], *, scores: bool = ..., probability: bool = ...
    ) -> list[SegResult]: ...

    @overload
    def __call__(
        self, images: Iterator[ImageLike], *, scores: bool = ..., probability: bool = ...
    ) -> Iterator[SegResult]: ...

    def __call__(self, images: Any, *, scores: bool = False, probability: bool = False) -> Any:
        """Predicts whatever ``ovenet infer`` takes, images in memory, or an iterable of them.

        Args:
            images: a file, the bytes of one, or a Pillow image, which is turned upright by its EXIF tag, as is the
                result (see `ovenet.data.files.read_image`); an array ``(H, W, 3)`` RGB, ``(H, W)`` or ``(H, W, 4)``,
                uint8 or uint16 (its upper 8 bits are used); or a tensor ``(3, H, W)`` or ``(1, H, W)`` RGB, uint8 or
                floats in [0, 1]. One image gives one result. A folder, a pattern with ``*``, a video, ``camera:0``, or
                any other iterable of images gives an iterator, which reads the next image while it predicts one, and
                keeps none; a file of a folder that cannot be read is skipped with a warning. A list or a tuple of
                images, or a tensor ``(B, 3, H, W)``, gives a list. For a model of images with ``C`` other than 3
                channels, arrays ``(H, W, C)`` or tensors alone.
            scores: return the probabilities of all classes too, ``4 K`` bytes a pixel.
            probability: return the probability of the predicted class too.

        Raises:
            UserError: a file cannot be read, or an item is not an image; it is named as what it is.
        """
        if isinstance(images, Tensor) and images.ndim == 4:
            images = list(images)
        if isinstance(images, (str, Path)) and self._num_channels == RGB and "://" not in str(images):
            inputs = find_inputs([str(images)])
            if not is_one_image(inputs, str(images)):
                return self._results(read_inputs(inputs), scores=scores, probability=probability)
        if isinstance(images, (np.ndarray, Image.Image, Tensor, bytes, bytearray, memoryview, str, Path)):
            return self._result(as_image(images, self._num_channels), scores=scores, probability=probability)
        if isinstance(images, (list, tuple)):
            return list(self._results((("", image) for image in images), scores=scores, probability=probability))
        if isinstance(images, Iterable):
            return self._results((("", image) for image in images), scores=scores, probability=probability)
        raise UserError(
            f"{type(images).__name__} is no image; expected a path, bytes of a file, a Pillow image, an array or a "
            "tensor"
        )

    @property
    def _num_channels(self) -> int:
        return len(self.settings.normalization.mean)

    def _results(self, images: Iterable[tuple[str, Any]], *, scores: bool, probability: bool) -> Iterator[SegResult]:
        """Results of images with names, which are read one ahead."""
        source = iter(images)

        def read() -> tuple[str, np.ndarray] | None:
            for name, image in source:
                return name, as_image(image, self._num_channels)
            return None

        with ThreadPoolExecutor(1, thread_name_prefix="images") as pool:
            waiting = pool.submit(read)
            while (item := waiting.result()) is not None:
                waiting = pool.submit(read)
                yield self._result(item[1], scores=scores, probability=probability, name=item[0])

    def _result(self, image: np.ndarray, *, scores: bool, probability: bool, name: str = "") -> SegResult:
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
            name=name,
        )

    def _probabilities(self, scores: Tensor) -> Tensor:
        """Probabilities ``(K, H, W)``; scores of ``exp`` are sums of exponentials, and normalised here."""
        return scores / scores.sum(dim=0) if self.settings.score == "exp" else scores

    def __repr__(self) -> str:
        classes = f"{len(self.info.class_names)} classes of {self.info.name}"
        seed = "no seed" if self.max_offset is None else f"seeds within {self.max_offset:g}"
        scales = ", ".join(f"{scale:g}" for scale in self.settings.scales)
        return f"Predictor({title_of(self.path)}: {classes}, {seed}, scales {scales}, {self.device})"


def load(source: str | Path | nn.Module, **options: Any) -> Predictor:
    """A trained model, ready to predict.

        mask = ovenet.load("camvid-lite0")("photo.jpg").mask

    Args:
        source: a model in memory, for which the options are those of `Predictor`; or the folder of a run, a file of
            weights, a file written by ``ovenet export``, or a name of ``ovenet.list_models(pretrained=True)``, whose
            file is downloaded once.
        options: see `Predictor.from_checkpoint`.

    Raises:
        UserError: the folder, file or model does not exist; and as `Predictor.from_checkpoint`.
    """
    if isinstance(source, nn.Module):
        return Predictor(source, **options)
    return Predictor.from_checkpoint(find_weights(source), **options)


def from_pretrained(name: str | Path, *, revision: str | None = None) -> Segmentor:
    """A model in memory, for a training loop of one's own; `ovenet.load` gives the predictor.

        model = ovenet.from_pretrained("town")
        model.metadata["class_names"], model.normalization

    Args:
        name: a folder written by `save_pretrained`, any other source of `ovenet.load`, or the model's name on the
            Hugging Face hub.
        revision: branch, tag or commit on the hub.

    Returns:
        The model on the CPU in evaluation mode, with the weights, classes and normalisation that were saved.

    Raises:
        UserError: the model is not found, or its weights are not the ones saved.
    """
    is_here = Path(name).exists() or "/" not in str(name)
    path = find_weights(name) if is_here else weights_of_folder(download(str(name), revision))
    return load_model(path).model


def save_pretrained(model: Segmentor, folder: str | Path, **options: Any) -> None:
    """Writes a model to a folder in the form of the Hugging Face hub; ``model.save_pretrained(folder)`` is the same.

        model.save_pretrained("town", classes=["wall", "window"])

    Args:
        model: built by `ovenet.create_model` or read by `from_pretrained`.
        folder: a new or empty folder.
        options: ``classes``, ``half``, ``card``, see `ovenet.predictor.sharing.save_model`.

    Raises:
        UserError: the folder is not empty, or the model has no classes, or is composed of parts without names.
        OSError: a file cannot be written.
    """
    save_model(unwrapped(model), Path(folder), **options)


def _changed(
    settings: InferenceSettings, *, scales: Sequence[float] | None, flip: bool | None, long_side: int | str | None
) -> InferenceSettings:
    """The settings with those that are not None, see `Predictor.from_checkpoint`."""
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
    return settings


def seed_pixels(offset: np.ndarray) -> np.ndarray:
    """Positions of the seeds, ``(H, W, 2)`` float32 ``(x, y)`` in pixels.

    Args:
        offset: ``(2, H, W)``, in normalised units.
    """
    height, width = offset.shape[1:]
    x = np.arange(width, dtype=np.float32) + offset[0] * ((width - 1) / 2)
    y = np.arange(height, dtype=np.float32)[:, None] + offset[1] * ((height - 1) / 2)
    return np.stack((x.clip(0, width - 1), y.clip(0, height - 1)), axis=-1)


def _base_size(long_side: int | str) -> int | None:
    if long_side == NATIVE:
        return None
    if not str(long_side).isdigit() or int(long_side) < 1:
        raise UserError(f"the long side is {long_side!r}; expected a number of pixels, or {NATIVE!r}")
    return int(long_side)
