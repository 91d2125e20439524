"""Brings a dataset's folder and its list files into place. Running it twice changes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path

from ovenet.data.catalog import find_dataset

Pairs = list[tuple[str, str | None]]
SPLITS = ("train", "val", "test")
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def prepare_dataset(name: str, root: Path, *, source: Path | None = None, copy: bool = False) -> dict[str, int]:
    """Checks the tree under ``root/<name>`` and writes ``root/list/<name>/{train,val,trainval,test}.lst``.

    Args:
        name: of the catalog.
        root: ``DATASET.ROOT``.
        source: a folder to link or copy to ``root/<name>`` first; None if the data is there already.
        copy: copy instead of linking.

    Returns:
        Lines per list.

    Raises:
        ValueError: the folder is missing or lacks a split, or images and labels do not pair.
    """
    layout = find_dataset(name).layout
    folder = root / name
    if source is not None:
        _bring(source, folder, copy=copy)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; unpack {name} there, or name it with --source")
    lists = _LAYOUTS[layout](folder)
    lists["trainval"] = lists["train"] + lists["val"]
    for split, pairs in lists.items():
        _write_list(root / "list" / name / f"{split}.lst", pairs)
    return {split: len(pairs) for split, pairs in lists.items()}


def _bring(source: Path, folder: Path, *, copy: bool) -> None:
    if not source.is_dir():
        raise ValueError(f"--source {source}: no such folder")
    if folder.exists():
        if folder.resolve() == source.resolve():
            return
        if not copy or not folder.is_dir() or folder.is_symlink():
            raise ValueError(f"{folder} exists and is not {source}; remove it yourself if it may go")
    if not copy:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(source.resolve(), target_is_directory=True)
        return
    for file in sorted(p for p in source.rglob("*") if p.is_file()):
        target = folder / file.relative_to(source)
        if target.exists():
            if target.stat().st_size != file.stat().st_size:
                raise ValueError(f"{target} exists and differs from {file}; remove it yourself if it may go")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def _write_list(path: Path, pairs: Pairs) -> None:
    """Writes a list, keeping a file of the same content as it is and edited ones as ``.old``, ``.old2`` and so on."""
    text = "".join(f"{image}\t{label}\n" if label else f"{image}\n" for image, label in pairs)
    if path.exists():
        if path.read_text(encoding="utf-8") == text:
            return
        names = (path.with_name(f"{path.name}.old{number if number > 1 else ''}") for number in count(1))
        path.replace(next(name for name in names if not name.exists()))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _camvid(folder: Path) -> dict[str, Pairs]:
    """``{train,val,test}/*.{jpg,png}`` with ``{train,val,test}annot/*.png``."""
    lists = {}
    for split in SPLITS:
        images = _images_in(folder / split)
        lists[split] = [(f"{split}/{image.name}", f"{split}annot/{image.stem}.png") for image in images]
        _require_labels(folder, lists[split])
    return lists


def _cityscapes(folder: Path) -> dict[str, Pairs]:
    """``leftImg8bit/<split>/<city>/*_leftImg8bit.png`` with ``gtFine/<split>/<city>/*_gtFine_labelIds.png``.

    The published test split has labels without content; it is listed without labels.
    """
    lists: dict[str, Pairs] = {}
    for split in SPLITS:
        images = sorted((folder / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
        if not images:
            raise ValueError(f"{folder / 'leftImg8bit' / split}: no <city>/*_leftImg8bit.png; unpack leftImg8bit there")
        lists[split] = []
        for image in images:
            label = f"gtFine/{split}/{image.parent.name}/{image.name.replace('_leftImg8bit', '_gtFine_labelIds')}"
            lists[split].append((image.relative_to(folder).as_posix(), None if split == "test" else label))
        _require_labels(folder, lists[split])
    return lists


def _images_in(folder: Path) -> list[Path]:
    images = sorted(p for p in folder.glob("*") if p.suffix.lower() in _IMAGE_SUFFIXES)
    if not images:
        raise ValueError(f"{folder}: no images ({', '.join(_IMAGE_SUFFIXES)}); check that the data is unpacked there")
    return images


def _require_labels(folder: Path, pairs: Iterable[tuple[str, str | None]]) -> None:
    missing = [label for _, label in pairs if label is not None and not (folder / label).is_file()]
    if missing:
        raise ValueError(f"{folder / missing[0]}: the label is missing ({len(missing)} in all)")


_LAYOUTS: dict[str, Callable[[Path], dict[str, Pairs]]] = {"camvid": _camvid, "cityscapes": _cityscapes}
