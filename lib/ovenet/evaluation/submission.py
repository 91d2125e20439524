"""Predictions for test servers: one PNG of ids per image, and for some servers one of the confidence, in a zip that is
checked file by file."""

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
from ovenet.evaluation.uncertainty import LEVELS
from ovenet.inference.pictures import save_png
from ovenet.utils.writing import write_file

_MAX_FILE_BYTES = 2**25  # of an unpacked prediction; a zip can declare a thousand times its size
_MODES = {8: ("L",), 16: ("I;16", "I")}  # Pillow's, which opens 16 bits as I before version 11


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


def confidence_names(names: Iterable[str], info: DatasetInfo) -> dict[str, str]:
    """Name inside the zip of each confidence map, by the name of its prediction.

    Args:
        names: see `submission_names`.
        info: a dataset with a submission rule.

    Raises:
        UserError: the server takes no confidence maps.
    """
    assert info.submission is not None
    folder = info.submission.confidence_folder
    if folder is None:
        raise UserError(f"the {info.name} server takes no confidence maps; set TEST.UNCERTAINTY to none")
    return {name: (PurePosixPath(folder) / PurePosixPath(name).name).as_posix() for name in names}


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


def save_confidence_file(levels: np.ndarray, path: Path, info: DatasetInfo) -> None:
    """Writes one confidence map.

    Args:
        levels: ``(H, W)`` confidence in steps, see `ovenet.evaluation.uncertainty.confidence_levels`.
        path: path of the PNG.
        info: a dataset with a submission rule.
    """
    step = _confidence_step(info)
    save_png(((levels + step // 2) // step).astype(np.uint16 if step == 1 else np.uint8), path)


def _confidence_step(info: DatasetInfo) -> int:
    """Levels of the confidence from one value of a map to the next."""
    assert info.submission is not None
    return (LEVELS - 1) // (2**info.submission.confidence_bits - 1)


def write_zip(folder: Path, names: Iterable[str], path: Path) -> None:
    """Packs files under `folder`, sorted by name and without times, so that equal files give equal zips."""

    def write(unfinished: Path) -> None:
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:  # PNGs are compressed already
            for name in sorted(names):
                archive.writestr(zipfile.ZipInfo(name), (folder / name).read_bytes())

    write_file(path, write)


def validate_zip(
    path: Path, sizes: Mapping[str, tuple[int, int]], info: DatasetInfo, *, confidences: bool = False
) -> None:
    """Refuses a zip that the server would refuse, or score wrongly.

    Args:
        path: the zip.
        sizes: ``(H, W)`` of each image, by the name of its prediction (see `submission_names`).
        info: the dataset.
        confidences: there is a confidence map of each image too.

    Raises:
        UserError: a file is missing, not expected, wrongly named, or of the wrong size or encoding; names it.
    """
    maps = confidence_names(sizes, info) if confidences else {}
    with _open_zip(path) as archive:
        found = [name for name in archive.namelist() if not name.endswith("/")]
        _check_names(path, found, dict.fromkeys([*sizes, *maps.values()]))
        for name, size in sizes.items():
            _check_file(f"{path}: {name}", _read(archive, name, path), size, info)
        for name, confidence_name in maps.items():
            _check_confidence(f"{path}: {confidence_name}", _read(archive, confidence_name, path), sizes[name], info)


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
    _check_form(name, image, size, 8)
    values = np.flatnonzero(image.histogram())
    wrong = np.setdiff1d(values, submission_ids(info))
    if len(wrong):
        raise UserError(
            f"{name} holds the id {wrong[0]}, which is no class; "
            f"the server takes {'train ids' if _takes_train_ids(info) else 'label ids'}"
        )


def _check_confidence(name: str, image: Image.Image, size: tuple[int, int], info: DatasetInfo) -> None:
    assert info.submission is not None
    _check_form(name, image, size, info.submission.confidence_bits)


def _check_form(name: str, image: Image.Image, size: tuple[int, int], bits: int) -> None:
    if image.format != "PNG" or image.mode not in _MODES[bits]:
        kind = f"a {image.format} of mode {image.mode}"
        raise UserError(f"{name} is {kind}; expected a PNG with one channel of {bits} bits")
    if (image.height, image.width) != size:
        raise UserError(f"{name} is {image.width}x{image.height} pixels; its image is {size[1]}x{size[0]}")


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


def read_confidences(path: Path, names: Iterable[str], info: DatasetInfo) -> Iterator[np.ndarray]:
    """The confidence maps of a valid zip in steps ``(H, W)`` int32, in the order of the predictions' `names`."""
    step = _confidence_step(info)
    with _open_zip(path) as archive:
        for name in confidence_names(names, info).values():
            yield np.asarray(_read(archive, name, path)).astype(np.int32) * step
