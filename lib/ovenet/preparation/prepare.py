"""Checks a dataset's folder and writes its list files. Running it twice changes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

from ovenet.data.catalog import CATALOG, DESCRIPTION, find_dataset
from ovenet.data.description import blank_description
from ovenet.data.files import format_line
from ovenet.data.info import SPLITS, DatasetInfo
from ovenet.errors import UserError
from ovenet.preparation.layouts import LeftOut, Pairs, SplitLayouts, collect_pairs, find_layout, patterns_of_test, told
from ovenet.preparation.recognition import recognize_layouts
from ovenet.utils.progress import tell, track
from ovenet.utils.writing import write_bytes, write_file

# The list of the same images here, by the name of the public code's list.
PUBLISHED_LISTS = {"trainList": "train", "valList": "val", "testvalList": "val", "testval": "val"}


@dataclass(frozen=True)
class Preparation:
    """The lists of a dataset.

    Attributes:
        folder: of the lists.
        num_lines: number of lines of each list that was written, by its name without suffix.
        changes: how lists differ from earlier ones, by the same names.
        remarks: one sentence each, for the user.
    """

    folder: Path
    num_lines: Mapping[str, int]
    changes: Mapping[str, str]
    remarks: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        """One for each list, for the terminal or a log."""
        changes = {name: f" ({change})" for name, change in self.changes.items()}
        return [f"{self.folder / name}.lst: {n} lines{changes.get(name, '')}" for name, n in self.num_lines.items()]


def prepare_dataset(
    name: str, root: Path, *, source: Path | None = None, copy: bool = False, only_missing: bool = False
) -> Preparation:
    """Checks the tree under ``root/<name>`` and writes ``root/list/<name>/{train,val,trainval,test}.lst``.

    A dataset with conditions also gets a list for each split and condition. Unusable files of a user's own dataset are
    left out with a remark; a published dataset must be complete.

    Args:
        name: of the catalog, or of a folder with a ``dataset.json``.
        root: ``DATASET.ROOT``.
        source: a folder to link or copy to ``root/<name>`` first; None if the data is there already.
        copy: copy instead of linking.
        only_missing: keep lists that exist.

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
        _collect(source, info)  # errors come before anything is linked or copied
        bring(source, folder, copy=copy)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; unpack {info.archives or info.name} there, or name a folder with --source"
        )
    lists, remarks = _collect(folder, info)
    for split, pairs in list(lists.items()):
        for condition in info.conditions:
            lists[f"{split}_{condition}"] = [pair for pair in pairs if info.condition_of(pair[0]) == condition]
    lists["trainval"] = lists["train"] + lists["val"]
    texts = {name: "".join(format_line(image, label) for image, label in pairs) for name, pairs in lists.items()}
    written: dict[str, int] = {}
    changes: dict[str, str] = {}
    for list_name, text in texts.items():
        path = list_path(root, info.name, list_name)
        if not (only_missing and path.exists()):
            written[list_name] = len(lists[list_name])
            if change := _write_list(path, text):
                changes[list_name] = change
    if info.name not in CATALOG:
        stale = (list_path(root, info.name, split) for split in SPLITS if split not in lists)
        remarks += [f"{path}: no images of it any more, and not written" for path in stale if path.exists()]
    return Preparation(list_path(root, info.name, "train").parent, written, changes, tuple(remarks))


def _collect(folder: Path, info: DatasetInfo) -> tuple[dict[str, Pairs], list[str]]:
    """The pairs of each split, and remarks about them.

    Raises:
        UserError: training or validation has none, or a published dataset is incomplete.
    """
    layouts, lists, remarks = _find_pairs(folder, info)
    _divide(lists, folder, info)
    return lists, [*remarks, *_remarks(lists, layouts, info)]


def _find_pairs(folder: Path, info: DatasetInfo) -> tuple[SplitLayouts, dict[str, Pairs], list[str]]:
    """The layout of the data, the pairs of each split, and remarks about files that are left out.

    Raises:
        UserError: no layout fits, or nothing pairs.
    """
    if info.name in CATALOG:
        layouts = find_layout(folder, info)
        return layouts, _pairs(folder, layouts, info, None), []
    left_out: LeftOut = {}
    try:
        layouts = find_layout(folder, info)
        lists = _pairs(folder, layouts, info, left_out)
        return layouts, lists, told(left_out)
    except UserError as error:
        description = folder / DESCRIPTION
        if info.layouts != blank_description(info.name).layouts:
            raise UserError(f"{error}, or correct the layouts in {description}") from error
    found = recognize_layouts(folder)
    layouts = find_layout(folder, blank_description(info.name, found.layouts))
    left_out = {}
    lists = _pairs(folder, layouts, info, left_out)
    to_keep = json.dumps({"layouts": found.layouts})[1:-1]
    return layouts, lists, [f"{folder}: {found}; to keep it so, add to {description}: {to_keep}", *told(left_out)]


def _pairs(folder: Path, layouts: SplitLayouts, info: DatasetInfo, left_out: LeftOut | None) -> dict[str, Pairs]:
    return {split: collect_pairs(folder, layout, info.conditions, left_out) for split, layout in layouts.items()}


def list_path(root: Path, name: str, list_name: str) -> Path:
    """Where a list of a dataset is written: ``<root>/list/<name>/<list_name>.lst``."""
    return root / "list" / name / f"{list_name}.lst"


def _divide(lists: dict[str, Pairs], folder: Path, info: DatasetInfo) -> None:
    """Divides images without a split into training and validation, at least one each.

    The file names decide, so that adding images moves no other image from one split to the other.
    """
    if "all" not in lists:
        return
    pairs = lists.pop("all")
    require_two_images(len(pairs), folder)
    places = {image: _place_of(image) for image, _ in pairs}
    chosen = {image for image, place in places.items() if place < info.val_share * 2**64}
    first, last = min(places, key=places.__getitem__), max(places, key=places.__getitem__)
    chosen = (chosen | {first}) - {last}
    lists["train"] = [pair for pair in pairs if pair[0] not in chosen]
    lists["val"] = [pair for pair in pairs if pair[0] in chosen]


def require_two_images(num_images: int, folder: Path) -> None:
    """Raises `UserError` about a folder with a single image."""
    if num_images < 2:
        raise UserError(f"{folder}: one image with a label leaves none for validation; add some")


def _place_of(image: str) -> int:
    """A hash of a name, 0 to 2**64 - 1."""
    return int.from_bytes(hashlib.sha256(os.fsencode(image)).digest()[:8], "big")


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
    """Links or copies a user's folder to the dataset's; files that were copied before are kept.

    Raises:
        UserError: something else is there already.
    """
    if folder.exists():
        if folder.resolve() == source.resolve():
            return
        if not copy or not folder.is_dir() or folder.is_symlink():
            raise UserError(f"{folder} exists and is not {source}; move it away, or move the files of {source} into it")
    if not copy:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.is_symlink():
            raise UserError(f"{folder} is a link to {os.readlink(folder)}, which does not exist; remove the link")
        folder.symlink_to(source.resolve(), target_is_directory=True)
        return
    targets = {file: folder / file.relative_to(source) for file in sorted(source.rglob("*")) if file.is_file()}
    for file, target in targets.items():
        if target.exists() and target.stat().st_size != file.stat().st_size:
            raise UserError(f"{target} exists and differs from {file}; remove it yourself if it may go")
    missing = {file: target for file, target in targets.items() if not target.exists()}
    for file, target in track(missing.items(), "copying", len(missing), tell=tell):
        write_file(target, partial(shutil.copyfile, file))


def _write_list(path: Path, text: str) -> str:
    """Writes a list unless its content is there already; an earlier list is kept as ``.old``, ``.old2`` and so on.

    Returns:
        The changes, for a message; "" where the list is new or the same.
    """
    content, change = text.encode(), ""
    if path.exists():
        before = path.read_bytes()
        if before == content:
            return ""
        names = (path.with_name(f"{path.name}.old{number if number > 1 else ''}") for number in count(1))
        kept = next(name for name in names if not name.exists())
        path.replace(kept)
        old, new = (set(filter(None, one.splitlines())) for one in (before, content))
        change = f"{len(old)} before: {len(new - old)} added, {len(old - new)} removed; kept as {kept.name}"
    write_bytes(path, content)
    return change
