"""Images and masks from folders, lists or memory, for a training loop of one's own.

Shapes: ``C`` channels, ``H W`` image size, or that of the transformed sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from ovenet.data.albumentations import AlbumentationsTransform, is_albumentations
from ovenet.data.augmentation import apply_changes
from ovenet.data.description import Classes, describe_classes
from ovenet.data.files import IMAGE_SUFFIXES, read_image
from ovenet.data.info import Color, DatasetInfo
from ovenet.data.labels import LabelDecoder
from ovenet.data.masks import Mask, MaskForm
from ovenet.data.transforms import IMAGENET, EvalTransform, TrainTransform, normalize_images
from ovenet.errors import UserError, first_of
from ovenet.structures import Normalization, Sample
from ovenet.utils.logging import get_logger
from ovenet.utils.seeding import sample_rng

Source = str | Path | np.ndarray
Sources = str | Path | Sequence[Source]
_NUM_LOOKED_AT = 100  # images whose names are compared with those of all masks
_MAX_NAMED = 3
_NUM_PLAIN_CHANGES = 2  # flip and brightness, which do not look at colours


class SegmentationDataset(Dataset[Any]):
    """Normalised images and class ids, which a plain `torch.utils.data.DataLoader` stacks.

        dataset = ovenet.SegmentationDataset("photos/", "masks/", classes=["wall", "window"])
        image, labels = dataset[0]      # (C, H, W) float32, (H, W) int64

    Args:
        images: a folder, searched at any depth; or a list of files, or of arrays ``(H, W, C)`` uint8, RGB or other
            channels.
        masks: a folder, in which each mask has the name of its image and, if all of them do, an ending such as
            ``_mask``; or a list in the order of the images, of files or of arrays ``(H, W)`` or, with colours,
            ``(H, W, 3)``; None for images alone.
        classes: see `ovenet.data.description.describe_classes`.
        transform: `train_transform` or `eval_transform`, a pipeline of Albumentations, or any function of a
            `ovenet.structures.Sample` and a `numpy.random.Generator` to a sample; None changes nothing.
        normalization: the model's, ``model.normalization``.
        ignore_label: label of pixels that do not count.
        ignore: ids and colours in the masks that do not count.
        seed: the augmentation of a sample is determined by seed, epoch (see `set_epoch`) and index, in every process
            and worker. None draws from torch's random generator, anew in every epoch.

    Attributes:
        info: the classes.

    Raises:
        UserError: there is nothing to read, or images and masks do not pair.
    """

    def __init__(
        self,
        images: Sources,
        masks: Sources | None = None,
        *,
        classes: Classes,
        transform: Callable[..., Any] | None = None,
        normalization: Normalization = IMAGENET,
        ignore_label: int = 255,
        ignore: Sequence[int | Color] = (255,),
        seed: int | None = None,
    ):
        self.info = describe_classes(classes, ignore=ignore)
        self.pairs = _pairs(images, masks)
        self.normalization = normalization
        self.ignore_label = ignore_label
        self.seed = seed
        self._decoder = LabelDecoder(self.info, ignore_label)
        self._transform = _prepared(transform, self.info, normalization, ignore_label)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by workers that stay

    def __len__(self) -> int:
        return len(self.pairs)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the augmentation of an epoch, as `torch.utils.data.DistributedSampler` its order; needs `seed`."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> Any:
        """Image ``(C, H, W)`` float32 and labels ``(H, W)`` int64; without masks, the image alone.

        Raises:
            UserError: a file cannot be read, or does not fit its image or the model.
        """
        if get_worker_info() is not None and cv2.getNumThreads() > 1:
            cv2.setNumThreads(0)  # a forked worker has none of the threads that its parent started, and would wait
        sample = self.sample(index)
        if self._transform is not None and sample.labels is not None:
            sample = apply_changes(self._checked(self._transform(sample, self._rng(index))))
        pixels = torch.from_numpy(np.ascontiguousarray(sample.image)).permute(2, 0, 1)
        image = normalize_images(pixels.unsqueeze(0), self.normalization)[0].contiguous()
        return image if sample.labels is None else (image, torch.from_numpy(sample.labels.astype(np.int64)))

    def sample(self, index: int) -> Sample:
        """Pixels and labels as they were read: without transform and normalisation.

        Raises:
            UserError: see `__getitem__`.
        """
        source, mask = self.pairs[index]
        image, name = self._image(source, index), _name(source, f"image {index}")
        if mask is None:
            return Sample(image, None, name)
        labels = self._labels(mask, index)
        if labels.shape != image.shape[:2]:
            raise UserError(
                f"{_name(mask, f'mask {index}')}: the mask is {labels.shape[1]}x{labels.shape[0]} pixels, its image "
                f"{name} {image.shape[1]}x{image.shape[0]}; check that they are paired rightly"
            )
        return Sample(image, labels, name)

    def _image(self, source: Source, index: int) -> np.ndarray:
        num_channels = len(self.normalization.mean)
        if not isinstance(source, np.ndarray):
            image = read_image(Path(source), upright=self.info.upright)
        else:
            image = source[..., None] if source.ndim == 2 else source
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != num_channels:
            raise UserError(
                f"{_name(source, f'image {index}')}: {image.shape} {image.dtype}; expected (H, W, {num_channels}) "
                "uint8, with as many channels as the normalization has"
            )
        return image

    def _labels(self, source: Source, index: int) -> np.ndarray:
        if not isinstance(source, np.ndarray):
            return self._decoder.read(Path(source))
        is_color = source.ndim == 3 and source.shape[2] == 3 and source.dtype == np.uint8
        if not is_color and (source.ndim != 2 or source.dtype.kind not in "iu"):
            raise UserError(
                f"mask {index}: {source.shape} {source.dtype}; expected integers (H, W), or colours (H, W, 3) uint8"
            )
        form = MaskForm("array", "RGB" if is_color else "L", 8 * source.dtype.itemsize, source.shape[:2])
        return self._decoder.decode_known(Mask(form, source), Path(f"mask {index}"))

    def _rng(self, index: int) -> np.random.Generator:
        if self.seed is not None:
            return sample_rng(self.seed, int(self._epoch), index)
        return np.random.default_rng(int(torch.randint(2**63 - 1, ())))

    def _checked(self, sample: Sample) -> Sample:
        """A transformed sample; its colours can only be changed where it has any."""
        changes_colors = sample.changes is not None and len(sample.changes) > _NUM_PLAIN_CHANGES
        if changes_colors and sample.image.shape[2] != 3:
            raise UserError(
                f"colors=True changes RGB, and the images have {sample.image.shape[2]} channels; leave it away"
            )
        return sample


def _name(source: Source, otherwise: str) -> str:
    return otherwise if isinstance(source, np.ndarray) else str(source)


def _prepared(
    transform: Callable[..., Any] | None, info: DatasetInfo, normalization: Normalization, ignore_label: int
) -> Callable[..., Sample] | None:
    """The transform with what it has to know about the dataset."""
    if isinstance(transform, TrainTransform):
        return replace(
            transform,
            settings=replace(transform.settings, ignore_label=ignore_label),
            flip_table=info.flip_table() if info.flip_pairs else None,
            pad_color=normalization.pad_color,
        )
    if isinstance(transform, EvalTransform):
        return replace(transform, ignore_label=ignore_label, pad_color=normalization.pad_color)
    return AlbumentationsTransform(transform) if is_albumentations(transform) else transform


def _pairs(images: Sources, masks: Sources | None) -> list[tuple[Source, Source | None]]:
    """Images with their masks.

    Raises:
        UserError: there are none, or they do not pair.
    """
    if masks is None:
        found = list(_by_key(images).values()) if isinstance(images, (str, Path)) else list(images)
        pairs: list[tuple[Source, Source | None]] = [(image, None) for image in found]
    elif isinstance(images, (str, Path)) and isinstance(masks, (str, Path)):
        pairs = list(_pairs_of_folders(Path(images), Path(masks)))
    elif isinstance(images, (str, Path)) or isinstance(masks, (str, Path)):
        raise UserError("images and masks: one is a folder, the other a list; give two folders, or two lists")
    elif len(images) != len(masks):
        raise UserError(f"images and masks: {len(images)} images and {len(masks)} masks; expected one mask per image")
    else:
        pairs = list(zip(images, masks, strict=True))
    if not pairs:
        raise UserError("images: an empty list; expected at least one image")
    return pairs


def _pairs_of_folders(images: Path, masks: Path) -> list[tuple[Source, Source | None]]:
    if images.resolve() == masks.resolve():
        raise UserError(f"{images}: images and masks in one folder; give two folders, or two lists of files")
    by_name, masks_by_name = _by_key(images), _by_key(masks)
    looked_at = list(by_name)[:_NUM_LOOKED_AT]
    endings = Counter(mask[len(name) :] for name in looked_at for mask in masks_by_name if mask.startswith(name))
    ending = max(endings, key=lambda one: (endings[one], -len(one)), default="")
    lonely = [name for name in by_name if name + ending not in masks_by_name]
    if lonely:
        raise UserError(
            f"{len(lonely)} of {len(by_name)} images in {images} have no mask in {masks} (not: "
            f"{first_of(lonely, _MAX_NAMED)}); a mask has the name of its image, or that and an ending such as _mask"
        )
    unused = len(masks_by_name) - len(by_name)
    if unused:
        get_logger().warning("%s: %d masks have no image in %s, and are left out", masks, unused, images)
    return [(path, masks_by_name[name + ending]) for name, path in by_name.items()]


def _by_key(folder: str | Path) -> dict[str, Source]:
    """The images of a folder by their path in it without suffix.

    Raises:
        UserError: there is no such folder, there is none in it, or two have the same name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    found: dict[str, Source] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            key = path.relative_to(folder).with_suffix("").as_posix()
            if key in found:
                raise UserError(f"{path} and {found[key]}: two images of one name; rename or remove one of them")
            found[key] = path
    if not found:
        raise UserError(f"{folder}: a folder without images")
    return found
