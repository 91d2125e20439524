"""Photographs with an EXIF tag, made from the meaning that the standard gives it."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

ORIENTATION = 0x0112
# EXIF 2.3, tag 274: which visual side the stored row 0 is, and which the stored column 0.
SIDES = {
    1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
    5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
}  # fmt: skip


def as_stored(shown: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera stores of a picture ``(H, W, ...)`` that viewers show so, pixel by pixel."""
    height, width = shown.shape[:2]
    first_row, first_column = SIDES[orientation]
    size = (height, width) if first_row in ("top", "bottom") else (width, height)
    stored = np.empty((*size, *shown.shape[2:]), shown.dtype)
    for row in range(size[0]):
        for column in range(size[1]):
            at = {}
            for side, number in ((first_row, row), (first_column, column)):
                axis = "y" if side in ("top", "bottom") else "x"
                last = (height if axis == "y" else width) - 1
                at[axis] = number if side in ("top", "left") else last - number
            stored[row, column] = shown[at["y"], at["x"]]
    return stored


def save_turned(shown: np.ndarray, path: Path, orientation: int, **options: object) -> Path:
    """Saves a picture so that a viewer shows it upright only if it heeds the tag."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(as_stored(shown, orientation)).save(path, exif=exif, **options)
    return path


def picture(height: int = 24, width: int = 40, seed: int = 0) -> np.ndarray:
    """Blocks of 8x8 pixels, no two turns of which are alike."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)


def exif_block(kind: int, count: int, value: bytes) -> bytes:
    """EXIF data with nothing but an orientation, of any type (3 is a SHORT, as it should be)."""
    entry = struct.pack("<HHI", ORIENTATION, kind, count) + value.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)


def add_exif(path: Path, block: bytes, *, late: bool = False) -> Path:
    """Writes EXIF data into a JPEG or PNG file as it is, into a PNG before or behind its pixels."""
    content = path.read_bytes()
    if content.startswith(b"\xff\xd8"):
        segment = b"Exif\0\0" + block
        path.write_bytes(content[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + content[2:])
    else:
        chunk = b"eXIf" + block
        whole = struct.pack(">I", len(block)) + chunk + struct.pack(">I", zlib.crc32(chunk))
        at = len(content) - 12 if late else 8 + 25  # IEND has 12 bytes, the signature 8 and IHDR 25
        path.write_bytes(content[:at] + whole + content[at:])
    return path
