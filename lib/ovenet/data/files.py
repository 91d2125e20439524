"""Reading image and list files, with errors that name the file."""

from __future__ import annotations

import posixpath
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ovenet.errors import UserError

_STRIP_ROWS = 64
_BYTE_ORDER_MARK = "\ufeff"
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
_ANY_SIZE = 2**62
_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def read_image(path: Path, *, upright: bool = False, max_pixels: int | None = None) -> np.ndarray:
    """An image file as ``(H, W, 3)`` uint8 RGB.

    Grey images are repeated, alpha is dropped, palettes are looked up, and of 16 bits the upper 8 are taken.

    Args:
        path: the file.
        upright: turn it as its EXIF tag says, as picture viewers do.
        max_pixels: refuse larger ones; None leaves it to Pillow, which refuses beyond 179 million.

    Raises:
        UserError: the file is missing, no image, or cut off, or its pixels are floating-point numbers.
    """
    return to_rgb(open_image(path, "image", max_pixels=max_pixels), str(path), upright=upright)


def to_rgb(image: Image.Image, name: str, *, upright: bool = False) -> np.ndarray:
    """An image in memory as `read_image` gives it; `name` is for messages."""
    if upright and image.getexif().get(_ORIENTATION, 1) != 1:  # exif_transpose copies the others too
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise UserError(f"{name}: the image holds floating-point numbers; convert it to 8 or 16 bits per channel")
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, _STRIP_ROWS):  # the whole image at once would be held twice more
        strip = image.crop((0, top, image.width, min(top + _STRIP_ROWS, image.height)))
        if image.mode in _SIXTEEN_BIT_MODES:
            pixels[top : top + strip.height] = (np.asarray(strip).astype(np.int64) >> 8).clip(0, 255)[..., None]
        else:
            pixels[top : top + strip.height] = np.asarray(strip.convert("RGB"))
    return pixels


def open_image(path: Path, role: str, *, max_pixels: int | None = None) -> Image.Image:
    """Reads a whole image file.

    Args:
        path: the file.
        role: what it is, for messages.
        max_pixels: see `read_image`.

    Raises:
        UserError: it is missing, a directory, no image, cut off, or too large.
    """
    with opened(path, role, max_pixels=max_pixels) as image:
        image.load()
        return image


@contextmanager
def opened(path: Path, role: str, *, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """An image file whose header is read; errors of what is done with it inside name the file.

    Args:
        path: the file.
        role: what it is, for messages.
        max_pixels: see `read_image`.

    Raises:
        UserError: as `open_image`.
    """
    require_file(path, role)
    try:
        # Files that Pillow opens by name may be mapped into memory, and then it misreads TIFFs with an orientation.
        with _pixel_limit(max_pixels), path.open("rb") as file, Image.open(file) as image:
            yield image
    except (MemoryError, UserError):
        raise
    except Exception as error:  # damaged content can fail anywhere in Pillow's decoders
        raise _unreadable(path, role, error) from error


def require_file(path: Path, role: str) -> None:
    """Refuses what is not a regular file; reading a pipe would wait for ever.

    Args:
        path: of the file.
        role: what it is, for messages.

    Raises:
        UserError: it is missing, a directory, a pipe or the like.
    """
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path}: the {role} is a link to {path.readlink()}, which does not exist")
    if not path.exists():
        raise UserError(f"{path}: the {role} does not exist; check DATASET.ROOT and the list file")
    if path.is_dir():
        raise UserError(f"{path}: the {role} is a directory; expected a file")
    if not path.is_file():
        raise UserError(f"{path}: the {role} is a pipe, a socket or a device; expected a file")


def _unreadable(path: Path, role: str, error: BaseException) -> UserError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(f"{path}: the {role} cannot be read ({reason}); replace it")


def image_size(path: Path) -> tuple[int, int]:
    """Size ``(H, W)`` in pixels, from the file's header.

    Raises:
        UserError: as `open_image`.
    """
    with opened(path, "image", max_pixels=_ANY_SIZE) as image:
        return image.height, image.width


def is_utf8(path: Path) -> bool:
    """Whether a file's name is text, which OpenCV needs; Linux takes any bytes."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _pixel_limit(max_pixels: int | None) -> Iterator[None]:
    """Sets what Pillow takes for too large, for a while."""
    if max_pixels is None:
        yield
        return
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max(1, -(-max_pixels // 2))  # Pillow refuses twice as many, and warns before
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def format_line(image: str, label: str | None) -> str:
    """One line of a list file: a tab between the names, so that they may contain spaces.

    Raises:
        UserError: a name contains a tab or a line break.
    """
    for name in (image, label or ""):
        if any(character in name for character in "\t\r\n"):
            raise UserError(f"{name!r}: file names with tabs or line breaks cannot be listed; rename the file")
    if label is None:
        return f"{image}\t\n" if " " in image else f"{image}\n"
    return f"{image}\t{label}\n"


def read_lines(path: Path) -> list[str]:
    """The lines of a list of names; the names may hold what Python takes for line breaks.

    Raises:
        UserError: it is not in plain UTF-8.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not in UTF-8 (byte {error.start}); save the list as UTF-8") from error
    if text.startswith(_BYTE_ORDER_MARK):
        raise UserError(f"{path}: begins with a byte order mark; save the list as UTF-8 without one")
    return [line.removesuffix("\r") for line in text.split("\n")]


def read_list(path: Path) -> list[tuple[str, str | None]]:
    """A list file: ``image [label]`` per line, separated by a tab or, without one, by spaces; empty lines are skipped.

    Returns:
        Pairs of paths as written.

    Raises:
        UserError: the list is missing or empty, or a line has more than two entries or leaves the dataset's folder.
    """
    if "\0" in str(path):
        raise UserError(f"{str(path)!r}: no name of a file; set DATASET.TRAIN_SET or DATASET.TEST_SET to a list")
    if not path.is_file():
        raise UserError(
            f"{path}: there is no such list file; set DATASET.TRAIN_SET or DATASET.TEST_SET to one that is there"
        )
    pairs: list[tuple[str, str | None]] = []
    for number, line in enumerate(read_lines(path), start=1):
        parts = line.split("\t" if "\t" in line else " ")
        entries = [entry for part in parts if (entry := part.strip(" "))]
        if len(entries) > 2:
            raise UserError(
                f"{path}, line {number}: {len(entries)} entries; expected `image [label]`, "
                "with a tab between them where names contain spaces"
            )
        for entry in entries:
            if posixpath.isabs(entry) or posixpath.normpath(entry).startswith(".."):
                raise UserError(
                    f"{path}, line {number}: {entry} lies outside the dataset's folder; "
                    "write paths relative to that folder, and link to data that lies elsewhere"
                )
        if entries:
            pairs.append((entries[0], entries[1] if len(entries) == 2 else None))
    if not pairs:
        raise UserError(f"{path}: the list is empty; expected `image [label]` per line")
    return pairs
