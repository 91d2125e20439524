"""Reading image and list files, with errors that name the file."""

from __future__ import annotations

import os
import posixpath
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from ovenet.errors import UserError

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif",
)  # fmt: skip
_STRIP_ROWS = 64
_BYTE_ORDER_MARK = "\ufeff"
_ORIENTATION = 0x0112  # EXIF tag
UPRIGHT = 1
# How to see pixels as they are stored in an upright image: exchange its axes, then step through rows and columns.
_STORED_VIEWS = {
    1: (False, 1, 1), 2: (False, 1, -1), 3: (False, -1, -1), 4: (False, -1, 1),
    5: (True, 1, 1), 6: (True, -1, 1), 7: (True, -1, -1), 8: (True, 1, -1),
}  # fmt: skip
EXCHANGES_SIDES = tuple(turn for turn, (exchanges_axes, _, _) in _STORED_VIEWS.items() if exchanges_axes)
_PNG_SIGNATURE_BYTES = 8
_ANY_SIZE = 2**62
_TIFF_SIZE = (256, 257)  # tags: width, height
_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def read_image(path: Path, *, upright: bool = True, max_pixels: int | None = None) -> np.ndarray:
    """An image file as ``(H, W, 3)`` uint8 RGB; whatever of this package reads a photograph reads it here.

    Grey images are repeated, alpha is dropped, palettes are looked up, and of 16 bits the upper 8 are taken.

    A photograph is turned upright as its EXIF tag says, as viewers show it, wherever no mask says otherwise: its
    results, masks and overlays alike, have the size and the orientation of what a viewer shows. Lists of a dataset,
    with labels and without, are read as `DatasetInfo.upright` says: their masks, and their server, may have been made
    for the pixels as they are stored. A broken tag, or one that is not 1 to 8, turns nothing. The tag of a TIFF is a
    part of that format: it is obeyed always, in images and masks.

    Args:
        path: the file.
        upright: turn it as its EXIF tag says.
        max_pixels: refuse larger ones; None leaves it to Pillow, which refuses beyond 179 million.

    Raises:
        UserError: the file is missing, no image, or cut off, or its pixels are floating-point numbers.
    """
    with opened(path, "image", max_pixels=max_pixels) as image:
        orientation = orientation_of(image) if upright else UPRIGHT
        image.load()
    return _rgb(image, str(path), orientation)


def to_rgb(image: Image.Image, name: str) -> np.ndarray:
    """An image in memory as `read_image` gives it, upright; `name` is for messages."""
    image.load()  # what follows the pixels in a PNG, and a TIFF's own turn
    return _rgb(image, name, orientation_of(image))


def header_size(image: Image.Image) -> tuple[int, int]:
    """Size ``(H, W)`` of an image once its pixels are read; only then do older releases of Pillow turn a TIFF."""
    if image.format != "TIFF":
        return image.height, image.width
    width, height = (int(image.tag_v2[tag]) for tag in _TIFF_SIZE)
    return (width, height) if image.tag_v2.get(_ORIENTATION) in EXCHANGES_SIDES else (height, width)


def orientation_of(image: Image.Image) -> int:
    """The turn that an image's pixels still need, as EXIF counts: 1 (none) to 8.

    Args:
        image: one whose pixels were not read yet is asked for its header alone.

    Returns:
        1 also where the tag is broken or none of these, and of a TIFF, which Pillow turns as it reads it.
    """
    if image.format == "TIFF":
        return UPRIGHT
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about broken tags
            value = _exif_of(image).get(_ORIENTATION)
    except Exception:  # damaged content can fail anywhere in Pillow's parser
        return UPRIGHT
    return value if type(value) is int and value in _STORED_VIEWS else UPRIGHT


def _exif_of(image: Image.Image) -> Image.Exif:
    file = getattr(image, "fp", None)
    if image.format != "PNG" or "exif" in image.info or file is None:
        return image.getexif()
    position = file.tell()  # Pillow would read all of its pixels to see what follows them
    try:
        late = _chunk_of_png(file, b"eXIf")
    finally:
        file.seek(position)
    if late is None:
        return Image.Image.getexif(image)
    exif = Image.Exif()
    exif.load(late)
    return exif


def _chunk_of_png(file: BinaryIO, wanted: bytes) -> bytes | None:
    """The content of a PNG's first chunk of a type; its other chunks are skipped, not read."""
    read_at = _reader_of(file)
    position = _PNG_SIGNATURE_BYTES
    while len(head := read_at(8, position)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == wanted:
            return read_at(length, position + 8)
        position += 12 + length  # with its checksum
    return None


def _reader_of(file: BinaryIO) -> Callable[[int, int], bytes]:
    """Reads so many bytes of a file at a place; on disk no more than these, many times as fast where chunks are far
    apart."""

    def read_at(num_bytes: int, position: int) -> bytes:
        file.seek(position)
        return file.read(num_bytes)

    try:
        return partial(os.pread, file.fileno())
    except (AttributeError, OSError):  # in memory, or on a system without
        return read_at


def stored_view(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels of an upright image in the order in which its file holds them; no pixel is copied.

    Args:
        upright: ``(H, W, ...)``.
        orientation: EXIF's, 1 to 8.

    Returns:
        ``(H, W, ...)``, or ``(W, H, ...)``.
    """
    exchanges_axes, row_step, column_step = _STORED_VIEWS[orientation]
    return (upright.swapaxes(0, 1) if exchanges_axes else upright)[::row_step, ::column_step]


def first_bytes(image: Image.Image, num_bytes: int) -> bytes:
    """The beginning of the file of an image that `opened` gives."""
    position = image.fp.tell()
    image.fp.seek(0)
    head = image.fp.read(num_bytes)
    image.fp.seek(position)
    return head


def last_bytes(image: Image.Image, num_bytes: int) -> bytes:
    """The end of the file of an image that `opened` gives."""
    position = image.fp.tell()
    image.fp.seek(max(0, image.fp.seek(0, os.SEEK_END) - num_bytes))
    tail = image.fp.read()
    image.fp.seek(position)
    return tail


def _rgb(image: Image.Image, name: str, orientation: int) -> np.ndarray:
    """Pixels of a loaded image, turned."""
    if image.mode == "F":
        raise UserError(f"{name}: the image holds floating-point numbers; convert it to 8 or 16 bits per channel")
    size = (image.height, image.width)
    pixels = np.empty((*(size[::-1] if orientation in EXCHANGES_SIDES else size), 3), np.uint8)
    stored = stored_view(pixels, orientation)
    for top in range(0, image.height, _STRIP_ROWS):  # the whole image at once would be held twice more
        strip = image.crop((0, top, image.width, min(top + _STRIP_ROWS, image.height)))
        if image.mode in _SIXTEEN_BIT_MODES:
            stored[top : top + strip.height] = (np.asarray(strip).astype(np.int64) >> 8).clip(0, 255)[..., None]
        else:
            stored[top : top + strip.height] = np.asarray(strip.convert("RGB"))
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
    if path.is_file():
        return
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path}: the {role} is a link to {path.readlink()}, which does not exist")
    if not path.exists():
        raise UserError(f"{path}: the {role} does not exist; check DATASET.ROOT and the list file")
    if path.is_dir():
        raise UserError(f"{path}: the {role} is a directory; expected a file")
    raise UserError(f"{path}: the {role} is a pipe, a socket or a device; expected a file")


def _unreadable(path: Path, role: str, error: BaseException) -> UserError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = "it is no image, or damaged"
    return UserError(f"{path}: the {role} cannot be read ({reason}); replace it")


def image_size(path: Path) -> tuple[int, int]:
    """Size ``(H, W)`` in pixels as stored, from the file's header.

    Raises:
        UserError: as `open_image`.
    """
    return read_size(path, upright=False)


def read_size(path: Path, *, upright: bool = True) -> tuple[int, int]:
    """Size ``(H, W)`` of what `read_image` gives, from the file's header.

    Raises:
        UserError: as `open_image`.
    """
    with opened(path, "image", max_pixels=_ANY_SIZE) as image:
        size = header_size(image)
        is_sideways = upright and orientation_of(image) in EXCHANGES_SIDES
    return size[::-1] if is_sideways else size


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


def why_unlisted(name: str) -> str:
    """What keeps the name of a file out of list files; "" where nothing does."""
    if any(character in name for character in "\t\r\n"):
        return "file names with tabs or line breaks"
    if not is_utf8(Path(name)):
        return "file names that are not UTF-8"
    if name != name.strip(" ") or name.startswith(_BYTE_ORDER_MARK):
        return "file names that begin or end with a space or a byte order mark"
    return ""


def format_line(image: str, label: str | None) -> str:
    """One line of a list file: a tab between the names, so that they may contain spaces.

    Raises:
        UserError: a name cannot stand in a list, see `why_unlisted`.
    """
    for name in (image, label or ""):
        if reason := why_unlisted(name):
            raise UserError(f"{name!r}: {reason} cannot be listed; rename the file")
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
