"""The frame of annotations' coordinates: the photograph as stored or as its EXIF tag turns it, and its size."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ovenet.data.files import ANY_SIZE, EXCHANGES_SIDES, header_size, opened, orientation_of, stored_view
from ovenet.errors import UserError
from ovenet.preparation.annotations.labelme import embedded_image
from ovenet.preparation.annotations.shapes import Annotated, Remarks
from ovenet.structures import Size


@dataclass(frozen=True)
class Frame:
    """The pixels on which the shapes of an image are drawn.

    Attributes:
        size: ``(H, W)``.
        named: ``(H, W)`` to which the coordinates refer.
        is_upright: whether the pixels are turned as the EXIF tag says, rather than as stored.
        orientation: the tag; 1 without.
    """

    size: Size
    named: Size
    is_upright: bool
    orientation: int

    def bring(self, mask: np.ndarray, *, upright: bool) -> np.ndarray:
        """A mask ``(H, W)`` for the photograph read upright, or as stored."""
        if upright == self.is_upright or self.orientation == 1:
            return mask
        if not upright:
            return np.ascontiguousarray(stored_view(mask, self.orientation))
        turned = np.empty(mask.shape[::-1] if self.orientation in EXCHANGES_SIDES else mask.shape, mask.dtype)
        stored_view(turned, self.orientation)[...] = mask
        return turned


def find_frames(found: Sequence[Annotated], remarks: Remarks, where: Path) -> list[Frame]:
    """The frame of each image, by the size in its annotations.

    Where the size does not tell whether a photograph was turned (a half turn, a square), the other images of the import
    do; if none does, it is taken as turned, as programs show photographs.

    Args:
        found: images.
        remarks: receives images that were resized, and those with an unknown turn.
        where: the annotations, for messages.

    Raises:
        UserError: an image is unreadable, or has another aspect ratio than its annotations.
    """
    choices = [_choices(one, where) for one in found]
    votes = Counter(frames[0].is_upright for frames in choices if len(frames) == 1 and frames[0].orientation != 1)
    upright = votes[True] >= votes[False]
    chosen = []
    for one, frames in zip(found, choices, strict=True):
        frame = next((frame for frame in frames if frame.is_upright == upright), frames[0])
        if len(frames) > 1:
            state = "upright" if upright else "as they are stored"
            remarks.add(f"photographs whose size does not tell their EXIF turn, taken for annotated {state}", one.where)
        if frame.named != frame.size:
            text = f"{one.where}, {_text(frame.named)} to {_text(frame.size)}"
            remarks.add("images that were resized after annotating, shapes are scaled", text)
        chosen.append(frame)
    return chosen


def _choices(one: Annotated, where: Path) -> list[Frame]:
    """The frames with the named size or, without such, with its aspect ratio."""
    size, orientation = _read_header(one)
    upright = size[::-1] if orientation in EXCHANGES_SIDES else size
    frames = [Frame(upright, one.named or upright, True, orientation)]
    if orientation != 1:
        frames.append(Frame(size, one.named or size, False, orientation))
    choices = [frame for frame in frames if frame.named == frame.size]
    choices = choices or [frame for frame in frames if _is_resized(frame.named, frame.size)]
    if not choices:
        turned = f" ({_text(upright)} upright)" if orientation in EXCHANGES_SIDES else ""
        raise UserError(
            f"{where}: {one.where} was annotated with {_text(one.named or size)} pixels, and its image {one.image} has "
            f"{_text(size)}{turned}, which is no resized version; put the image there that was annotated"
        )
    return choices


def _is_resized(named: Size, size: Size) -> bool:
    """Whether one size is the other at some scale, each side rounded to a pixel."""
    ways = (list(zip(named, size, strict=True)), list(zip(size, named, strict=True)))
    return any(max((new - 1) / old for old, new in way) < min((new + 1) / old for old, new in way) for way in ways)


def _read_header(one: Annotated) -> tuple[Size, int]:
    """Size as stored, and the EXIF orientation."""
    source = one.image if one.embedded_in is None else io.BytesIO(embedded_image(one.embedded_in))
    header = opened(source, "image", max_pixels=ANY_SIZE) if isinstance(source, Path) else Image.open(source)
    with header as image:
        return header_size(image), orientation_of(image)


def _text(size: Size) -> str:
    return f"{size[1]}x{size[0]}"
