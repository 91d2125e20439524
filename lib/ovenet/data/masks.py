"""Label files as they are stored: how (`MaskForm`, from the header alone), and the raw samples (`Mask`).

Shapes: ``H W`` size of the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from ovenet.data.files import first_bytes, header_size, opened, orientation_of
from ovenet.data.info import Color
from ovenet.errors import UserError

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_WHITE_IS_ZERO, _SIGNED = 0, 2
_SRGB_GAMMA = 0.45455  # which changes nothing
_LOSSY_FORMATS = ("JPEG", "MPO", "AVIF")
_LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")
_ID_MODES = ("1", "L", "P", "I", "F")  # and I;16, I;16B, ...
_COLOR_MODES = ("RGB", "RGBA", "RGBX", "RGBa", "LA", "La", "PA")
_STRAIGHT_ALPHA = {"La": "LA", "RGBa": "RGBA"}  # whose colours are stored multiplied by their opacity
_BMP_BITS = {"1": 1, "L": 8}  # Pillow takes other files for such, by their palette, and reads them wrongly
_MODE_BITS = {"1": 1, "I": 32, "F": 32}


@dataclass(frozen=True)
class MaskForm:
    """How a label file is stored, from its header.

    Attributes:
        file_format: by content, whatever the suffix says: ``PNG``, ``TIFF``, ``JPEG``, …
        mode: of its pixels, in Pillow's words: ``1``, ``L``, ``P``, ``I;16``, ``RGB``, ``RGBA``, …
        bits: of each sample in the file.
        size: ``(H, W)`` in pixels.
        palette: the colour of each index; None without a palette.
        alpha: where its opacity stands: in a ``channel``, in the ``palette``, or one ``color`` or grey level is marked
            transparent; ``none`` where all is opaque.
        color_chunks: which of ``icc``, ``gamma``, ``chromaticity`` say that viewers should change its colours.
        is_interlaced: a PNG in seven passes.
        is_lossy: stored in a way that changes samples, like JPEG.
        is_inverted: a TIFF that calls 0 white.
        num_pages: pages of a TIFF or frames of an animation.
        orientation: EXIF's; 1 is upright, and so is a TIFF, which is turned as it is read.
    """

    file_format: str
    mode: str
    bits: int
    size: tuple[int, int]
    palette: tuple[Color, ...] | None = None
    alpha: Literal["none", "channel", "palette", "color"] = "none"
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


@dataclass(frozen=True)
class Mask:
    """A label file's content.

    Attributes:
        form: how it is stored.
        samples: ``(H, W)`` ids as stored, never scaled to 255 or inverted, uint8 or wider; of 1 bit, where formats
            differ in what 0 is, black is 0 and white 1. Or colours ``(H, W, 3)`` uint8 RGB.
        alpha: ``(H, W)`` uint8 opacity, 0 is transparent; None where every pixel is opaque.
    """

    form: MaskForm
    samples: np.ndarray
    alpha: np.ndarray | None = None

    def colors(self, path: Path) -> np.ndarray:
        """Colours ``(H, W, 3)`` uint8 RGB: of the palette, grey where there is none.

        Args:
            path: of the file, for the message.

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
            levels = 255 // (2**self.form.bits - 1) if self.form.bits < 8 else 1
            return np.repeat((self.samples * np.uint8(levels))[..., None], 3, axis=2)
        last = int(self.samples.max(initial=0))
        if last >= len(self.form.palette):
            raise UserError(
                f"{path}: the label holds index {last}, and its palette has {len(self.form.palette)} colours; "
                "save it anew"
            )
        return np.array(self.form.palette, np.uint8)[self.samples]


def read_form(path: Path) -> MaskForm:
    """How a label file is stored; its pixels are not decoded.

    Raises:
        UserError: it is missing, no image or damaged.
    """
    with opened(path, "label") as image:
        return _form(image, path)


def read_mask(path: Path) -> Mask:
    """Reads a label file; of several pages or frames the first.

    Raises:
        UserError: it is missing, no image or damaged, its colours are of another kind than RGB, or its samples are no
            whole numbers.
    """
    with opened(path, "label") as image:
        form = _form(image, path)
        if not form.holds_ids and form.mode not in _COLOR_MODES:
            raise UserError(f"{path}: the label's colours are {form.mode}; save it as a PNG of ids or RGB colours")
        if form.file_format == "BMP" and form.bits != _BMP_BITS.get(form.mode, form.bits):
            raise UserError(f"{path}: the label is a BMP of {form.bits} bits with few grey levels; save it as PNG")
        max_sample = _max_sample(image)
        tags = image.tag_v2 if form.file_format == "TIFF" else {}
        sample_format = tags.get(_SAMPLE_FORMAT, (1,))[0]
        image.load()
        if form.holds_ids:
            samples = _whole_numbers(np.asarray(image), path)
            samples = _as_stored(samples, form, max_sample, is_signed=sample_format == _SIGNED)
        else:
            straight = image.convert(_STRAIGHT_ALPHA[form.mode]) if form.mode in _STRAIGHT_ALPHA else image
            samples = np.asarray(straight if straight.mode == "RGB" else straight.convert("RGB"))
        alpha = _alpha(image, form, samples)
    return Mask(form, samples, None if alpha is None or alpha.min(initial=255) == 255 else alpha)


def count_plain_ids(path: Path, *, num_rows: int) -> tuple[MaskForm, dict[int, int], np.ndarray] | None:
    """How many pixels of a label file have which id, faster than `read_mask` and counting.

    Args:
        path: the file.
        num_rows: how many rows to give, evenly spread.

    Returns:
        Its form, the counts, and rows ``(num_rows or less, W)`` uint8; None for all but PNGs of one opaque channel of
        8 bits, whose samples Pillow leaves as they are.

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


def _form(image: Image.Image, path: Path) -> MaskForm:
    """The form of an image that is open but not decoded."""
    bits = _MODE_BITS.get(image.mode, 16 if image.mode.startswith("I;16") else 8)
    inverted = False
    if image.format == "PNG":
        bits = first_bytes(image, 25)[24]
    elif image.format == "BMP":
        bits = int.from_bytes(first_bytes(image, 30)[28:], "little") if not image.mode.startswith("RGB") else 8
    elif image.format == "TIFF":
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


def _max_sample(image: Image.Image) -> int:
    """What a PGM that is open calls white where that is not the largest number of its bits, so that Pillow scales it to
    that; else 0."""
    if image.format != "PPM" or image.mode not in ("L", "I") or image.tile[0][0] == "raw":
        return 0
    return image.tile[0][3][1]


def _palette(image: Image.Image) -> tuple[Color, ...] | None:
    if image.mode not in ("P", "PA") or image.palette is None:
        return None
    order, data = image.palette.getdata()
    if order != "RGB":
        one_pixel = Image.new("P", (1, 1))
        one_pixel.putpalette(data, order)
        data = bytes(one_pixel.getpalette("RGB"))
    return tuple(zip(data[::3], data[1::3], data[2::3], strict=False))


def _kind_of_alpha(image: Image.Image) -> Literal["none", "channel", "palette", "color"]:
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
        # A frame of an animation has 16 bytes of its own before the chunks of its picture.
        at += 8 + 16 if name == b"ANMF" else 8 + length + length % 2
    return True


def _whole_numbers(values: np.ndarray, path: Path) -> np.ndarray:
    """Integers from what Pillow gives, which may be truth values or floats."""
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype.kind != "f":
        return values
    wrong = ~np.isfinite(values) | (values != np.round(values))
    if wrong.any():
        raise UserError(
            f"{path}: the label holds the number {values[wrong][0]:g} ({int(wrong.sum())} pixels are no whole "
            "numbers); save ids as 8-bit integers"
        )
    return values.clip(-(2.0**62), 2.0**62).astype(np.int64)


def _as_stored(samples: np.ndarray, form: MaskForm, max_sample: int, *, is_signed: bool) -> np.ndarray:
    """Undoes what Pillow does to samples of fewer than 8 bits, of inverted files and of other kinds of integers."""
    if form.mode == "L":
        if form.is_inverted:
            samples = 255 - samples
        if max_sample:
            return np.round(samples * (max_sample / 255)).astype(np.uint8)
        if form.bits in (2, 4):
            scale = np.uint8(255 // (2**form.bits - 1))
            # Whether they were scaled is seen, not taken for granted.
            return samples if (samples % scale).any() else samples // scale
        return samples.view(np.int8) if is_signed else samples
    if form.mode == "I":
        if max_sample:
            return np.round(samples * (max_sample / 65535)).astype(np.int32)
        if form.bits == 32 and form.file_format == "TIFF" and not is_signed:
            return samples.view(np.uint32)
    return samples


def _alpha(image: Image.Image, form: MaskForm, samples: np.ndarray) -> np.ndarray | None:
    """Opacity ``(H, W)`` uint8; None for files without."""
    if form.alpha == "channel":
        return np.asarray(image.getchannel("a" if form.mode in ("RGBa", "La") else "A"))
    transparent = image.info.get("transparency")
    if form.alpha == "none" or (form.alpha == "palette" and form.palette is None):
        return None
    if isinstance(transparent, bytes):
        table = np.full(256, 255, np.uint8)
        table[: len(transparent)] = np.frombuffer(transparent[:256], np.uint8)
        return table[samples]
    if form.alpha == "color" and form.bits == 16 and samples.ndim == 3:
        transparent = tuple(value >> 8 for value in transparent)
    hidden = samples == np.array(transparent)
    return np.where(hidden.all(axis=2) if samples.ndim == 3 else hidden, 0, 255).astype(np.uint8)
