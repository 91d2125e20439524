"""Reading image and list files, with errors that name the file."""

from __future__ import annotations

import os
import posixpath
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from ovenet.data.foreign import name_file
from ovenet.data.remote import UnreachableError, is_remote
from ovenet.errors import UserError, one_line
from ovenet.structures import Size

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif",
)  # fmt: skip
_STRIP_ROWS = 64
_BYTE_ORDER_MARK = "\ufeff"
_ORIENTATION = 0x0112  # EXIF tag
UPRIGHT = 1
# How an upright image is viewed in the order of its file: whether its axes are exchanged, then the steps along rows and
# columns.
_STORED_VIEWS = {
    1: (False, 1, 1), 2: (False, 1, -1), 3: (False, -1, -1), 4: (False, -1, 1),
    5: (True, 1, 1), 6: (True, -1, 1), 7: (True, -1, -1), 8: (True, 1, -1),
}  # fmt: skip
EXCHANGES_SIDES = tuple(turn for turn, (exchanges_axes, _, _) in _STORED_VIEWS.items() if exchanges_axes)
_PNG_SIGNATURE_BYTES = 8
ANY_SIZE = 2**62  # pixels: no limit
_TIFF_SIZE = (256, 257)  # tags: width, height
_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def read_image(path: Path, *, upright: bool = True, max_pixels: int | None = None) -> np.ndarray:
    """An image file as ``(H, W, 3)`` uint8 RGB; the package reads every photograph with this function.

    Grey is repeated, alpha is dropped, palettes are looked up, and the upper 8 of 16 bits are used.

    A photograph is turned upright as its EXIF tag says, as viewers do, unless a mask belongs to it: results, masks and
    overlays have the size and orientation that a viewer shows. Images in a dataset's lists, with or without labels, are
    read as `DatasetInfo.upright` says, because masks and test servers may use the pixels as stored. A broken tag, or
    one that is not 1 to 8, turns nothing. The tag of a TIFF is part of that format and is always applied, in images and
    masks.

    Args:
        path: the file.
        upright: turn the image as its EXIF tag says.
        max_pixels: refuse larger images; None keeps Pillow's limit of 179 million.

    Raises:
        UserError: the file is missing, no image, or truncated, or its pixels are floating-point numbers.
    """
    with opened(path, "image", max_pixels=max_pixels) as image:
        orientation = orientation_of(image) if upright else UPRIGHT
        image.load()
    return _rgb(image, str(path), orientation)


def to_rgb(image: Image.Image, name: str) -> np.ndarray:
    """An image in memory as `read_image` returns it, upright; `name` is for messages."""
    image.load()  # reads the chunks after the pixels of a PNG, and turns a TIFF
    return _rgb(image, name, orientation_of(image))


def header_size(image: Image.Image) -> Size:
    """Size ``(H, W)`` that an image has once its pixels are read; older releases of Pillow turn a TIFF only then."""
    if not isinstance(image, TiffImageFile):
        return image.height, image.width
    width, height = (int(image.tag_v2[tag]) for tag in _TIFF_SIZE)
    return (width, height) if image.tag_v2.get(_ORIENTATION) in EXCHANGES_SIDES else (height, width)


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation that is still to be applied to an image's pixels, 1 (none) to 8.

    Pixels are not decoded. 1 also for a broken tag or another value, and for a TIFF, which Pillow turns on reading.
    """
    if isinstance(image, TiffImageFile):
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
    position = file.tell()  # Pillow would decode all pixels to reach the chunks after them
    try:
        late = _chunk_of_png(file, b"eXIf")
    finally:
        file.seek(position)
    if late is None:
        return Image.Image.getexif(image)
    exif = Image.Exif()
    exif.load(late)
    return exif


def _chunk_of_png(file: IO[bytes], wanted: bytes) -> bytes | None:
    """The content of a PNG's first chunk of a type; its other chunks are skipped, not read."""

    def read_at(num_bytes: int, position: int) -> bytes:
        try:  # no read-ahead, many times as fast where chunks are far apart
            return os.pread(file.fileno(), num_bytes, position)
        except (AttributeError, OSError):  # in memory, or not provided by the system
            file.seek(position)
            return file.read(num_bytes)

    position = _PNG_SIGNATURE_BYTES
    while len(head := read_at(8, position)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == wanted:
            return read_at(length, position + 8)
        position += 12 + length  # with its checksum
    return None


def stored_view(upright: np.ndarray, orientation: int) -> np.ndarray:
    """A view of an upright image's pixels in the order in which its file holds them.

    Args:
        upright: ``(H, W, ...)``.
        orientation: EXIF's, 1 to 8.

    Returns:
        ``(H, W, ...)``, or ``(W, H, ...)``.
    """
    exchanges_axes, row_step, column_step = _STORED_VIEWS[orientation]
    return (upright.swapaxes(0, 1) if exchanges_axes else upright)[::row_step, ::column_step]


def bytes_of(image: ImageFile.ImageFile, num_bytes: int) -> bytes:
    """The first bytes of the file of an open image, or its last ones where `num_bytes` is negative."""
    file = image.fp
    assert file is not None
    position = file.tell()
    file.seek(max(0, file.seek(0, os.SEEK_END) + num_bytes) if num_bytes < 0 else 0)
    content = file.read(abs(num_bytes))
    file.seek(position)
    return content


def _rgb(image: Image.Image, name: str, orientation: int) -> np.ndarray:
    """The pixels of a loaded image, turned."""
    if image.mode == "F":
        raise UserError(f"{name}: the image holds floating-point numbers; convert it to 8 or 16 bits per channel")
    size = (image.height, image.width)
    pixels = np.empty((*(size[::-1] if orientation in EXCHANGES_SIDES else size), 3), np.uint8)
    stored = stored_view(pixels, orientation)
    for top in range(0, image.height, _STRIP_ROWS):  # converting the whole image at once would take two more copies
        strip = image.crop((0, top, image.width, min(top + _STRIP_ROWS, image.height)))
        if image.mode in _SIXTEEN_BIT_MODES:
            stored[top : top + strip.height] = (np.asarray(strip).astype(np.int64) >> 8).clip(0, 255)[..., None]
        else:
            stored[top : top + strip.height] = np.asarray(strip.convert("RGB"))
    return pixels


@contextmanager
def opened(path: Path, role: str, *, max_pixels: int | None = None) -> Iterator[ImageFile.ImageFile]:
    """An image file with its header read; errors inside the block, such as those of decoding, name the file.

    Args:
        path: the file.
        role: ``image`` or ``label``, for messages.
        max_pixels: see `read_image`.

    Raises:
        UserError: it is missing, a directory, no image, truncated, or too large.
        UnreachableError: it lies at an address, and cannot be read from there.
    """
    if not is_remote(path):  # else reading tells, in one request less
        require_file(path, role)
    try:
        # Pillow may map files that it opens by name, and then misreads TIFFs with an orientation.
        with _pixel_limit(max_pixels), path.open("rb") as file, Image.open(file) as image:
            yield image
    except (MemoryError, UserError, UnreachableError):
        raise
    except FileNotFoundError as error:
        raise _missing(path, role) from error
    except UnidentifiedImageError as error:
        what = name_file(path)
        why = f"{what} is no image" if what else "it is no image, or damaged"
        raise UserError(f"{path}: the {role} cannot be read ({why}); replace it") from error
    except Exception as error:  # damaged content can fail anywhere in Pillow's decoders
        raise UserError(f"{path}: the {role} cannot be read ({one_line(error)}); replace it") from error


def require_file(path: Path, role: str) -> None:
    """Refuses anything but a regular file; reading a pipe would wait for ever.

    Args:
        path: the file.
        role: its role, for messages.

    Raises:
        UserError: it is missing, a directory, a pipe or the like.
    """
    if path.is_file():
        return
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path}: the {role} is a link to {path.readlink()}, which does not exist")
    if not path.exists():
        raise _missing(path, role)
    if path.is_dir():
        raise UserError(f"{path}: the {role} is a directory; expected a file")
    raise UserError(f"{path}: the {role} is a pipe, a socket or a device; expected a file")


def _missing(path: Path, role: str) -> UserError:
    return UserError(f"{path}: the {role} does not exist; check DATASET.ROOT and the list file")


def image_size(path: Path) -> Size:
    """Size ``(H, W)`` in pixels as stored, from the file's header.

    Raises:
        UserError: as `opened`.
    """
    return read_size(path, upright=False)


def read_size(path: Path, *, upright: bool = True) -> Size:
    """Size ``(H, W)`` of the array that `read_image` returns, from the file's header.

    Raises:
        UserError: as `opened`.
    """
    with opened(path, "image", max_pixels=ANY_SIZE) as image:
        size = header_size(image)
        is_sideways = upright and orientation_of(image) in EXCHANGES_SIDES
    return size[::-1] if is_sideways else size


def is_utf8(path: Path) -> bool:
    """Whether a file's name is UTF-8, as OpenCV requires; Linux accepts any bytes."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _pixel_limit(max_pixels: int | None) -> Iterator[None]:
    """Sets Pillow's limit of pixels for the block."""
    if max_pixels is None:
        yield
        return
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max(1, -(-max_pixels // 2))  # Pillow refuses twice as many, and warns of more than this
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def why_unlisted(name: str) -> str:
    """Why a file name cannot stand in a list file; "" where it can."""
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
        UserError: a name cannot stand in a list file, see `why_unlisted`.
    """
    for name in (image, label or ""):
        if reason := why_unlisted(name):
            raise UserError(f"{name!r}: {reason} cannot be listed; rename the file")
    if label is None:
        return f"{image}\t\n" if " " in image else f"{image}\n"
    return f"{image}\t{label}\n"


def read_lines(path: Path) -> list[str]:
    """The lines of a list of names, split at ``\\n`` only, since names may hold other characters that Python splits at.

    Raises:
        UserError: the file is not plain UTF-8.
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
