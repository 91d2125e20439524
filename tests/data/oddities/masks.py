"""Masks as programs save them."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, PngImagePlugin
from tests.data.oddities import ANY, NUM_IMAGES, Oddity, Truth, photograph, scene

COLORS = np.array([[200, 30, 30], [30, 160, 40], [20, 40, 220], [230, 210, 40]], np.uint8)
Save = Callable[[np.ndarray, Path, int], None]  # classes, the mask's path without suffix, number of the image


def dataset(
    root: Path,
    name: str,
    save: Save,
    *,
    num_classes: int = 3,
    description: dict | None = None,
    truth: Callable[[np.ndarray, int], np.ndarray] = lambda classes, index: classes,
    draw: Callable[[int], np.ndarray] | None = None,
    num_images: int = NUM_IMAGES,
) -> Truth:
    """Images and masks below ``root/name``; `draw` draws other classes than `scene`."""
    folder, found = root / name, {}
    for index in range(num_images):
        classes, stem = draw(index) if draw else scene(index, num_classes), f"street {index}"
        for part in ("images", "labels"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(classes, index)).save(folder / "images" / f"{stem}.png")
        save(classes, folder / "labels" / stem, index)
        found[stem] = truth(classes, index)
    if description is not None:
        (folder / "dataset.json").write_text(json.dumps(description))
    return found


def save_grey(classes: np.ndarray, path: Path, index: int) -> None:
    Image.fromarray(classes).save(f"{path}.png")


def save_colors(classes: np.ndarray, path: Path, index: int) -> None:
    Image.fromarray(COLORS[classes]).save(f"{path}.png")


def save_quantized(classes: np.ndarray, path: Path, index: int) -> None:
    """Each file has the palette that suits it."""
    shown = np.roll(np.arange(4), index)[: len(np.unique(classes))]
    image = Image.fromarray(shown.argsort().argsort()[_dense(classes)].astype(np.uint8), "P")
    palette = np.zeros((256, 3), np.uint8)
    palette[shown.argsort().argsort()] = COLORS[np.unique(classes)]
    image.putpalette(palette.tobytes())
    image.save(f"{path}.png")


def _dense(classes: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.unique(classes), classes)


def save_palette(classes: np.ndarray, path: Path, index: int, *, unused: int = 0, **options: object) -> None:
    """Indices are ids; entries that no pixel has are `unused`."""
    palette = np.full((256, 3), unused, np.uint8)
    palette[:4] = COLORS
    image = Image.fromarray(classes, "P")
    image.putpalette(palette.tobytes())
    image.save(f"{path}.png", **options)


def save_one_bit(classes: np.ndarray, path: Path, index: int) -> None:
    Image.fromarray(classes > 0).save(f"{path}.png")


def save_half_one_bit(classes: np.ndarray, path: Path, index: int, *, white: int) -> None:
    """White, 1 or 255, in files of 1 bit and of 8."""
    if index % 2:
        save_one_bit(classes, path, index)
    else:
        Image.fromarray(np.where(classes > 0, white, 0).astype(np.uint8)).save(f"{path}.png")


def write_png(path: Path, samples: np.ndarray, *, bits: int, interlaced: bool = False) -> None:
    """A grey PNG of fewer bits than a byte, or an interlaced one, neither of which Pillow writes."""
    height, width = samples.shape
    if interlaced:
        starts = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
        passes = [samples[y::dy, x::dx] for y, x, dy, dx in starts]
    else:
        passes = [samples]
    raw = b"".join(b"\0" + _packed(row, bits) for part in passes if part.size for row in part)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, int(interlaced))
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, content in chunks:
            file.write(struct.pack(">I", len(content)) + kind + content)
            file.write(struct.pack(">I", zlib.crc32(kind + content)))


def _packed(row: np.ndarray, bits: int) -> bytes:
    digits = np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, -bits:]
    return np.packbits(digits.ravel()).tobytes()


def save_few_bits(classes: np.ndarray, path: Path, index: int, *, bits: int) -> None:
    write_png(path.with_name(f"{path.name}.png"), classes, bits=bits)


def save_interlaced(classes: np.ndarray, path: Path, index: int) -> None:
    write_png(path.with_name(f"{path.name}.png"), classes, bits=8, interlaced=True)


def save_tiff(classes: np.ndarray, path: Path, index: int, *, dtype: type, offset: int = 0) -> None:
    Image.fromarray((classes.astype(int) + offset).astype(dtype)).save(f"{path}.tif")


def save_two_pages(classes: np.ndarray, path: Path, index: int) -> None:
    other = Image.fromarray(np.zeros_like(classes))
    Image.fromarray(classes).save(f"{path}.tif", save_all=True, append_images=[other])


def save_rgba(classes: np.ndarray, path: Path, index: int) -> None:
    """The last two columns are transparent, and hide the colour of a class."""
    pixels = np.dstack((COLORS[classes], np.full(classes.shape, 255, np.uint8)))
    pixels[:, -2:] = (*COLORS[0], 0)
    Image.fromarray(pixels).save(f"{path}.png")


def hidden(classes: np.ndarray, index: int) -> np.ndarray:
    """What is transparent is a class of its own."""
    truth = classes.astype(int)
    truth[:, -2:] = 9
    return truth


def save_smoothed(classes: np.ndarray, path: Path, index: int, *, sigma: float = 0.6) -> None:
    """One mask was drawn with soft edges."""
    image = Image.fromarray(COLORS[classes])
    if index == 3:
        image = image.filter(ImageFilter.GaussianBlur(sigma))
    image.save(f"{path}.png")


def sharp(classes: np.ndarray, index: int) -> np.ndarray:
    """Whatever lies at an edge of the smoothed mask may be either."""
    return blurred(classes, index) if index == 3 else classes


def blurred(classes: np.ndarray, index: int) -> np.ndarray:
    """Whatever lies at an edge may be either."""
    truth = classes.astype(int)
    image = Image.fromarray(classes)
    highest, lowest = (np.asarray(image.filter(kind(9))) for kind in (ImageFilter.MaxFilter, ImageFilter.MinFilter))
    truth[highest != lowest] = ANY
    return truth


def save_jpeg(classes: np.ndarray, path: Path, index: int) -> None:
    Image.fromarray(COLORS[classes]).save(f"{path}.jpg", quality=80)


def save_with_gamma(classes: np.ndarray, path: Path, index: int) -> None:
    save_chunks(classes, path, [(b"gAMA", struct.pack(">I", 100000))])


def save_chunks(classes: np.ndarray, path: Path, chunks: Sequence[tuple[bytes, bytes]]) -> None:
    info = PngImagePlugin.PngInfo()
    for kind, content in chunks:
        info.add(kind, content)
    Image.fromarray(COLORS[classes]).save(f"{path}.png", pnginfo=info)


def save_turned(classes: np.ndarray, path: Path, index: int) -> None:
    """An orientation that a phone would write into a photograph."""
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(classes).save(f"{path}.png", exif=exif)


def _of(name: str, save: Save, **options: object) -> Callable[[Path], Truth]:
    return partial(dataset, name=name, save=save, **options)


THREE_IDS = {"classes": [{"name": name, "id": k} for k, name in enumerate("abc")]}
MASKS = [
    Oddity("grey", _of("grey", save_grey)),
    Oddity("colours", _of("colours", save_colors)),
    Oddity("one-palette", _of("one-palette", save_palette)),
    Oddity(
        "unused-entries-differ",
        _of("unused-entries-differ", lambda classes, path, index: save_palette(classes, path, index, unused=index)),
    ),
    Oddity("quantized", _of("quantized", save_quantized), says=("palette",)),
    Oddity(
        "quantized-as-ids",
        _of("quantized-as-ids", save_quantized, description={**THREE_IDS, "label_format": "ids"}),
        refused_by="audit",
        says=("palette", "street"),
    ),
    Oddity("one-bit", _of("one-bit", save_one_bit, num_classes=2)),
    Oddity(
        "depths-clash",
        _of("depths-clash", partial(save_half_one_bit, white=255), num_classes=2),
        refused_by="prepare",
        says=("bit", "street"),
    ),
    Oddity("depths-mixed", _of("depths-mixed", partial(save_half_one_bit, white=1), num_classes=2), says=("bit",)),
    Oddity("two-bits", _of("two-bits", partial(save_few_bits, bits=2), description=THREE_IDS)),
    Oddity("four-bits", _of("four-bits", partial(save_few_bits, bits=4))),
    Oddity("in-passes", _of("in-passes", save_interlaced), says=("interlaced",)),
    Oddity("int32-tiff", _of("int32-tiff", partial(save_tiff, dtype=np.int32))),
    Oddity("uint16-tiff", _of("uint16-tiff", partial(save_tiff, dtype=np.uint16))),
    Oddity("float-tiff", _of("float-tiff", partial(save_tiff, dtype=np.float32))),
    Oddity(
        "ids-above-255",
        _of("ids-above-255", partial(save_tiff, dtype=np.uint16, offset=300)),
        refused_by="prepare",
        says=("300", "street"),
    ),
    Oddity("tiff-twice", _of("tiff-twice", save_two_pages), says=("page",)),
    Oddity("holes", _of("holes", save_rgba, truth=hidden), says=("transparent",)),
    Oddity("smoothed", _of("smoothed", save_smoothed, truth=sharp), says=("street 3",)),
    Oddity("soft-brush", _of("soft-brush", partial(save_smoothed, sigma=1), truth=sharp), says=("street 3",)),
    Oddity("lossy", _of("lossy", save_jpeg), refused_by="prepare", says=("PNG", "street")),
    Oddity(
        "table-with-holes",
        _of("table-with-holes", partial(save_palette, transparency=0)),
        says=("transparen",),
    ),
    Oddity("with-a-chunk", _of("with-a-chunk", save_with_gamma), says=("gamma",)),
    Oddity("turned-mask", _of("turned-mask", save_turned), says=("EXIF", "street")),
    Oddity(
        "one-value",
        _of("one-value", lambda classes, path, index: save_grey(classes * 0, path, index)),
        refused_by="prepare",
        says=("two classes",),
    ),
]
