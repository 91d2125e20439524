"""What the EXIF tags of an image and its label ask for, and whether training sees both the same way up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ovenet.data.files import EXCHANGES_SIDES, UPRIGHT
from ovenet.dataset_tools.audit.reports import Finding

Size = tuple[int, int]


def size_as_read(size: Size, turn: int, *, upright: bool) -> Size:
    """Size of an image as training sees it.

    Args:
        size: ``(H, W)`` as stored.
        turn: its EXIF orientation.
        upright: whether it is turned as that says.
    """
    return size[::-1] if upright and turn in EXCHANGES_SIDES else size


@dataclass(frozen=True)
class Pair:
    """An image and its label as they are stored.

    Attributes:
        image: its path.
        label: its path.
        image_size: ``(H, W)``.
        label_size: likewise.
        image_turn: EXIF orientation of the image.
        label_turn: of the label.
    """

    image: str
    label: str
    image_size: Size
    label_size: Size
    image_turn: int
    label_turn: int


def check_turns(pair: Pair, *, upright: bool) -> Iterator[Finding]:
    """Different sizes, and EXIF tags by which an image and its label disagree, or may do so.

    Args:
        pair: the files; labels are read as stored.
        upright: whether images are turned as their tags say.
    """
    if size_as_read(pair.image_size, pair.image_turn, upright=upright) != pair.label_size:
        yield Finding("size differs", True, _sizes(pair, upright), (pair.label,))
    elif pair.label_turn != UPRIGHT:
        yield _label_with_tag(pair, upright)
        return
    yield from remark_on_turn(pair.image, pair.image_size, pair.image_turn, upright=upright)


def remark_on_turn(image: str, size: Size, turn: int, *, upright: bool) -> Iterator[Finding]:
    """That an image has an EXIF tag, how it is read, and whether its size tells if that is right.

    Args:
        image: its path.
        size: ``(H, W)`` as stored.
        turn: its EXIF orientation.
        upright: whether it is turned as that says.
    """
    if turn == UPRIGHT:
        return
    done = "turned upright" if upright else "read as stored, not turned"
    message = f"the tag asks to turn it (orientation {turn}); it is {done}"
    if turn not in EXCHANGES_SIDES or size[0] == size[1]:
        message += (
            ": the sizes cannot tell, so see in the pictures that the label fits, and "
            f'set "upright": {_other(upright)} in dataset.json if it does not'
        )
    yield Finding("EXIF-rotated image", False, message, (image,))


def _sizes(pair: Pair, upright: bool) -> str:
    (height, width) = size_as_read(pair.image_size, pair.image_turn, upright=upright)
    message = (
        f"the label is {pair.label_size[1]}x{pair.label_size[0]} pixels, its image {width}x{height}; "
        "check that the list pairs them rightly, and resize neither"
    )
    if pair.label_size == (width, height) and pair.image_turn in EXCHANGES_SIDES:
        message += f': the image\'s EXIF tag turns it, so set "upright": {_other(upright)} in dataset.json'
        if pair.image_turn == pair.label_turn:
            message += " (the label has the same tag, and labels are read as stored)"
    elif pair.label_size == (width, height) and pair.label_turn in EXCHANGES_SIDES:
        message += ": the label's EXIF tag asks to turn it, but labels are read as stored; save it turned, without tag"
    return message


def _label_with_tag(pair: Pair, upright: bool) -> Finding:
    """Whether the image is seen as the label is stored: surely, surely not, or only the pictures can tell."""
    tag = f"the label's EXIF tag asks to turn it (orientation {pair.label_turn})"
    if pair.image_turn != pair.label_turn:
        image = "has none" if pair.image_turn == UPRIGHT else f"asks for {pair.image_turn}"
        message = (
            f"{tag}, its image's {image}; labels are read as stored: see in the pictures that it fits, and save it as "
            "it should be, without tag"
        )
        return Finding("EXIF turns differ", False, message, (pair.label,))
    if upright:
        message = (
            f'{tag} like its image\'s, and the image alone is turned: set "upright": false in dataset.json, or save '
            "both turned, without tags"
        )
        return Finding("EXIF turns differ", True, message, (pair.label,))
    return Finding("EXIF-rotated label", False, f"{tag} like its image's; both are read as stored", (pair.label,))


def _other(upright: bool) -> str:
    return "false" if upright else "true"
