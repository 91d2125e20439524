"""Reading an upload, with errors in the words of a person: they stand on the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ovenet.data.files import read_image
from ovenet.errors import UserError

MAX_PIXELS = 40_000_000
_HEAD_BYTES = 512
_HEIC = "This is an HEIC picture, which is not read here. Export it as JPEG."
_VIDEO = "This is a video. Give its name the ending of one, such as .mp4."
_SOUND = "This is a sound, not a photograph."
_SIGNATURES = (
    (0, b"%PDF", "This is a PDF, not a photograph."),
    (0, b"PK\x03\x04", "This is a ZIP archive or an Office document, not a photograph."),
    (0, b"\x1f\x8b", "This is a compressed archive, not a photograph."),
    (0, b"\xd0\xcf\x11\xe0", "This is an Office document, not a photograph."),
    (4, b"ftyphe", _HEIC),
    (4, b"ftypmif1", _HEIC),
    (4, b"ftypM4A", _SOUND),
    (4, b"ftyp", _VIDEO),
    (0, b"\x1a\x45\xdf\xa3", _VIDEO),
    (8, b"AVI ", _VIDEO),
    (8, b"WAVE", _SOUND),
    (0, b"ID3", _SOUND),
    (0, b"OggS", _SOUND),
)


def read_upload(file: Path) -> np.ndarray:
    """A photograph as ``(H, W, 3)`` uint8 RGB, upright.

    Raises:
        UserError: it is none that can be read; says what it is instead, without its path.
    """
    try:
        return read_image(file, max_pixels=MAX_PIXELS)
    except UserError as error:
        raise UserError(_refusal(file, error)) from error


def _refusal(file: Path, error: UserError) -> str:
    cause = error.__cause__
    if cause is None:  # an image of a kind that is not read
        return str(error).removeprefix(f"{file}: ")
    if isinstance(cause, Image.DecompressionBombError):
        return f"The photo has more than {MAX_PIXELS // 10**6} megapixels. Save it smaller."
    if not isinstance(cause, UnidentifiedImageError):
        return "The photo is damaged or incomplete. Choose another copy of it."
    with file.open("rb") as source:
        head = source.read(_HEAD_BYTES)
    for start, signature, sentence in _SIGNATURES:
        if head.startswith(signature, start):
            return sentence
    if b"<svg" in head:
        return "This is a drawing (SVG), not a photograph. Save it as PNG."
    if all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        return "This is a text, not a photograph."
    return "This is not a photograph: an unknown kind of file, or a damaged one."
