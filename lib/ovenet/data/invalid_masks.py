"""Masks of the pixels whose content people cannot tell for certain, which lie beside the label files (ACDC)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ovenet.data.files import opened, require_file
from ovenet.data.info import DatasetInfo
from ovenet.errors import UserError

_ROLE = "invalid mask"
_ONE_CHANNEL = ("1", "L", "P")
_VALID, _INVALID = 0, 1


def mask_name(label_name: str, info: DatasetInfo) -> str:
    """Path of a label's mask, relative to the dataset's folder like the label's.

    Raises:
        UserError: no pair of `DatasetInfo.invalid_masks` fits the label's name.
    """
    path = PurePosixPath(label_name)
    stem = path.with_suffix("").as_posix()
    for text, other in info.invalid_masks:
        before, found, after = stem.rpartition(text)
        if found:
            return f"{before}{other}{after}{path.suffix}"
    texts = " or ".join(text for text, _ in info.invalid_masks)
    raise UserError(
        f"{label_name}: its mask of invalid pixels is not known, since its path has no {texts}; correct invalid_masks "
        "in dataset.json, or the list"
    )


def require_masks(folder: Path, label_names: Sequence[str], info: DatasetInfo) -> None:
    """Refuses labels without a mask before hours of prediction.

    Args:
        folder: of the dataset.
        label_names: paths relative to it.
        info: the dataset.

    Raises:
        UserError: the dataset has no such masks, or one does not exist; names the first.
    """
    if not info.invalid_masks:
        raise UserError(
            f"{info.name} has no masks of invalid pixels, which TEST.UNCERTAINTY needs; set it to none, or name the "
            "masks as invalid_masks in dataset.json"
        )
    names = [mask_name(name, info) for name in label_names]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder / missing[0]}: the {_ROLE} does not exist ({len(missing)} of {len(names)} do not); unpack it "
            "beside its label, or set TEST.UNCERTAINTY to none"
        )


def read_invalid_mask(path: Path, size: tuple[int, ...]) -> np.ndarray:
    """Reads a mask: 0 is valid, 1 is invalid.

    Args:
        path: the file.
        size: ``(H, W)`` of the label.

    Returns:
        ``(H, W)`` bool, true where a pixel is invalid.

    Raises:
        UserError: the file is missing or unreadable, has several channels or another size, or holds other values.
    """
    require_file(path, _ROLE)
    with opened(path, _ROLE) as image:
        if image.mode not in _ONE_CHANNEL:
            raise UserError(f"{path}: the {_ROLE} is of mode {image.mode}; expected one channel of 8 bits")
        values = np.asarray(image).astype(np.uint8)
    if values.shape != size:
        raise UserError(
            f"{path}: the {_ROLE} is {values.shape[1]}x{values.shape[0]} pixels, its label {size[1]}x{size[0]}"
        )
    if values.max(initial=_VALID) > _INVALID:
        foreign = int(values[values > _INVALID][0])
        raise UserError(
            f"{path}: the {_ROLE} holds the value {foreign}; expected {_VALID} (valid) and {_INVALID} (invalid)"
        )
    return values.astype(bool)
