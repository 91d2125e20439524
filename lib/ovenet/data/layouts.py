"""Finds the files of a dataset on disk by the patterns of its layouts, pairs images with labels, and finds from the
name of a label file which ids it holds."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from ovenet.data.files import IMAGE_SUFFIXES, read_lines, why_unlisted
from ovenet.data.info import DatasetInfo, Layout
from ovenet.errors import UserError

Pairs = list[tuple[str, str | None]]  # image and label, relative to the dataset's folder
SplitLayouts = Mapping[str, Layout]
LeftOut = dict[str, list[str]]  # files that are not listed, by the reason

_OPTIONAL_SPLITS = ("test",)
_MAX_FOLDERS = 200  # of a wrong root, so that naming a home folder does not search it all
_MAX_NAMED = 3
_MAX_COMPARED = 2000  # names among which the nearest is looked for
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


def collect_pairs(folder: Path, layout: Layout, conditions: Sequence[str], left_out: LeftOut | None = None) -> Pairs:
    """The images of a split with their labels, in the order of the conditions and of their names.

    Args:
        folder: of the dataset.
        layout: of the split.
        conditions: of the dataset.
        left_out: gets the files that cannot be used; None where all of them must be there, as published.

    Raises:
        UserError: no pair is left; or, without `left_out`, an image or a label lacks its partner, or is empty.
    """
    if layout.also:
        parts = (replace(layout, also=None), layout.also)
        return [pair for part in parts for pair in collect_pairs(folder, part, conditions, left_out)]
    if "{condition}" in layout.images:
        parts = [_at(layout, condition) for condition in conditions]
        return [pair for part in parts for pair in collect_pairs(folder, part, (), left_out)]
    own: LeftOut | None = None if left_out is None else {}
    images, labels = _images_and_labels(folder, layout, own)
    if not images:
        what = "; ".join(["unpack the data there", *told(own or {})])
        raise UserError(f"{folder / _anchor(layout.images)}: no images like {layout.images}; {what}")
    keys = _keys_of_split(folder, layout, images, labels)
    if own is None:
        if labels is not None:
            _require_all(keys, labels, folder, layout.labels, "label")
        _require_all(keys, images, folder, layout.images, "image")
    else:
        keys = _with_partners(keys, images, labels, folder, layout, own)
    pairs = []
    for key in keys:
        pair = (images[key], labels[key] if labels is not None else None)
        unusable = [(name, *problem) for name in pair if name and (problem := _why_unusable(folder / name))]
        if not unusable:
            pairs.append(pair)
        for name, reason, advice in unusable:
            if own is None:
                raise UserError(f"{folder / name}: {advice}")
            own.setdefault(reason, []).append(name)
    if own is not None:
        if not pairs:
            raise UserError(f"{folder}: no image with a label is left of {layout.images}; {'; '.join(told(own))}")
        for reason, names in own.items():
            left_out.setdefault(reason, []).extend(names)
    return pairs


def told(left_out: LeftOut) -> list[str]:
    """What is left out and why, one sentence for each reason."""
    unique = {reason: list(dict.fromkeys(names)) for reason, names in left_out.items()}
    return [f"left out, {reason} ({len(names)}): {_some(names)}" for reason, names in unique.items()]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_NAMED]) + (f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else "")


def _images_and_labels(
    folder: Path, layout: Layout, left_out: LeftOut | None
) -> tuple[dict[str, str], dict[str, str] | None]:
    """The files of both patterns; one that fits both belongs to the pattern that says more."""
    images, doubled = _files(folder, layout.images, left_out)
    if not layout.labels:
        return images, None
    labels, doubled_labels = _files(folder, layout.labels, left_out)
    shared = {*images.values()} & {*labels.values()}
    loser = images if len(layout.labels.replace("*", "")) > len(layout.images.replace("*", "")) else labels
    for key in [key for key, name in loser.items() if name in shared]:
        del loser[key]
    for key in doubled | doubled_labels:  # their partners are not to be named as without one
        images.pop(key, None)
        labels.pop(key, None)
    return images, labels


def _why_unusable(path: Path) -> tuple[str, str] | None:
    """Why a file cannot be used, as a reason of `LeftOut` and in full; None where it can."""
    if not path.exists():
        return "links to what does not exist", f"a link to {os.readlink(path)}, which does not exist"
    if not path.is_file():
        return "no regular files", "a pipe, a socket or a device; expected a file"
    if path.stat().st_size == 0:
        return "empty files", "the file is empty; unpack its archive again"
    return None


def _is_there(folder: Path, layout: Layout, conditions: Sequence[str]) -> bool:
    """Whether a split has any image; its lists of names must exist."""
    if not all((folder / path).exists() for path in _anchors(layout)):
        return False
    return any(_files(folder, part.images, {})[0] for part in _by_condition(layout, conditions))


def _has_labels(folder: Path, layouts: SplitLayouts, conditions: Sequence[str]) -> bool:
    """Whether each split that must be there has any label."""
    required = [layout for split, layout in layouts.items() if split not in _OPTIONAL_SPLITS and layout.labels]
    return all(any(_files(folder, part.labels, {})[0] for part in _by_condition(one, conditions)) for one in required)


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
        names = _some([str(folder / _fill(pattern, key)) for key in missing])
        raise UserError(
            f"{len(missing)} of {len(keys)} {role}s missing: {names}; unpack the archive of the {role}s again"
        )


def _with_partners(
    keys: Sequence[str],
    images: Mapping[str, str],
    labels: Mapping[str, str] | None,
    folder: Path,
    layout: Layout,
    left_out: LeftOut,
) -> list[str]:
    """Those of the keys that have an image, and a label where there are any; the others are left out by name."""
    files = {"image": images} if labels is None else {"image": images, "label": labels}
    for role, other in (("image", "label"), ("label", "image")):
        if role not in files or other not in files:
            continue
        partners = files[other]
        alone = [key for key in keys if key in files[role] and key not in partners]
        if not alone:
            continue
        free = [key for key in partners if key not in files[role]]
        pattern = layout.labels if other == "label" else layout.images
        names = [files[role][key] for key in alone]
        for place, key in enumerate(alone[:_MAX_NAMED]):
            names[place] += _hint(folder, pattern, key, partners, free)
        left_out[f"{role}s without {'an image' if other == 'image' else 'a label'}"] = names
    unknown = [key for key in keys if not any(key in one for one in files.values())]
    if unknown:
        left_out[f"names in {layout.names} of no file"] = unknown
    return [key for key in keys if all(key in one for one in files.values())]


def _hint(folder: Path, pattern: str, key: str, partners: Mapping[str, str], free: Sequence[str]) -> str:
    """Which file may be meant as the partner of one that has none, in brackets."""
    expected = folder / _fill(pattern, key)
    try:
        start = expected.name.removesuffix("*")
        beside = [name for name in os.listdir(expected.parent) if name.startswith(start) and not _is_image(name)]
    except OSError:
        beside = []
    if beside:  # as the file of another program, or a folder
        return f" ({(expected.parent / beside[0]).relative_to(folder).as_posix()} is no picture that is read)"
    near = difflib.get_close_matches(key, free[:_MAX_COMPARED], n=1, cutoff=0.6)
    alike = [one for one in free if one.casefold() == key.casefold()] or near
    return f" (is {partners[alike[0]]} meant?)" if alike else ""


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


def _files(folder: Path, pattern: str, left_out: LeftOut | None = None) -> tuple[dict[str, str], set[str]]:
    """Files that match a pattern, relative to the folder, by what stands for the wildcards."""
    matcher = _matcher(pattern)
    depth = None if "**" in pattern else pattern.count("/") - _anchor(pattern).count("/")
    files: dict[str, str] = {}
    doubled: dict[str, list[str]] = {}
    for path in image_files(folder / _anchor(pattern), depth):
        name = path.relative_to(folder).as_posix()
        match = matcher.fullmatch(name)
        if match is None or (path.stem.endswith(_TRAIN_IDS) and _TRAIN_IDS not in pattern):
            continue
        key = "|".join(match.groups())
        if left_out is not None and (reason := why_unlisted(name)):
            left_out.setdefault(reason, []).append(name)
        elif key not in files:
            files[key] = name
        elif left_out is None:
            raise UserError(f"{folder / files[key]} and {path}: two files for one name; remove or rename one")
        else:
            doubled.setdefault(key, [files[key]]).append(name)
    for key, names in doubled.items():
        del files[key]
        left_out.setdefault("several files for one name", []).append(" and ".join(names))
    return files, set(doubled)


def _matcher(pattern: str) -> re.Pattern[str]:
    """What the names of a pattern's files match, with a group for each wildcard."""
    expression = re.escape(pattern).replace(r"\*\*", "(.+)").replace(r"\*", "([^/]+)")
    return re.compile(expression.replace(r"\{condition\}", "[^/]+") + r"\.[^./]+", re.DOTALL)


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def image_files(folder: Path, depth: int | None = None) -> Iterator[Path]:
    """Files below a folder whose suffix is that of an image, by name; links are followed, hidden files left out.

    Args:
        folder: where to begin; there is nothing in one that does not exist.
        depth: of folders to look into, 1 for the first alone; None for all.

    Raises:
        UserError: a folder cannot be looked into.
    """
    return (path for path in _walk(folder, depth) if _is_image(path.name))


def _walk(folder: Path, depth: int | None, seen: frozenset[str] = frozenset()) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in seen or not os.path.isdir(real):
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder}: the folder cannot be read ({error.strerror}); check its permissions") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if os.path.isdir(entry.path):  # `entry.is_dir` raises for a link to itself
            if depth is None or depth > 1:
                yield from _walk(Path(entry.path), None if depth is None else depth - 1, seen | {real})
        else:
            yield Path(entry.path)
