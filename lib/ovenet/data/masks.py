"""Label files as stored: the format (`MaskForm`, from the header alone), and the raw samples (`Mask`).

Shapes: ``H W`` size of the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from ovenet.data.files import bytes_of, header_size, opened, orientation_of
from ovenet.data.info import Color
from ovenet.errors import UserError
from ovenet.structures import Size

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_WHITE_IS_ZERO, _SIGNED = 0, 2
_SRGB_GAMMA = 0.45455  # changes nothing
_LOSSY_FORMATS = ("JPEG", "MPO", "AVIF")
_LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")
_ID_MODES = ("1", "L", "P", "I", "F")  # and I;16, I;16B, ...
_COLOR_MODES = ("RGB", "RGBA", "RGBX", "RGBa", "LA", "La", "PA")
_STRAIGHT_ALPHA = {"La": "LA", "RGBa": "RGBA"}  # premultiplied modes and their straight counterparts
_BMP_BITS = {"1": 1, "L": 8}  # Pillow opens other depths in these modes, by their palette, and reads them wrongly
_MODE_BITS = {"1": 1, "I": 32, "F": 32}
Alpha = Literal["none", "channel", "palette", "color"]


@dataclass(frozen=True)
class MaskForm:
    """How a label file is stored, from its header.

    Attributes:
        file_format: by content, not by suffix: ``PNG``, ``TIFF``, ``JPEG``, …
        mode: Pillow's pixel mode: ``1``, ``L``, ``P``, ``I;16``, ``RGB``, ``RGBA``, …
        bits: per sample in the file.
        size: ``(H, W)`` in pixels.
        palette: the colour of each index; None without a palette.
        alpha: where the opacity is stored: a ``channel``, the ``palette``, or one ``color`` or grey level is
            transparent; ``none`` where everything is opaque.
        color_chunks: which of ``icc``, ``gamma``, ``chromaticity`` tell viewers to change the colours.
        is_interlaced: an interlaced PNG.
        is_lossy: compressed in a way that changes samples, like JPEG.
        is_inverted: a TIFF in which 0 is white.
        num_pages: pages of a TIFF or frames of an animation.
        orientation: EXIF orientation; 1 is upright, and always so for a TIFF, which Pillow turns on reading.
    """

    file_format: str
    mode: str
    bits: int
    size: Size
    palette: tuple[Color, ...] | None = None
    alpha: Alpha = "none"
    color_chunks: tuple[str, ...] = ()
    is_interlaced: bool = False
    is_lossy: bool = False
    is_inverted: bool = False
    num_pages: int = 1
    orientation: int = 1

    @property
    def holds_ids(self) -> bool:
        """Whether it has one channel: ids, or indices of a palette."""
        return self.mode in _ID_MODES or self.mode.startswith("I;16")

    @property
    def grey_step(self) -> int:
        """Grey levels of 8 bits from one id to the next, as viewers show files of fewer bits."""
        return 255 // (2**self.bits - 1) if self.bits < 8 else 1


@dataclass(frozen=True)
class Mask:
    """A label file's content.

    Attributes:
        form: how it is stored.
        samples: ``(H, W)`` ids as stored, never scaled to 255 or inverted, uint8 or wider; with 1 bit, black is 0 and
            white is 1 in every format. Or colours ``(H, W, 3)`` uint8 RGB.
        alpha: ``(H, W)`` uint8 opacity, 0 is transparent; None where every pixel is opaque.
    """

    form: MaskForm
    samples: np.ndarray
    alpha: np.ndarray | None = None

    def colors(self, path: Path) -> np.ndarray:
        """Colours ``(H, W, 3)`` uint8 RGB, looked up in the palette, or grey without one; `path` is for messages.

        Raises:
            UserError: grey levels of more than 8 bits, or an index beyond the palette.
        """
        if self.samples.ndim == 3:
            return self.samples
        if self.form.palette is None:
            if self.samples.dtype != np.uint8:
                raise UserError(
                    f"{path}: the label holds grey levels of {self.form.bits} bits, and colours are expected; "
                    "save it with 8 bits"
                )
            return np.repeat((self.samples * np.uint8(self.form.grey_step))[..., None], 3, axis=2)
        last = int(self.samples.max(initial=0))
        if last >= len(self.form.palette):
            raise UserError(
                f"{path}: the label holds index {last}, and its palette has {len(self.form.palette)} colours; "
                "save it again"
            )
        return np.array(self.form.palette, np.uint8)[self.samples]


def read_form(path: Path) -> MaskForm:
    """The form of a label file, without decoding its pixels.

    Raises:
        UserError: it is missing, no image or damaged.
    """
    with opened(path, "label") as image:
        return _form(image, path)


def read_mask(path: Path) -> Mask:
    """Reads a label file, the first of several pages or frames.

    Raises:
        UserError: it is missing, no image or damaged, its colours are not RGB, or its samples are no integers.
    """
    with opened(path, "label") as image:
        form = _form(image, path)
        if not form.holds_ids and form.mode not in _COLOR_MODES:
            raise UserError(f"{path}: the label's colours are {form.mode}; save it as a PNG of ids or RGB colours")
        if form.file_format == "BMP" and form.bits != _BMP_BITS.get(form.mode, form.bits):
            raise UserError(f"{path}: the label is a BMP of {form.bits} bits with few grey levels; save it as PNG")
        max_sample = _max_sample(image)
        is_signed = isinstance(image, TiffImageFile) and image.tag_v2.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED
        image.load()
        if form.holds_ids:
            samples = _as_stored(_integers(np.asarray(image), path), form, max_sample, is_signed=is_signed)
        else:
            straight = image.convert(_STRAIGHT_ALPHA[form.mode]) if form.mode in _STRAIGHT_ALPHA else image
            samples = np.asarray(straight if straight.mode == "RGB" else straight.convert("RGB"))
        alpha = _alpha(image, form, samples)
    return Mask(form, samples, None if alpha is None or alpha.min(initial=255) == 255 else alpha)


def count_plain_ids(path: Path, *, num_rows: int) -> tuple[MaskForm, dict[int, int], np.ndarray] | None:
    """Pixels of each id in a label file, faster than counting after `read_mask`.

    Args:
        path: the file.
        num_rows: number of rows to return, evenly spread.

    Returns:
        Its form, the counts, and up to `num_rows` rows ``(…, W)`` uint8; None unless it is a PNG with one opaque
        channel of 8 bits, the samples of which Pillow does not change.

    Raises:
        UserError: as `read_mask`.
    """
    with opened(path, "label") as image:
        form = _form(image, path)
        if (form.file_format, form.bits, form.alpha) != ("PNG", 8, "none") or form.mode not in ("L", "P"):
            return None
        image.load()
        counts = {value: number for value, number in enumerate(image.histogram()) if number}
        size = (image.width, min(num_rows, image.height))
        return form, counts, np.asarray(image.resize(size, Image.Resampling.NEAREST))


def _form(image: ImageFile.ImageFile, path: Path) -> MaskForm:
    """The form of an image that is open but not decoded."""
    bits = _MODE_BITS.get(image.mode, 16 if image.mode.startswith("I;16") else 8)
    inverted = False
    if image.format == "PNG":
        bits = bytes_of(image, 25)[24]
    elif image.format == "BMP":
        bits = int.from_bytes(bytes_of(image, 30)[28:], "little") if not image.mode.startswith("RGB") else 8
    elif isinstance(image, TiffImageFile):
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, (1,))[0]
        inverted = image.mode in ("1", "L") and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    elif max_sample := _max_sample(image):
        bits = max_sample.bit_length()
    chunks = (("icc", "icc_profile"), ("gamma", "gamma"), ("chromaticity", "chromaticity"))
    return MaskForm(
        file_format=image.format or "",
        mode=image.mode,
        bits=bits,
        size=header_size(image),
        palette=_palette(image),
        alpha=_kind_of_alpha(image),
        color_chunks=tuple(name for name, key in chunks if image.info.get(key, _SRGB_GAMMA) != _SRGB_GAMMA),
        is_interlaced=image.format == "PNG" and bool(image.info.get("interlace")),
        is_lossy=_is_lossy(image, path),
        is_inverted=inverted,
        num_pages=getattr(image, "n_frames", 1),
        orientation=orientation_of(image),
    )


def _max_sample(image: ImageFile.ImageFile) -> int:
    """The white level of an open PGM whose samples Pillow rescales because it is not the largest value of their bits;
    else 0."""
    if image.format != "PPM" or image.mode not in ("L", "I"):
        return 0
    codec, _, _, arguments = image.tile[0]
    return arguments[1] if isinstance(arguments, tuple) and codec != "raw" else 0


def _palette(image: Image.Image) -> tuple[Color, ...] | None:
    if image.mode not in ("P", "PA") or image.palette is None:
        return None
    order, data = image.palette.getdata()
    if order != "RGB":
        one_pixel = Image.new("P", (1, 1))
        one_pixel.putpalette(data, order)
        data = bytes(one_pixel.getpalette("RGB") or ())
    return tuple(zip(data[::3], data[1::3], data[2::3], strict=False))


def _kind_of_alpha(image: Image.Image) -> Alpha:
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        return "channel"
    if "transparency" not in image.info:
        return "none"
    return "palette" if image.mode == "P" else "color"


def _is_lossy(image: Image.Image, path: Path) -> bool:
    if image.format == "TIFF":
        return image.info.get("compression") in _LOSSY_TIFF
    if image.format == "WEBP":
        return _has_lossy_chunk(path)
    return image.format in _LOSSY_FORMATS


def _has_lossy_chunk(path: Path) -> bool:
    """Whether a WebP file's first frame is ``VP8`` and not ``VP8L``."""
    data = path.read_bytes()
    at = 12
    while at + 8 <= len(data):
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name in (b"VP8 ", b"VP8L"):
            return name == b"VP8 "
        # A frame of an animation has a header of 16 bytes before the chunks of its picture.
        at += 8 + 16 if name == b"ANMF" else 8 + length + length % 2
    return True


def _integers(values: np.ndarray, path: Path) -> np.ndarray:
    """Pillow's samples, which may be booleans or floats, as integers."""
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype.kind != "f":
        return values
    wrong = ~np.isfinite(values) | (values != np.round(values))
    if wrong.any():
        raise UserError(
            f"{path}: the label holds the number {values[wrong][0]:g} ({int(wrong.sum())} pixels are no "
            "integers); save ids as 8-bit integers"
        )
    return values.clip(-(2.0**62), 2.0**62).astype(np.int64)


def _as_stored(samples: np.ndarray, form: MaskForm, max_sample: int, *, is_signed: bool) -> np.ndarray:
    """Undoes Pillow's changes to samples of fewer than 8 bits, of inverted files and of other integer types."""
    if form.mode == "L":
        if form.is_inverted:
            samples = 255 - samples
        if max_sample:
            return np.round(samples * (max_sample / 255)).astype(np.uint8)
        if form.bits in (2, 4):
            scale = np.uint8(form.grey_step)
            # Not every release of Pillow scales them, so the samples tell.
            return samples if (samples % scale).any() else samples // scale
        return samples.view(np.int8) if is_signed else samples
    if form.mode == "I":
        if max_sample:
            return np.round(samples * (max_sample / 65535)).astype(np.int32)
        if form.bits == 32 and form.file_format == "TIFF" and not is_signed:
            return samples.view(np.uint32)
    return samples


def _alpha(image: Image.Image, form: MaskForm, samples: np.ndarray) -> np.ndarray | None:
    """Opacity ``(H, W)`` uint8; None for files without alpha."""
    if form.alpha == "channel":
        return np.asarray(image.getchannel("a" if form.mode in ("RGBa", "La") else "A"))
    transparent = image.info.get("transparency")
    if transparent is None or form.alpha == "none" or (form.alpha == "palette" and form.palette is None):
        return None
    if isinstance(transparent, bytes):
        table = np.full(256, 255, np.uint8)
        table[: len(transparent)] = np.frombuffer(transparent[:256], np.uint8)
        return table[samples]
    if form.alpha == "color" and form.bits == 16 and samples.ndim == 3:
        transparent = tuple(value >> 8 for value in transparent)
    hidden = samples == np.array(transparent)
    return np.where(hidden.all(axis=2) if samples.ndim == 3 else hidden, 0, 255).astype(np.uint8)
