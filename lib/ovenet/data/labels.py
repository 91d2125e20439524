"""Label files: ids or colours on disk, train ids in memory, and messages that name the likely cause."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ovenet.data.files import open_image
from ovenet.data.info import INVALID, DatasetInfo
from ovenet.errors import UserError

_ID_MODES = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L", "I;16N")
JPEG = (".jpg", ".jpeg")


class LabelDecoder:
    """Turns label files of one dataset into train ids.

    Args:
        info: the dataset.
        ignore_label: train id of ignored pixels.
    """

    def __init__(self, info: DatasetInfo, ignore_label: int):
        self.info = info
        self.table = info.train_id_table(ignore_label)
        colors = np.array([*info.palette, *info.ignored_colors], dtype=np.uint8)
        train_ids = [*range(info.num_classes), *[ignore_label] * len(info.ignored_colors)]
        codes = _color_codes(colors)
        order = np.argsort(codes)
        self._color_codes, self._color_train_ids = codes[order], np.array(train_ids, dtype=np.int16)[order]

    def read(self, path: Path) -> np.ndarray:
        """A label file as train ids.

        Args:
            path: an image of ids (one channel, or a palette's indices) or, where the dataset says so, of colours.

        Returns:
            ``(H, W)`` int16.

        Raises:
            UserError: the file is missing, no image or cut off, or holds an id or a colour that is no class.
        """
        image = open_image(path, "label")
        if self.holds_colors(image):
            return self.colors_to_train_ids(np.asarray(image.convert("RGB")), path)
        return self.ids_to_train_ids(label_ids(image, path, self.info), path)

    def holds_colors(self, image: Image.Image) -> bool:
        """Whether a label image is to be read by its colours rather than as ids."""
        return self.info.label_format == "colors" or (
            self.info.label_format == "either" and image.mode not in _ID_MODES
        )

    def ids_to_train_ids(self, ids: np.ndarray, path: Path) -> np.ndarray:
        """Label file ids to train ids.

        Args:
            ids: ``(H, W)``, any integers.
            path: the file, for the message.

        Returns:
            ``(H, W)`` int16.

        Raises:
            UserError: an id is none of the dataset's; names the value and the likely cause.
        """
        in_range = ids if ids.dtype == np.uint8 else np.clip(ids, 0, 255).astype(np.uint8)
        train_ids = self.table[in_range]
        wrong = (train_ids == INVALID) | (in_range != ids)
        if wrong.any():
            values = np.unique(ids[wrong])
            raise UserError(
                f"{path}: label value {values[0]} is no class of {self.info.name}; "
                f"{likely_cause(values, self.info, path)}"
            )
        return train_ids

    def colors_to_train_ids(self, pixels: np.ndarray, path: Path) -> np.ndarray:
        """Colours to train ids.

        Args:
            pixels: ``(H, W, 3)`` uint8 RGB.
            path: the file, for the message.

        Returns:
            ``(H, W)`` int16.

        Raises:
            UserError: a colour is none of the dataset's; names it.
        """
        train_ids, wrong = self._look_up(pixels)
        if wrong.any():
            color = [int(channel) for channel in pixels[wrong][0]]
            cause = (
                "JPEG changes colours: save masks as PNG"
                if path.suffix.lower() in JPEG
                else "add it to dataset.json, as a class or under 'ignore', or save the mask without smoothing"
            )
            raise UserError(
                f"{path}: colour {color} is no class of {self.info.name} ({int(wrong.sum())} pixels); {cause}"
            )
        return train_ids

    def count_colors(self, pixels: np.ndarray) -> tuple[dict[int, int], dict[tuple[int, int, int], int]]:
        """What colours an image holds.

        Args:
            pixels: ``(H, W, 3)`` uint8 RGB.

        Returns:
            Pixels of each train id, and of each colour that is none of the dataset's.
        """
        train_ids, wrong = self._look_up(pixels)
        known = np.unique(train_ids[~wrong], return_counts=True)
        unknown = np.unique(pixels[wrong], axis=0, return_counts=True)
        return (
            {int(k): int(n) for k, n in zip(*known, strict=True)},
            {tuple(map(int, color)): int(n) for color, n in zip(*unknown, strict=True)},
        )

    def _look_up(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Train ids ``(H, W)``, and which of them mean nothing since the colour is not known."""
        codes = _color_codes(pixels)
        position = np.searchsorted(self._color_codes, codes).clip(max=len(self._color_codes) - 1)
        return self._color_train_ids[position], self._color_codes[position] != codes


def label_ids(image: Image.Image, path: Path, info: DatasetInfo) -> np.ndarray:
    """Pixels of a label image as ids ``(H, W)``, uint8 or wider.

    Raises:
        UserError: it is a colour image.
    """
    if image.mode not in _ID_MODES:
        raise UserError(
            f"{path}: the label is a colour image ({image.mode}); {info.name} expects one channel of class ids. "
            "Convert it, or describe the data with its colours in a dataset.json"
        )
    ids = np.asarray(image)
    return ids.astype(np.uint8) if ids.dtype == bool else ids


def likely_cause(values: np.ndarray, info: DatasetInfo, path: Path) -> str:
    """Why a label file may hold ids that its dataset does not know, and what to do.

    Args:
        values: the unknown ids, sorted.
        info: the dataset.
        path: the file.
    """
    first, last = min(info.known_ids), max(info.known_ids)
    known = f"its ids are {first} to {last}"
    if info.ignored_ids:
        known += f", {info.ignored_ids[0] if len(info.ignored_ids) == 1 else 'the others'} ignored"
    if path.suffix.lower() in JPEG:
        return f"{known}. JPEG changes ids: save label files as PNG"
    if 255 in values and has_cityscapes_ids(info):
        return f"{known}. 255 marks ignored pixels in train id files: list the *_labelIds.png files instead"
    if 255 in values:
        return f"{known}. 255 may be a foreground mask or another tool's ignore value: map it to an id first"
    if values[0] == last_known_id(info) + 1 and len(values) == 1:
        return f"{known}. The labels may count from {first + 1}: subtract 1; or they have a class more than the dataset"
    if _has_train_ids(info) and values.max() <= 33:
        return (
            f"{known}. These look like another dataset's raw ids instead of train ids: convert them first "
            "(Cityscapes' *_labelTrainIds.png files hold train ids)"
        )
    return f"{known}. Check that the list names the label files of this dataset"


def last_known_id(info: DatasetInfo) -> int:
    """The highest id that means something, 255 left out where it only marks what is ignored."""
    return max((*info.known_ids, *(i for i in info.ignored_ids if i != 255)))


def has_cityscapes_ids(info: DatasetInfo) -> bool:
    """Whether the label files hold the label ids of Cityscapes, 7 to 33 with gaps."""
    return len(info.known_ids) == 19 and max(info.known_ids) == 33


def _has_train_ids(info: DatasetInfo) -> bool:
    return info.label_ids == tuple(range(info.num_classes))


def _color_codes(pixels: np.ndarray) -> np.ndarray:
    """``(..., 3)`` uint8 to one number per colour."""
    wide = pixels.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
