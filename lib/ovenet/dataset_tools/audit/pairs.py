"""Checks one image and its label: files, formats, sizes, and which ids the label holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ovenet.data.files import open_image, orientation_of, require_file
from ovenet.data.info import INVALID, DatasetInfo
from ovenet.data.labels import LabelDecoder, count_colors
from ovenet.data.masks import read_mask
from ovenet.dataset_tools.audit.reports import Finding, PairReport
from ovenet.errors import UserError

_TURNED = (5, 6, 7, 8)  # orientations that exchange width and height
_FEW_VALUES = 64  # a photograph has more grey levels or colours


def audit_pair(
    folder: Path, image_name: str, label_name: str | None, decoder: LabelDecoder, *, decode_image: bool = False
) -> PairReport:
    """Checks one image and its label; what is wrong with them is reported, never raised."""
    info, findings = decoder.info, []
    size, orientation = None, 1
    try:
        size, orientation, remarks = _check_image(folder / image_name, info, decode=decode_image)
        findings += [Finding(kind, False, message, (image_name,)) for kind, message in remarks]
    except UserError as error:
        findings.append(_unreadable(error, folder / image_name, image_name))
    id_pixels: dict[int, int] = {}
    class_pixels: dict[int, int] = {}
    num_pixels, unknown = 0, ()
    unknown_colors: dict[tuple[int, int, int], int] = {}
    if label_name is not None:
        try:
            mask = read_mask(folder / label_name)
            num_pixels = mask.samples[..., 0].size if mask.samples.ndim == 3 else mask.samples.size
            if size is not None:
                findings += _check_sizes(mask.form.size, size, orientation, label_name, info)
            content = decoder.decode(mask, folder / label_name)
            counts = _count(content.train_ids[~content.unknown])
            class_pixels = {k: n for k, n in counts.items() if 0 <= k < info.num_classes}
            if decoder.holds_colors(mask.form):
                unknown_colors = count_colors(mask.colors(folder / label_name)[content.unknown])
            else:
                id_pixels = _count(mask.samples)
                unknown = tuple(i for i in id_pixels if not 0 <= i < 256 or decoder.table[i] == INVALID)
        except UserError as error:
            findings.append(_swapped_or(error, folder, image_name, label_name, decoder))
        if (unknown or unknown_colors) and _is_swapped(folder, image_name, label_name, decoder):
            findings.append(_swapped(label_name))
            id_pixels, unknown, unknown_colors = {}, (), {}
    return PairReport(
        label_name or "", size, num_pixels, id_pixels, class_pixels, unknown, tuple(findings), unknown_colors
    )


def _count(values: np.ndarray) -> dict[int, int]:
    return {int(value): int(n) for value, n in zip(*np.unique(values, return_counts=True), strict=True)}


def _check_image(path: Path, info: DatasetInfo, *, decode: bool) -> tuple[tuple[int, int], int, list[tuple[str, str]]]:
    """Size ``(H, W)`` as training will see it, EXIF orientation, and remarks as ``(kind, message)``.

    Raises:
        UserError: the image is missing, unreadable or cut off.
    """
    require_file(path, "image")
    try:
        with Image.open(path) as image:
            remarks = list(_remarks_on_format(image, path))
            orientation = orientation_of(image)
            size = (image.height, image.width)
    except Exception:  # damaged content can fail anywhere in Pillow's decoders
        open_image(path, "image")  # says what is the matter
        raise
    if decode or not _ends_properly(path):
        open_image(path, "image")
    if orientation != 1:
        done = "turned upright" if info.upright else "read as stored, not turned"
        remarks.append(
            (
                "EXIF-rotated image",
                f"the tag asks to turn it (orientation {orientation}); it is {done}: see in the pictures that the "
                'label fits, and set "upright" in dataset.json if it does not',
            )
        )
    if info.upright and orientation in _TURNED:
        size = size[::-1]
    return size, orientation, remarks


def _remarks_on_format(image: Image.Image, path: Path) -> Iterator[tuple[str, str]]:
    if image.mode in ("L", "LA", "1") or image.mode.startswith("I"):
        yield "grey image", "its one channel is repeated three times; nothing to do if that is meant"
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        yield "image with alpha", "transparency is dropped and hidden colours appear; flatten the image if they matter"
    if image.mode in ("P", "PA"):
        yield "palette image", "its colours are looked up in its palette; if it is a label file, correct the list"
    if image.mode == "CMYK":
        yield "CMYK image", "it is converted to RGB; convert it yourself where colours matter"
    if image.mode.startswith("I") or _png_bit_depth(path) == 16:
        yield (
            "16-bit image",
            "the upper 8 of its 16 bits are used; if it holds fewer than 16 (10 or 12 bit sensors) it comes out dark: "
            "rescale it to 8 bits",
        )


def _png_bit_depth(path: Path) -> int | None:
    """Bits per channel of a PNG, whose 25th byte says so; None for other files."""
    with path.open("rb") as file:
        head = file.read(25)
    return head[24] if head.startswith(b"\x89PNG") and len(head) == 25 else None


def _ends_properly(path: Path) -> bool:
    """Whether a PNG or JPEG has its end mark; a file that was cut off has none."""
    with path.open("rb") as file:
        head = file.read(4)
        file.seek(max(0, path.stat().st_size - 16))
        tail = file.read()
    if head == b"\x89PNG":
        return b"IEND" in tail
    return head[:2] == b"\xff\xd8" and b"\xff\xd9" in tail


def _check_sizes(
    label_size: tuple[int, int], size: tuple[int, int], orientation: int, label_name: str, info: DatasetInfo
) -> list[Finding]:
    if label_size == size:
        return []
    message = (
        f"the label is {label_size[1]}x{label_size[0]} pixels, its image {size[1]}x{size[0]}; "
        "check that the list pairs them rightly, and resize neither"
    )
    if orientation in _TURNED and label_size[::-1] == size:
        change = "false" if info.upright else "true"
        message += f': the image\'s EXIF tag turns it, so set "upright": {change} in dataset.json'
    return [Finding("size differs", True, message, (label_name,))]


def _unreadable(error: ValueError, path: Path, name: str) -> Finding:
    return Finding("unreadable file", True, str(error).removeprefix(f"{path}: "), (name,))


def _swapped_or(error: ValueError, folder: Path, image_name: str, label_name: str, decoder: LabelDecoder) -> Finding:
    """What an unusable label means."""
    message = str(error).removeprefix(f"{folder / label_name}: ")
    if _is_swapped(folder, image_name, label_name, decoder):
        return _swapped(label_name)
    if "colour image" in message:
        return Finding("RGB mask", True, message, (label_name,))
    return Finding("unreadable file", True, message, (label_name,))


def _swapped(label_name: str) -> Finding:
    message = "the label looks like a photograph and the image like a label; swap the two columns of the list"
    return Finding("image and label swapped", True, message, (label_name,))


def _is_swapped(folder: Path, image_name: str, label_name: str, decoder: LabelDecoder) -> bool:
    """Whether the image file would do as a label, and the label file has far more values than labels have."""
    try:
        as_label = decoder.read(folder / image_name)
        as_image = open_image(folder / label_name, "label")
    except UserError:
        return False
    colors = as_image.convert("RGB").getcolors(maxcolors=_FEW_VALUES)
    return as_label.size > 0 and colors is None
