"""Writers of image files that Pillow cannot write, from their specifications: samples of any depth, every tag."""

import struct
import zlib

import numpy as np

_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png(samples, bits, *, color_type=0, chunks=(), interlaced=False):
    """A PNG file's bytes.

    Args:
        samples: ``(H, W)``, or ``(H, W, C)`` for types of several channels.
        bits: of each sample.
        color_type: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA.
        chunks: pairs of a name and content that stand before the pixels.
        interlaced: in seven passes.
    """
    height, width = samples.shape[:2]
    parts = [samples[y::dy, x::dx] for y, x, dy, dx in _ADAM7] if interlaced else [samples]
    rows = b"".join(b"\0" + _packed(row.ravel(), bits) for part in parts if part.size for row in part)
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, int(interlaced))
    every = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    framed = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in every)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def tiff(samples, bits, *, photometric=1, sample_format=1, order="<"):
    """An uncompressed TIFF file's bytes: one channel, rows of whole bytes.

    Args:
        samples: ``(H, W)``; integers of up to 8 bits, or an array whose bytes are written as they are.
        bits: of each sample.
        photometric: 0 where 0 is white, 1 where it is black.
        sample_format: 1 unsigned, 2 signed, 3 floating-point.
        order: ``<`` or ``>``.
    """
    height, width = samples.shape
    data = b"".join(_packed(row, bits) for row in samples) if bits <= 8 else samples.tobytes()
    tags = [
        (256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8),
        (277, 3, 1), (278, 4, height), (279, 4, len(data)), (339, 3, sample_format),
    ]  # fmt: skip
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, kind, 1) + struct.pack(f"{order}{'HH' if kind == 3 else 'I'}", *(
            (value, 0) if kind == 3 else (value,)
        ))
        for tag, kind, value in tags
    )  # fmt: skip
    start = 8 + len(data) + len(data) % 2
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    return head + data.ljust(start - 8, b"\0") + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def _packed(row, bits):
    """A row of samples, the first in the highest bits, filled up to a whole byte."""
    if bits == 16:
        return np.asarray(row).astype(">u2").tobytes()
    digits = "".join(f"{int(value) & (2**bits - 1):0{bits}b}" for value in row)
    digits += "0" * (-len(digits) % 8)
    return bytes(int(digits[at : at + 8], 2) for at in range(0, len(digits), 8))
