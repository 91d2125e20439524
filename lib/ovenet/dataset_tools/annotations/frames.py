"""Which pixels the coordinates of annotations mean: of a photograph as it is stored or as its EXIF tag turns it, and at
which size."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ovenet.data.files import EXCHANGES_SIDES, header_size, opened, orientation_of, stored_view
from ovenet.dataset_tools.annotations.labelme import embedded_image
from ovenet.dataset_tools.annotations.shapes import Annotated, Remarks
from ovenet.dataset_tools.annotations.spans import Size
from ovenet.errors import UserError


@dataclass(frozen=True)
class Frame:
    """What the shapes of an image are drawn on.

    Attributes:
        size: ``(H, W)``.
        named: the size that their coordinates are of.
        is_upright: whether these are the pixels as the EXIF tag turns them, and not as they are stored.
        orientation: the tag; 1 without.
    """

    size: Size
    named: Size
    is_upright: bool
    orientation: int

    def bring(self, mask: np.ndarray, *, upright: bool) -> np.ndarray:
        """A mask ``(H, W)`` as it belongs to the photograph that is read upright, or as it is stored."""
        if upright == self.is_upright or self.orientation == 1:
            return mask
        if not upright:
            return np.ascontiguousarray(stored_view(mask, self.orientation))
        turned = np.empty(mask.shape[::-1] if self.orientation in EXCHANGES_SIDES else mask.shape, mask.dtype)
        stored_view(turned, self.orientation)[...] = mask
        return turned


def find_frames(found: Sequence[Annotated], remarks: Remarks, where: Path) -> list[Frame]:
    """The frame of each image: the one whose size is named.

    Where that does not tell whether a photograph was turned (a turn by half, a square), the other images of the import
    tell it and, if none does, it was, as programs show photographs.

    Args:
        found: images.
        remarks: gets what was resized, and what could not be told.
        where: the annotations, for messages.

    Raises:
        UserError: an image is unreadable, or has another shape than the one that was annotated.
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
    """Frames that the named size fits: exactly or, without such, by its aspect."""
    size, orientation = _read_header(one)
    sizes = (
        {True: size}
        if orientation == 1
        else {True: size[::-1] if orientation in EXCHANGES_SIDES else size, False: size}
    )
    named = one.named
    for fits in (_is_same, _is_resized):
        choices = [
            Frame(size, named or size, is_upright, orientation)
            for is_upright, size in sizes.items()
            if fits(named or size, size)
        ]
        if choices:
            return choices
    turned = f" ({_text(sizes[True])} upright)" if orientation in EXCHANGES_SIDES else ""
    raise UserError(
        f"{where}: {one.where} was annotated with {_text(named)} pixels, and its image {one.image} has {_text(size)}"
        f"{turned}, which is no resized version; put the image there that was annotated"
    )


def _is_same(named: Size, size: Size) -> bool:
    return named == size


def _is_resized(named: Size, size: Size) -> bool:
    """Whether one of them is the other at some scale, each side rounded to a pixel."""
    return any(
        max((side - 1) / old for old, side in sides) < min((side + 1) / old for old, side in sides)
        for sides in (_pairs(named, size), _pairs(size, named))
    )


def _pairs(old: Size, new: Size) -> Iterable[tuple[int, int]]:
    return list(zip(old, new, strict=True))


def _read_header(one: Annotated) -> tuple[Size, int]:
    """Size as stored, and the EXIF orientation."""
    source = one.image if one.embedded_in is None else io.BytesIO(embedded_image(one.embedded_in))
    header = opened(source, "image", max_pixels=2**62) if isinstance(source, Path) else Image.open(source)
    with header as image:
        return header_size(image), orientation_of(image)


def _text(size: Size | None) -> str:
    return f"{size[1]}x{size[0]}" if size else "an unknown number of"
