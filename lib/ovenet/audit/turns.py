"""Whether the EXIF tags of an image and its label agree, and whether training sees both the same way up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ovenet.audit.reports import Finding
from ovenet.data.files import EXCHANGES_SIDES, UPRIGHT
from ovenet.structures import Size


@dataclass(frozen=True)
class Stored:
    """An image or a label as stored: its path, size ``(H, W)`` and EXIF orientation."""

    path: str
    size: Size
    turn: int

    def size_as_read(self, *, upright: bool) -> Size:
        """Size ``(H, W)`` in training; `upright` says whether it is turned by its orientation."""
        return self.size[::-1] if upright and self.turn in EXCHANGES_SIDES else self.size


def check_turns(image: Stored, label: Stored, *, upright: bool) -> Iterator[Finding]:
    """Different sizes, and EXIF tags by which an image and its label disagree, or may disagree.

    Args:
        image: the image, turned by its tag if `upright`.
        label: its label, read as stored.
        upright: as in dataset.json.
    """
    if image.size_as_read(upright=upright) != label.size:
        yield Finding("size differs", True, _about_sizes(image, label, upright), (label.path,))
    elif label.turn != UPRIGHT:
        yield _label_with_tag(image, label, upright)
        return
    yield from remark_on_turn(image, upright=upright)


def remark_on_turn(image: Stored, *, upright: bool) -> Iterator[Finding]:
    """The EXIF tag of an image, how it is read, and whether its size tells if that is right; `upright` as above."""
    if image.turn == UPRIGHT:
        return
    done = "turned upright" if upright else "read as stored, not turned"
    message = f"the tag asks to turn it (orientation {image.turn}); it is {done}"
    if image.turn not in EXCHANGES_SIDES or image.size[0] == image.size[1]:
        message += (
            ": the sizes cannot tell, so see in the pictures that the label fits, and "
            f'set "upright": {_other(upright)} in dataset.json if it does not'
        )
    yield Finding("EXIF-rotated image", False, message, (image.path,))


def _about_sizes(image: Stored, label: Stored, upright: bool) -> str:
    height, width = image.size_as_read(upright=upright)
    message = (
        f"the label is {label.size[1]}x{label.size[0]} pixels, its image {width}x{height}; "
        "check that the list pairs them rightly, and resize neither"
    )
    if label.size == (width, height) and image.turn in EXCHANGES_SIDES:
        message += f': the image\'s EXIF tag turns it, so set "upright": {_other(upright)} in dataset.json'
        if image.turn == label.turn:
            message += " (the label has the same tag, and labels are read as stored)"
    elif label.size == (width, height) and label.turn in EXCHANGES_SIDES:
        message += ": the label's EXIF tag asks to turn it, but labels are read as stored; save it turned, without tag"
    return message


def _label_with_tag(image: Stored, label: Stored, upright: bool) -> Finding:
    """Whether the image is read the way its label is stored: surely, surely not, or only the pictures can tell."""
    tag = f"the label's EXIF tag asks to turn it (orientation {label.turn})"
    if image.turn != label.turn:
        other = "has none" if image.turn == UPRIGHT else f"asks for {image.turn}"
        message = (
            f"{tag}, its image's {other}; labels are read as stored: see in the pictures that it fits, and save it as "
            "it should be, without tag"
        )
        return Finding("EXIF turns differ", False, message, (label.path,))
    if upright:
        message = (
            f'{tag} like its image\'s, and the image alone is turned: set "upright": false in dataset.json, or save '
            "both turned, without tags"
        )
        return Finding("EXIF turns differ", True, message, (label.path,))
    return Finding("EXIF-rotated label", False, f"{tag} like its image's; both are read as stored", (label.path,))


def _other(upright: bool) -> str:
    return "false" if upright else "true"
