"""Reading an upload, with errors in the words of a person: they stand on the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ovenet.data.files import read_image
from ovenet.data.foreign import name_file
from ovenet.errors import UserError

MAX_PIXELS = 40_000_000


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
    what = name_file(file) or "a file of an unknown kind, or a damaged one"
    return f"This is {what}." if ", which" in what else f"This is {what}, not a photograph."
