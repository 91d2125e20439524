"""Checks a dataset's folder and writes its list files. Running it twice changes nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from ovenet.data.catalog import find_dataset
from ovenet.data.files import format_line
from ovenet.data.info import DatasetInfo
from ovenet.data.layouts import Pairs, SplitLayouts, collect_pairs, find_layout, patterns_of_test
from ovenet.errors import UserError
from ovenet.utils.writing import write_file

# Lists of the public code, by the list of the same images here.
PUBLISHED_LISTS = {"trainList": "train", "valList": "val", "testvalList": "val", "testval": "val"}


@dataclass(frozen=True)
class Preparation:
    """What was found.

    Attributes:
        folder: of the lists.
        num_lines: per list that is in place now, by its name without suffix.
        remarks: what the user should know, one sentence each.
    """

    folder: Path
    num_lines: Mapping[str, int]
    remarks: tuple[str, ...]


def prepare_dataset(
    name: str, root: Path, *, source: Path | None = None, copy: bool = False, only_missing: bool = False
) -> Preparation:
    """Checks the tree under ``root/<name>`` and writes ``root/list/<name>/{train,val,trainval,test}.lst``.

    A dataset with conditions gets a list for each split and condition too.

    Args:
        name: of the catalog, or of a folder with a ``dataset.json``.
        root: ``DATASET.ROOT``.
        source: a folder to link or copy to ``root/<name>`` first; None if the data is there already.
        copy: copy instead of linking.
        only_missing: leave lists that exist as they are, whatever they say.

    Raises:
        UserError: the folder is missing or lacks a split, or images and labels do not pair.
    """
    if source is not None and not source.is_dir():
        raise UserError(f"--source {source}: no such folder")
    info = find_dataset(name, source or root / name)
    folder = root / info.name
    if source is None and name != info.name and (root / name).is_dir() and not folder.exists():
        source, copy = root / name, False  # under the name that public files give it
    if source is not None:
        find_layout(source, info)  # a wrong folder is refused before it is linked
        bring(source, folder, copy=copy)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; unpack {info.archives or info.name} there, or name a folder with --source"
        )
    layouts = find_layout(folder, info)
    lists = _split_lists(folder, layouts, info)
    remarks = _remarks(lists, layouts, info)
    for split, pairs in list(lists.items()):
        for condition in info.conditions:
            lists[f"{split}_{condition}"] = [pair for pair in pairs if info.condition_of(pair[0]) == condition]
    lists["trainval"] = lists["train"] + lists["val"]
    written = {}
    for list_name, pairs in lists.items():
        path = list_path(root, info.name, list_name)
        if not (only_missing and path.exists()):
            _write_list(path, pairs)
            written[list_name] = len(pairs)
    return Preparation(list_path(root, info.name, "train").parent, written, tuple(remarks))


def list_path(root: Path, name: str, list_name: str) -> Path:
    """Where a list of a dataset is written: ``<root>/list/<name>/<list_name>.lst``."""
    return root / "list" / name / f"{list_name}.lst"


def _split_lists(folder: Path, layouts: SplitLayouts, info: DatasetInfo) -> dict[str, Pairs]:
    lists = {split: collect_pairs(folder, layout, info.conditions) for split, layout in layouts.items()}
    if "all" in lists:
        pairs = lists.pop("all")
        chosen = [_kept_for_validation(image, info.val_share) for image, _ in pairs]
        lists["train"] = [pair for pair, val in zip(pairs, chosen, strict=True) if not val]
        lists["val"] = [pair for pair, val in zip(pairs, chosen, strict=True) if val]
        for split in ("train", "val"):
            if not lists[split]:
                raise UserError(f"{folder}: {len(pairs)} images leave none for {split}; add some, or change val_share")
    return lists


def _kept_for_validation(image: str, share: float) -> bool:
    """A choice by the file's name alone: adding images moves no other from one split to the other."""
    return int.from_bytes(hashlib.sha256(image.encode()).digest()[:8], "big") < share * 2**64


def _remarks(lists: Mapping[str, Pairs], layouts: SplitLayouts, info: DatasetInfo) -> list[str]:
    remarks = []
    for split, pairs in lists.items():
        placed = layouts.get(split)
        published = (placed and placed.num_images) or info.num_images.get(split, 0)
        if len(pairs) < published:
            remarks.append(
                f"{split}: {len(pairs)} of the {published} published images; "
                f"check that all of {info.archives} is unpacked"
            )
    if "test" in info.num_images and "test" not in lists:
        remarks.append(
            f"test: no images like {' or '.join(patterns_of_test(info))}, so no test.lst; "
            "training and validation do not need it"
        )
    return remarks


def bring(source: Path, folder: Path, *, copy: bool) -> None:
    """Links or copies a user's folder to that of the dataset; what is copied already stays as it is.

    Raises:
        UserError: something else is there already.
    """
    if folder.exists():
        if folder.resolve() == source.resolve():
            return
        if not copy or not folder.is_dir() or folder.is_symlink():
            raise UserError(f"{folder} exists and is not {source}; move it away, or what is in {source} into it")
    if not copy:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.is_symlink():
            raise UserError(f"{folder} is a link to {os.readlink(folder)}, which does not exist; remove the link")
        folder.symlink_to(source.resolve(), target_is_directory=True)
        return
    for file in sorted(p for p in source.rglob("*") if p.is_file()):
        target = folder / file.relative_to(source)
        if target.exists():
            if target.stat().st_size != file.stat().st_size:
                raise UserError(f"{target} exists and differs from {file}; remove it yourself if it may go")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def _write_list(path: Path, pairs: Pairs) -> None:
    """Writes a list, keeping a file of the same content as it is and edited ones as ``.old``, ``.old2`` and so on."""
    text = "".join(format_line(image, label) for image, label in pairs)
    if path.exists():
        if path.read_text(encoding="utf-8") == text:
            return
        names = (path.with_name(f"{path.name}.old{number if number > 1 else ''}") for number in count(1))
        path.replace(next(name for name in names if not name.exists()))
    write_file(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
