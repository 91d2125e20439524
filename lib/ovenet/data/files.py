"""Reading image, label and list files, with errors that name the file and the likely cause."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ovenet.data.catalog import INVALID, DatasetInfo

_BAD_IMAGE = (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError)


def read_image(path: Path) -> np.ndarray:
    """An image file as ``(H, W, 3)`` uint8 RGB; grey images are repeated, alpha is dropped.

    Raises:
        ValueError: the file is missing, no image, or cut off.
    """
    return np.asarray(_open(path, "image").convert("RGB"))


def read_label_ids(path: Path) -> np.ndarray:
    """A label file as ``(H, W)`` ids, uint8 or wider: single-channel or palette images.

    Raises:
        ValueError: the file is missing, no image, cut off, or a colour image.
    """
    image = _open(path, "label")
    if image.mode not in ("L", "P", "1", "I", "I;16"):
        raise ValueError(
            f"{path}: the label is a colour image ({image.mode}); expected one channel of class ids. "
            "A mask coded by colours must be converted to ids first"
        )
    ids = np.asarray(image)
    return ids.astype(np.uint8) if ids.dtype == bool else ids


def _open(path: Path, role: str) -> Image.Image:
    if not path.exists():
        raise ValueError(f"{path}: the {role} does not exist; check DATASET.ROOT and the list file")
    if path.is_dir():
        raise ValueError(f"{path}: the {role} is a directory; expected a file")
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except _BAD_IMAGE as error:
        raise ValueError(f"{path}: the {role} cannot be read ({' '.join(str(error).split())}); replace it") from error


def to_train_ids(ids: np.ndarray, table: np.ndarray, info: DatasetInfo, path: Path) -> np.ndarray:
    """Label file ids to train ids.

    Args:
        ids: ``(H, W)`` as read.
        table: ``(256,)``, see `DatasetInfo.train_id_table`.
        info: the dataset, for the message.
        path: the file, for the message.

    Returns:
        ``(H, W)`` int16.

    Raises:
        ValueError: an id is none of the dataset's; names the value and the likely cause.
    """
    in_range = ids if ids.dtype == np.uint8 else np.clip(ids, 0, 255).astype(np.uint8)
    train_ids = table[in_range]
    wrong = (train_ids == INVALID) | (in_range != ids)
    if wrong.any():
        values = np.unique(ids[wrong])
        raise ValueError(f"{path}: label value {values[0]} is no class of {info.name}; {_likely_cause(values, info)}")
    return train_ids


def _likely_cause(values: np.ndarray, info: DatasetInfo) -> str:
    known = f"its ids are {min(info.label_ids)} to {max(info.label_ids)}"
    if info.ignored_ids:
        known += f", {info.ignored_ids[0] if len(info.ignored_ids) == 1 else 'the others'} ignored"
    if info.layout == "cityscapes" and 255 in values:
        return f"{known}. 255 marks ignored pixels in train id files: list the *_labelIds.png files instead"
    if 255 in values:
        return f"{known}. 255 may be a foreground mask or another tool's ignore value: map it to an id first"
    if values.max() <= 33:
        return f"{known}. These look like another dataset's raw ids instead of train ids: convert them first"
    return f"{known}. Check that the list names the label files of this dataset"


def read_list(path: Path) -> list[tuple[str, str | None]]:
    """A list file: ``image [label]`` per line, separated by white space; empty lines are skipped.

    Returns:
        Pairs of paths as written.

    Raises:
        ValueError: the list is missing or empty, or a line has more than two entries.
    """
    if not path.is_file():
        raise ValueError(
            f"{path}: there is no such list file; write it with `python tools/prepare_data.py`, "
            "or set DATASET.TRAIN_SET / DATASET.TEST_SET"
        )
    pairs: list[tuple[str, str | None]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        entries = line.split()
        if len(entries) > 2:
            raise ValueError(f"{path}, line {number}: {len(entries)} entries; expected `image [label]`")
        if entries:
            pairs.append((entries[0], entries[1] if len(entries) == 2 else None))
    if not pairs:
        raise ValueError(f"{path}: the list is empty; expected `image [label]` per line")
    return pairs
