"""Folders as they come out of archives, paint programs and shared drives."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from PIL import Image
from tests.data.oddities import NUM_IMAGES, Oddity, Truth, photograph, scene

Spoil = Callable[[Path], object]


def dataset(
    root: Path,
    name: str,
    *,
    images: str = "images/{}",
    labels: str = "labels/{}",
    suffix: str = ".png",
    spoil: Spoil = lambda folder: None,
    without: tuple[int, ...] = (),
) -> Truth:
    """Images and masks at the places that the patterns name; `spoil` makes the oddity; `without`: not in the lists."""
    folder, truth = root / name, {}
    for index in range(NUM_IMAGES):
        classes = scene(index)
        image = folder / (images.format(f"shot{index}") + suffix)
        label = folder / (labels.format(f"shot{index}") + ".png")
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(classes, index)).save(image)
        Image.fromarray(classes).save(label)
        if index not in without:
            truth[image.stem] = classes
    spoil(folder)
    return truth


def remove(folder: Path, name: str) -> None:
    (folder / name).unlink()


def litter(folder: Path) -> None:
    """What Windows and macOS leave behind."""
    for part in ("images", "labels"):
        (folder / part / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
        (folder / part / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
        (folder / part / "._shot1.png").write_bytes(b"\0\5\26\7")
        (folder / part / "desktop.ini").write_text("[.ShellClassInfo]")


def add_copy(folder: Path) -> None:
    Image.open(folder / "images/shot2.png").convert("RGB").save(folder / "images/shot2.bmp")


def empty(folder: Path) -> None:
    (folder / "labels/shot2.png").write_bytes(b"")


def add_foreign_name(folder: Path) -> None:
    """A pair whose name is Latin-1, as old archives have it."""
    for part in ("images", "labels"):
        os.link(folder / part / "shot1.png", os.fsencode(folder / part) + b"/caf\xe9.png")


def link_in_circle(folder: Path) -> None:
    (folder / "images/again").symlink_to(folder / "images")


def link_to_nowhere(folder: Path) -> None:
    (folder / "images/gone.png").symlink_to("/nowhere/gone.png")


def _of(name: str, **options: object) -> Callable[[Path], Truth]:
    return partial(dataset, name=name, **options)


FOLDERS = [
    Oddity("photos-and-masks", _of("photos-and-masks", images="photos/{}", labels="masks/{}")),
    Oddity("capital-letters", _of("capital-letters", images="Images/{}", labels="Labels/{}", suffix=".PNG")),
    Oddity("beside-each-other", _of("beside-each-other", images="{}", labels="{}_mask", suffix=".bmp")),
    Oddity("suffix-in-folder", _of("suffix-in-folder", images="imgs/{}", labels="masks/{}_mask")),
    Oddity("no-mask", _of("no-mask", spoil=partial(remove, name="labels/shot2.png"), without=(2,)), says=("shot2",)),
    Oddity(
        "no-photograph",
        _of("no-photograph", spoil=partial(remove, name="images/shot2.png"), without=(2,)),
        says=("shot2",),
    ),
    Oddity("litter", _of("litter", spoil=litter)),
    Oddity("two-of-one-name", _of("two-of-one-name", spoil=add_copy, without=(2,)), says=("shot2.png", "shot2.bmp")),
    Oddity("empty-mask", _of("empty-mask", spoil=empty, without=(2,)), says=("shot2",)),
    Oddity("foreign-name", _of("foreign-name", spoil=add_foreign_name), says=("caf",)),
    Oddity("circle", _of("circle", spoil=link_in_circle)),
    Oddity("link-to-nowhere", _of("link-to-nowhere", spoil=link_to_nowhere), says=("gone",)),
    Oddity("spaces and ünïcode", _of("spaces and ünïcode")),
]
