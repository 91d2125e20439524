"""Finds the files of a dataset on disk by the patterns of its layouts, pairs images with labels, and finds from the
name of a label file which ids it holds."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from ovenet.data.files import read_lines
from ovenet.data.info import DatasetInfo, Layout
from ovenet.errors import UserError

Pairs = list[tuple[str, str | None]]  # image and label, relative to the dataset's folder
SplitLayouts = Mapping[str, Layout]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
_OPTIONAL_SPLITS = ("test",)
_MAX_FOLDERS = 200  # of a wrong root, so that naming a home folder does not search it all
_MAX_NAMED = 3
_TRAIN_IDS = "_labelTrainIds"  # how files end that converters of Cityscapes and COCO-Stuff put beside the labels


def find_layout(folder: Path, info: DatasetInfo) -> SplitLayouts:
    """The layout in which the data lies.

    Args:
        folder: of the dataset.
        info: its layouts.

    Returns:
        Layouts of the splits that are there: training and validation, and those further ones that exist.

    Raises:
        UserError: none fits; names what is missing, or the folder above or below that does fit.
    """
    whole = [layouts for layouts in info.layouts if _needed(layouts)]  # others place the test images alone
    fitting = [layouts for layouts in whole if not _missing(folder, layouts)]
    if fitting:
        # Originals and the train ids that were made of them may lie in the same folders.
        chosen = next((one for one in fitting if _has_labels(folder, one, info.conditions)), fitting[0])
        found = {split: layout for split, layout in chosen.items() if split not in _OPTIONAL_SPLITS}
        for split in _OPTIONAL_SPLITS:
            layouts = (one[split] for one in (chosen, *info.layouts) if split in one)
            layout = next((one for one in layouts if _is_there(folder, one, info.conditions)), None)
            found |= {split: layout} if layout else {}
        return found
    nearest = min(whole, key=lambda layouts: len(_missing(folder, layouts)))
    missing = _missing(folder, nearest)
    if len(missing) == len(_needed(nearest)):
        for other in _folders_around(folder):
            if any(not _missing(other, layouts) for layouts in whole):
                level = "above" if other in folder.resolve().parents else "below"
                raise UserError(
                    f"{folder}: {info.name} does not begin here but {level}; move its content here, or name it: "
                    f"--source {other}"
                )
    raise UserError(f"{folder}: {', '.join(missing)} missing; unpack {info.archives or 'the data'} there")


def patterns_of_test(info: DatasetInfo) -> list[str]:
    """Where test images are looked for, the usual places."""
    return list(dict.fromkeys(layouts["test"].images for layouts in info.layouts if "test" in layouts))[:_MAX_NAMED]


def with_stored_ids(info: DatasetInfo, labels: Iterable[str]) -> DatasetInfo:
    """The same dataset, with the ids that given label files hold by their layout.

    Args:
        info: the dataset.
        labels: relative to its folder.

    Raises:
        UserError: two of them hold ids of different meaning, or one is called train ids and lies in no layout.
    """
    coded = [one for layouts in info.layouts for one in layouts.values() if one.stored_ids and one.labels]
    matchers = [(_matcher(one.labels), (one.stored_ids, one.stored_ignored)) for one in coded]
    train_ids = next((one.labels for one in coded if one.labels.endswith(_TRAIN_IDS)), None)
    first: dict[tuple, str] = {}
    for label in labels if coded else ():
        meaning = next((meaning for matcher, meaning in matchers if matcher.fullmatch(label)), ((), ()))
        if meaning == ((), ()) and train_ids and PurePosixPath(label).stem.endswith(_TRAIN_IDS):
            raise UserError(
                f"{label}: train ids, as its name says, of {info.name} are looked for in {train_ids}; "
                "list the label files themselves, or move these there"
            )
        first.setdefault(meaning, label)
    if len(first) > 1:
        one, other = list(first.values())[:2]
        raise UserError(f"{one} and {other}: label files of different ids in one list; list those of one kind")
    stored_ids, stored_ignored = next(iter(first), ((), ()))
    if not stored_ids:
        return info
    stored = dict(stored_ids)
    return replace(
        info,
        label_ids=tuple(stored[i] for i in info.label_ids),
        merged_ids=tuple((stored[i], k) for i, k in info.merged_ids),
        ignored_ids=(*stored_ignored, *(stored[i] for i in info.ignored_ids if i in stored)),
    )


def collect_pairs(folder: Path, layout: Layout, conditions: Sequence[str]) -> Pairs:
    """The images of a split with their labels, in the order of the conditions and of their names.

    Raises:
        UserError: there are none, an image or a label lacks its partner, or is empty.
    """
    if layout.also:
        parts = (replace(layout, also=None), layout.also)
        return [pair for part in parts for pair in collect_pairs(folder, part, conditions)]
    if "{condition}" in layout.images:
        return [pair for condition in conditions for pair in collect_pairs(folder, _at(layout, condition), ())]
    images = _files(folder, layout.images)
    if not images:
        raise UserError(f"{folder / _anchor(layout.images)}: no images like {layout.images}; unpack the data there")
    labels = _files(folder, layout.labels) if layout.labels else None
    keys = _keys_of_split(folder, layout, images, labels)
    if labels is not None:
        _require_all(keys, labels, folder, layout.labels, "label")
    _require_all(keys, images, folder, layout.images, "image")
    pairs = [(images[key], labels[key] if labels is not None else None) for key in keys]
    for path in (path for pair in pairs for path in pair if path is not None):
        if not (folder / path).exists():
            raise UserError(f"{folder / path}: a link to {os.readlink(folder / path)}, which does not exist")
        if (folder / path).stat().st_size == 0:
            raise UserError(f"{folder / path}: the file is empty; unpack its archive again")
    return pairs


def _is_there(folder: Path, layout: Layout, conditions: Sequence[str]) -> bool:
    """Whether a split has any image; its lists of names must exist."""
    if not all((folder / path).exists() for path in _anchors(layout)):
        return False
    return any(_files(folder, part.images) for part in _by_condition(layout, conditions))


def _has_labels(folder: Path, layouts: SplitLayouts, conditions: Sequence[str]) -> bool:
    """Whether each split that must be there has any label."""
    required = [layout for split, layout in layouts.items() if split not in _OPTIONAL_SPLITS and layout.labels]
    return all(any(_files(folder, part.labels) for part in _by_condition(one, conditions)) for one in required)


def _by_condition(layout: Layout, conditions: Sequence[str]) -> list[Layout]:
    return [_at(layout, condition) for condition in conditions] if "{condition}" in layout.images else [layout]


def _keys_of_split(
    folder: Path, layout: Layout, images: Mapping[str, str], labels: Mapping[str, str] | None
) -> list[str]:
    if layout.names:
        return _read_names(folder / layout.names)
    if layout.names_not_in:
        others = set(_read_names(folder / layout.names_not_in))
        return sorted(key for key in (labels or images) if key not in others)
    return sorted({*images, *(labels or ())})


def _read_names(path: Path) -> list[str]:
    """The first word of every line; VOC's lists may carry a second column."""
    return [words[0] for line in read_lines(path) if (words := re.split("[ \t]+", line.strip(" \t")))[0]]


def _require_all(keys: Sequence[str], files: Mapping[str, str], folder: Path, pattern: str, role: str) -> None:
    missing = [key for key in keys if key not in files]
    if missing:
        names = ", ".join(str(folder / _fill(pattern, key)) for key in missing[:_MAX_NAMED])
        more = f" and {len(missing) - _MAX_NAMED} more" if len(missing) > _MAX_NAMED else ""
        raise UserError(
            f"{len(missing)} of {len(keys)} {role}s missing: {names}{more}; unpack the archive of the {role}s again"
        )


def _fill(pattern: str, key: str) -> str:
    texts = iter(key.split("|"))
    return re.sub(r"\*+", lambda _: next(texts), pattern) + ".*"


def _at(layout: Layout, condition: str) -> Layout:
    labels = layout.labels.replace("{condition}", condition) if layout.labels else None
    return replace(layout, images=layout.images.replace("{condition}", condition), labels=labels)


def _anchor(pattern: str) -> str:
    """The folders before the first wildcard."""
    parts = PurePosixPath(pattern.split("*")[0] + "x").parts[:-1]
    return "/".join(parts)


def _anchors(layout: Layout) -> list[str]:
    """What must exist for a layout to fit: the folders of images and labels, and the files of names."""
    patterns = [pattern.split("{condition}")[0] for pattern in (layout.images, layout.labels) if pattern]
    own = [*map(_anchor, patterns), *filter(None, (layout.names, layout.names_not_in))]
    return own + (_anchors(layout.also) if layout.also else [])


def _needed(layouts: SplitLayouts) -> list[str]:
    splits = [layout for split, layout in layouts.items() if split not in _OPTIONAL_SPLITS]
    return list(dict.fromkeys(path for layout in splits for path in _anchors(layout)))


def _missing(folder: Path, layouts: SplitLayouts) -> list[str]:
    return [path for path in _needed(layouts) if not (folder / path).exists()]


def _folders_around(folder: Path) -> Iterator[Path]:
    """Up to two levels above, then up to two levels below."""
    folder = folder.resolve()
    yield from list(folder.parents)[:2]
    below = _subfolders(folder)
    yield from below
    for child in below:
        yield from _subfolders(child)


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))[:_MAX_FOLDERS]
    except OSError:
        return []


def _files(folder: Path, pattern: str) -> dict[str, str]:
    """Files that match a pattern, relative to the folder, by what stands for the wildcards."""
    matcher = _matcher(pattern)
    depth = None if "**" in pattern else pattern.count("/") - _anchor(pattern).count("/")
    files: dict[str, str] = {}
    for path in _walk(folder / _anchor(pattern), depth):
        name = path.relative_to(folder).as_posix()
        match = matcher.fullmatch(name)
        if match is None or path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        if path.stem.endswith(_TRAIN_IDS) and _TRAIN_IDS not in pattern:
            continue
        key = "|".join(match.groups())
        if key in files:
            raise UserError(f"{folder / files[key]} and {path}: two files for one name; remove or rename one")
        files[key] = name
    return files


def _matcher(pattern: str) -> re.Pattern[str]:
    """What the names of a pattern's files match, with a group for each wildcard."""
    expression = re.escape(pattern).replace(r"\*\*", "(.+)").replace(r"\*", "([^/]+)")
    return re.compile(expression.replace(r"\{condition\}", "[^/]+") + r"\.[^./]+", re.DOTALL)


def _walk(folder: Path, depth: int | None, seen: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Files below a folder, links followed, hidden ones left out."""
    real = os.path.realpath(folder)
    if real in seen or not os.path.isdir(real):
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if depth is None or depth > 1:
                yield from _walk(Path(entry.path), None if depth is None else depth - 1, seen | {real})
        else:
            yield Path(entry.path)
