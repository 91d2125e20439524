"""Photographs as cameras and programs save them; their masks are sound."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tests.data.oddities import NUM_IMAGES, Oddity, Truth, photograph, scene

ORIENTATION = 0x0112
STORED = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
Save = Callable[[Image.Image, Path], None]  # the upright photograph, and its path without suffix


def dataset(root: Path, name: str, save: Save, *, odd: int = 3, square: bool = False, mask_turned: int = 1) -> Truth:
    """Photographs and masks of which number `odd` is saved otherwise; its mask as stored where it is turned."""
    folder, truth = root / name, {}
    for index in range(NUM_IMAGES):
        classes, stem = scene(index), f"photo{index}"
        if square:
            classes = classes[:, 12:60]
        for part in ("images", "labels"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        image, mask = Image.fromarray(photograph(classes, index)), Image.fromarray(classes)
        if index == odd:
            save(image, folder / "images" / stem)
            if mask_turned != 1:
                mask = mask.transpose(STORED[mask_turned])
        else:
            image.save(folder / "images" / f"{stem}.png")
        mask.save(folder / "labels" / f"{stem}.png")
        truth[stem] = classes
    return truth


def save_turned(image: Image.Image, path: Path, *, orientation: int) -> None:
    """As a phone does: the sensor's pixels, and a tag that says how to turn them."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.transpose(STORED[orientation]).save(f"{path}.jpg", exif=exif, quality=95)


def save_strange_tag(image: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 9
    image.save(f"{path}.jpg", exif=exif, quality=95)


def save_mode(image: Image.Image, path: Path, *, mode: str, suffix: str) -> None:
    image.convert(mode).save(f"{path}{suffix}")


def save_deep(image: Image.Image, path: Path) -> None:
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 256).save(f"{path}.png")


def save_cut(image: Image.Image, path: Path) -> None:
    image.save(f"{path}.jpg")
    whole = Path(f"{path}.jpg").read_bytes()
    Path(f"{path}.jpg").write_bytes(whole[: len(whole) // 2])


def save_text(image: Image.Image, path: Path) -> None:
    Path(f"{path}.jpg").write_text("<html>404 Not Found</html>")


def _of(name: str, save: Save, **options: object) -> Callable[[Path], Truth]:
    return partial(dataset, name=name, save=save, **options)


PHOTOGRAPHS = [
    Oddity("on-its-side", _of("on-its-side", partial(save_turned, orientation=6)), says=("EXIF", "photo3")),
    Oddity(
        "mask-as-stored",
        _of("mask-as-stored", partial(save_turned, orientation=6), mask_turned=6),
        refused_by="audit",
        says=("upright", "photo3"),
    ),
    Oddity(
        "square-on-its-side",
        _of("square-on-its-side", partial(save_turned, orientation=8), square=True),
        says=("EXIF", "photo3"),
    ),
    Oddity("upside-down", _of("upside-down", partial(save_turned, orientation=3)), says=("EXIF", "photo3")),
    Oddity("strange-tag", _of("strange-tag", save_strange_tag)),
    Oddity("cmyk", _of("cmyk", partial(save_mode, mode="CMYK", suffix=".jpg")), says=("CMYK", "photo3")),
    Oddity("one-channel", _of("one-channel", partial(save_mode, mode="L", suffix=".jpg")), says=("grey", "photo3")),
    Oddity("deep-photo", _of("deep-photo", save_deep), says=("16-bit", "photo3")),
    Oddity("cut-off", _of("cut-off", save_cut), refused_by="prepare", says=("photo3",)),
    Oddity("no-photo", _of("no-photo", save_text), refused_by="prepare", says=("photo3",)),
]
