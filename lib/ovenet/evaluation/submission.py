"""Predictions for test servers: one PNG of ids per image, in a zip that is checked file by file."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from torch import Tensor

from ovenet.data.info import DatasetInfo
from ovenet.errors import UserError, one_line
from ovenet.inference.pictures import save_png
from ovenet.utils.writing import write_file

_MAX_FILE_BYTES = 2**25  # of an unpacked prediction; a zip can declare a thousand times its size


def submission_names(image_names: Iterable[str], info: DatasetInfo) -> dict[str, str]:
    """Name inside the zip of each image's prediction.

    Args:
        image_names: paths relative to the dataset.
        info: a dataset with a submission rule.

    Raises:
        UserError: the dataset has no test server, or two images would share a name.
    """
    if info.submission is None:
        raise UserError(f"{info.name} has no test server that is known here; tools/test.py scores labelled lists")
    names: dict[str, str] = {}
    for image_name in image_names:
        name = (PurePosixPath(info.submission.folder) / f"{PurePosixPath(image_name).stem}.png").as_posix()
        if name in names.values():
            raise UserError(f"{image_name}: another image's prediction is called {name} too; servers take no folders")
        names[image_name] = name
    return names


def submission_ids(info: DatasetInfo) -> np.ndarray:
    """Table ``(K,)`` uint8 from train ids to the ids that the server expects."""
    return np.arange(info.num_classes, dtype=np.uint8) if _takes_train_ids(info) else info.label_id_table()


def _takes_train_ids(info: DatasetInfo) -> bool:
    assert info.submission is not None
    return info.submission.ids == "train_ids"


def save_submission_file(labels: Tensor, path: Path, info: DatasetInfo) -> None:
    """Writes one prediction.

    Args:
        labels: ``(H, W)`` predicted train ids, at the image's own size.
        path: path of the PNG.
        info: a dataset with a submission rule.
    """
    save_png(submission_ids(info)[labels.cpu().numpy()], path)


def write_zip(folder: Path, names: Iterable[str], path: Path) -> None:
    """Packs files under `folder`, sorted by name and without times, so that equal files give equal zips."""

    def write(unfinished: Path) -> None:
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:  # PNGs are compressed already
            for name in sorted(names):
                archive.writestr(zipfile.ZipInfo(name), (folder / name).read_bytes())

    write_file(path, write)


def validate_zip(path: Path, sizes: Mapping[str, tuple[int, int]], info: DatasetInfo) -> None:
    """Refuses a zip that the server would refuse, or score wrongly.

    Args:
        path: the zip.
        sizes: ``(H, W)`` of each image, by the name of its prediction (see `submission_names`).
        info: the dataset.

    Raises:
        UserError: a file is missing, not expected, wrongly named, or of the wrong size or encoding; names it.
    """
    with _open_zip(path) as archive:
        found = [name for name in archive.namelist() if not name.endswith("/")]
        _check_names(path, found, sizes)
        for name, size in sizes.items():
            _check_file(f"{path}: {name}", _read(archive, name, path), size, info)


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file") from error
    except (zipfile.BadZipFile, IsADirectoryError) as error:
        raise UserError(f"{path}: not a zip file, or a damaged one") from error


def _check_names(path: Path, found: list[str], expected: Mapping[str, object]) -> None:
    doubled = sorted({name for name in found if found.count(name) > 1}) if len(set(found)) < len(found) else []
    if doubled:
        raise UserError(f"{path}: {doubled[0]} is in it twice")
    extra = sorted(set(found) - set(expected))
    missing = sorted(set(expected) - set(found))
    by_base = {PurePosixPath(name).stem.lower(): name for name in missing}
    for name in extra:
        meant = by_base.get(PurePosixPath(name).stem.lower())
        if meant:
            raise UserError(f"{path}: {name} is wrongly named; expected {meant}")
    if missing:
        raise UserError(f"{path}: {missing[0]} is missing ({len(missing)} of {len(expected)} files are)")
    if extra:
        raise UserError(f"{path}: {extra[0]} does not belong there ({len(extra)} such files)")


def _check_file(name: str, image: Image.Image, size: tuple[int, int], info: DatasetInfo) -> None:
    if image.format != "PNG" or image.mode != "L":
        kind = f"a {image.format} of mode {image.mode}"
        raise UserError(f"{name} is {kind}; expected a PNG with one channel of 8 bits")
    if (image.height, image.width) != size:
        raise UserError(f"{name} is {image.width}x{image.height} pixels; its image is {size[1]}x{size[0]}")
    values = np.flatnonzero(image.histogram())
    wrong = np.setdiff1d(values, submission_ids(info))
    if len(wrong):
        raise UserError(
            f"{name} holds the id {wrong[0]}, which is no class; "
            f"the server takes {'train ids' if _takes_train_ids(info) else 'label ids'}"
        )


def _read(archive: zipfile.ZipFile, name: str, path: Path) -> Image.Image:
    declared = archive.getinfo(name).file_size
    if declared > _MAX_FILE_BYTES:
        raise UserError(f"{path}: {name} would unpack to {declared / 1e6:.1f} MB; no prediction is so large")
    try:
        image = Image.open(io.BytesIO(archive.read(name)))
        if image.width * image.height <= _MAX_FILE_BYTES:  # the check of the size names others
            image.load()
    except Exception as error:  # encrypted, compressed in an unknown way, or damaged: each raises other errors
        raise UserError(f"{path}: {name} cannot be read ({one_line(error)})") from error
    return image


def read_zip(path: Path, names: Iterable[str], info: DatasetInfo) -> Iterator[np.ndarray]:
    """The predictions of a valid zip as train ids ``(H, W)`` int16, in the order of `names`."""
    table = np.full(256, -1, dtype=np.int16)
    table[submission_ids(info)] = np.arange(info.num_classes)
    with _open_zip(path) as archive:
        for name in names:
            yield table[np.asarray(_read(archive, name, path))]
