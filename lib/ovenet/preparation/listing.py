"""Finds the list file that a setting names, and writes it where the preparation of the dataset can."""

from __future__ import annotations

from pathlib import Path

from ovenet.data.dataset import ListDataset
from ovenet.data.files import read_list
from ovenet.data.info import DatasetInfo
from ovenet.data.remote import is_remote
from ovenet.errors import UserError
from ovenet.preparation.layouts import patterns_of_test
from ovenet.preparation.prepare import PUBLISHED_LISTS, Preparation, list_path, prepare_dataset
from ovenet.utils import distributed
from ovenet.utils.logging import get_logger


def open_list(
    root: Path, name: str, list_file: str, info: DatasetInfo, *, ignore_label: int, num_samples: int = 0
) -> ListDataset:
    """The samples of a list; a missing list is written if `prepare_dataset` can write it.

    Args:
        root: ``DATASET.ROOT``.
        name: ``DATASET.DATASET``.
        list_file: a path relative to `root`, or the name of a list of the dataset, such as ``val``.
        info: the dataset.
        ignore_label: train id of ignored pixels.
        num_samples: use only the first N lines; 0 is all.

    Raises:
        UserError: the list is missing, empty or malformed, or the dataset's folder is not as published.
    """
    path = root / list_file if Path(list_file).suffix else list_path(root, name, list_file)
    folder = None  # to prepare
    if not is_remote(root):
        folder = next((root / one for one in (info.name, name) if (root / one).is_dir()), None)
    if path.parent == root / "list" / name:
        path = _own_list(path, root, info, folder)
    is_written = path.parent == root / "list" / info.name
    if distributed.is_main() and is_written and folder and not path.exists():
        _log_preparation(prepare_dataset(name, root, only_missing=True))
    distributed.barrier()
    if is_written and not path.exists():
        raise UserError(f"{path}: there is no such list file{_way_to_list(path, info, folder)}")
    return ListDataset(root, path, info, ignore_label=ignore_label, num_samples=num_samples)


def _own_list(path: Path, root: Path, info: DatasetInfo, folder: Path | None) -> Path:
    """The list that stands here for one that the public code calls otherwise; the same one for all others."""
    list_name = PUBLISHED_LISTS.get(path.stem)
    if path.exists() and not (list_name and folder and not _has_images_of(path, folder)):
        return path
    own = list_path(root, info.name, list_name or path.stem)
    if own == path or not (list_name or own.parent != path.parent):
        return path
    get_logger().info("%s: %s; reading %s", path, "names no files of here" if path.exists() else "is not there", own)
    return own


def _has_images_of(path: Path, folder: Path) -> bool:
    try:
        return (folder / read_list(path)[0][0]).exists()
    except UserError:
        return False


def _way_to_list(path: Path, info: DatasetInfo, folder: Path | None) -> str:
    """What to do about a list that the preparation of a dataset has not written."""
    root = path.parents[2]
    if is_remote(root):
        return f"; none is written to an address: run `ovenet prepare {info.name}` on a copy, and put its list/ there"
    if folder is None:
        return (
            f", and no folder {root / info.name}; {f'unpack {info.archives} there and ' if info.archives else ''}run "
            f"`python tools/prepare_data.py {info.name} --root {root}`"
        )
    has = f"; {info.name} has {', '.join(sorted(one.stem for one in path.parent.glob('*.lst')))}"
    if path.stem.split("_")[0] == "test" and patterns_of_test(info):
        return f"{has}; put the test images into {folder}, like {' or '.join(patterns_of_test(info))}"
    return f"{has}; set DATASET.TRAIN_SET or DATASET.TEST_SET to one"


def _log_preparation(preparation: Preparation) -> None:
    for line in preparation.lines:
        get_logger().info("%s", line)
    for remark in preparation.remarks:
        get_logger().warning("%s", remark)
