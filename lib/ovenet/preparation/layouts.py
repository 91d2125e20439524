"""Finds the files of a dataset on disk by the patterns of its layouts, and pairs images with labels."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path, PurePosixPath

from ovenet.data.files import IMAGE_SUFFIXES, read_lines, why_unlisted
from ovenet.data.info import DatasetInfo, Layout
from ovenet.data.stored_ids import TRAIN_IDS, compile_pattern
from ovenet.errors import UserError, first_of

Pairs = list[tuple[str, str | None]]  # image and label, relative to the dataset's folder
SplitLayouts = Mapping[str, Layout]
LeftOut = dict[str, list[str]]  # files that are not listed, by the reason

_OPTIONAL = "test"  # the split that may be missing
_MAX_FOLDERS = 200  # of a wrong root, so that naming a home folder does not search it all
_MAX_NAMED = 3
_MAX_COMPARED = 2000  # names among which the nearest is looked for


def find_layout(folder: Path, info: DatasetInfo) -> SplitLayouts:
    """The layout in which the data lies.

    Args:
        folder: of the dataset.
        info: its layouts.

    Returns:
        Layouts of training and validation, and of the test split if it is there.

    Raises:
        UserError: none fits; names what is missing, or the folder above or below that does fit.
    """
    whole = [layouts for layouts in info.layouts if _needed(layouts)]  # the others are of test images alone
    fitting = [layouts for layouts in whole if not _missing(folder, layouts)]
    if fitting:
        # Originals and train ids made from them may lie in the same folders.
        chosen = next((one for one in fitting if _has_labels(folder, one, info.conditions)), fitting[0])
        found = {split: layout for split, layout in chosen.items() if split != _OPTIONAL}
        tests = [one[_OPTIONAL] for one in (chosen, *info.layouts) if _OPTIONAL in one]
        there = next((one for one in tests if _is_there(folder, one, info.conditions)), None)
        return {**found, _OPTIONAL: there} if there else found
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
    """The first patterns by which test images are looked for."""
    images = dict.fromkeys(layouts[_OPTIONAL].images for layouts in info.layouts if _OPTIONAL in layouts)
    return list(images)[:_MAX_NAMED]


def collect_pairs(folder: Path, layout: Layout, conditions: Sequence[str], left_out: LeftOut | None = None) -> Pairs:
    """The images of a split with their labels, in the order of the conditions and of their names.

    Args:
        folder: of the dataset.
        layout: of the split.
        conditions: of the dataset.
        left_out: receives the files that cannot be used; None where none may be missing, as in published data.

    Raises:
        UserError: no pair is left; or, without `left_out`, an image or a label lacks its partner, or is empty.
    """
    if layout.also:
        parts = [replace(layout, also=None), layout.also]
        return [pair for part in parts for pair in collect_pairs(folder, part, conditions, left_out)]
    return [pair for part in _by_condition(layout, conditions) for pair in _pairs_of(folder, part, left_out)]


def _pairs_of(folder: Path, layout: Layout, left_out: LeftOut | None) -> Pairs:
    """The pairs of a layout without conditions and without `Layout.also`, see `collect_pairs`."""
    own: LeftOut = {}
    images, labels = _images_and_labels(folder, layout, None if left_out is None else own)
    if not images:
        what = "; ".join(["unpack the data there", *told(own)])
        raise UserError(f"{folder / _anchor(layout.images)}: no images like {layout.images}; {what}")
    keys = _keys_of_split(folder, layout, images, labels)
    if left_out is not None:
        keys = _with_partners(keys, images, labels, folder, layout, own)
    else:
        if labels is not None:
            _require_all(keys, labels, folder, layout.labels or "", "label")
        _require_all(keys, images, folder, layout.images, "image")
    pairs = []
    for key in keys:
        pair = (images[key], labels[key] if labels is not None else None)
        unusable = [(name, *problem) for name in pair if name and (problem := _why_unusable(folder / name))]
        if not unusable:
            pairs.append(pair)
        for name, reason, advice in unusable:
            if left_out is None:
                raise UserError(f"{folder / name}: {advice}")
            own.setdefault(reason, []).append(name)
    if left_out is not None:
        if not pairs:
            raise UserError(f"{folder}: no image with a label is left of {layout.images}; {'; '.join(told(own))}")
        for reason, names in own.items():
            left_out.setdefault(reason, []).extend(names)
    return pairs


def told(left_out: LeftOut) -> list[str]:
    """The files that are left out, one sentence for each reason."""
    unique = {reason: list(dict.fromkeys(names)) for reason, names in left_out.items()}
    return [f"left out, {reason} ({len(names)}): {first_of(names)}" for reason, names in unique.items()]


def _images_and_labels(
    folder: Path, layout: Layout, left_out: LeftOut | None
) -> tuple[dict[str, str], dict[str, str] | None]:
    """The files of both patterns; a file that matches both belongs to the more specific pattern."""
    images, doubled = _files(folder, layout.images, left_out)
    if not layout.labels:
        return images, None
    labels, doubled_labels = _files(folder, layout.labels, left_out)
    shared = {*images.values()} & {*labels.values()}
    loser = images if len(layout.labels.replace("*", "")) > len(layout.images.replace("*", "")) else labels
    for key in [key for key, name in loser.items() if name in shared]:
        del loser[key]
    for key in doubled | doubled_labels:  # their partners are not reported as unpaired
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
    required = [layout for split, layout in layouts.items() if split != _OPTIONAL and layout.labels]
    return all(
        any(part.labels and _files(folder, part.labels, {})[0] for part in _by_condition(one, conditions))
        for one in required
    )


def _by_condition(layout: Layout, conditions: Sequence[str]) -> list[Layout]:
    """The layout of each condition; the layout itself where it has no conditions."""
    if "{condition}" not in layout.images:
        return [layout]
    images, labels = layout.images, layout.labels or ""
    return [
        replace(layout, images=images.replace("{condition}", one), labels=labels.replace("{condition}", one) or None)
        for one in conditions
    ]


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
        names = first_of([str(folder / _fill(pattern, key)) for key in missing])
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
    """The keys with an image, and with a label where the layout has labels; the others are left out by name."""
    if labels is not None:
        for own, partners, pattern, reason in (
            (images, labels, layout.labels or "", "images without a label"),
            (labels, images, layout.images, "labels without an image"),
        ):
            alone = [key for key in keys if key in own and key not in partners]
            if alone:
                free = [key for key in partners if key not in own]
                hints = [_hint(folder, pattern, key, partners, free) for key in alone[:_MAX_NAMED]]
                left_out[reason] = [own[key] + hint for key, hint in zip_longest(alone, hints, fillvalue="")]
    files = [images] if labels is None else [images, labels]
    unknown = [key for key in keys if not any(key in one for one in files)]
    if unknown:
        left_out[f"names in {layout.names} of no file"] = unknown
    return [key for key in keys if all(key in one for one in files)]


def _hint(folder: Path, pattern: str, key: str, partners: Mapping[str, str], free: Sequence[str]) -> str:
    """The file that may be meant as the partner of one without, in brackets."""
    expected = folder / _fill(pattern, key)
    try:
        start = expected.name.removesuffix("*")
        beside = [name for name in os.listdir(expected.parent) if name.startswith(start) and not _is_image(name)]
    except OSError:
        beside = []
    if beside:  # a file of another program, or a folder
        return f" ({(expected.parent / beside[0]).relative_to(folder).as_posix()} is no picture that is read)"
    near = difflib.get_close_matches(key, free[:_MAX_COMPARED], n=1, cutoff=0.6)
    alike = [one for one in free if one.casefold() == key.casefold()] or near
    return f" (is {partners[alike[0]]} meant?)" if alike else ""


def _fill(pattern: str, key: str) -> str:
    texts = iter(key.split("|"))
    return re.sub(r"\*+", lambda _: next(texts), pattern) + ".*"


def _anchor(pattern: str) -> str:
    """The folders before the first wildcard."""
    parts = PurePosixPath(pattern.split("*")[0] + "x").parts[:-1]
    return "/".join(parts)


def _anchors(layout: Layout) -> list[str]:
    """The paths that must exist for a layout to fit: the folders of images and labels, and the files of names."""
    patterns = [pattern.split("{condition}")[0] for pattern in (layout.images, layout.labels) if pattern]
    own = [*map(_anchor, patterns), *filter(None, (layout.names, layout.names_not_in))]
    return own + (_anchors(layout.also) if layout.also else [])


def _needed(layouts: SplitLayouts) -> list[str]:
    splits = [layout for split, layout in layouts.items() if split != _OPTIONAL]
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
    """Files that match a pattern, relative to the folder, by the wildcards' text; and the texts of several files."""
    matcher = compile_pattern(pattern)
    depth = None if "**" in pattern else pattern.count("/") - _anchor(pattern).count("/")
    files: dict[str, str] = {}
    doubled: dict[str, list[str]] = {}
    for path in image_files(folder / _anchor(pattern), depth):
        name = path.relative_to(folder).as_posix()
        match = matcher.fullmatch(name)
        if match is None or (path.stem.endswith(TRAIN_IDS) and TRAIN_IDS not in pattern):
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
    for key in doubled:
        del files[key]
    if left_out is not None and doubled:
        left_out.setdefault("several files for one name", []).extend(map(" and ".join, doubled.values()))
    return files, set(doubled)


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def image_files(folder: Path, depth: int | None = None) -> Iterator[Path]:
    """Files with the suffix of an image below a folder, by name; links are followed, hidden files left out.

    Args:
        folder: where to begin; it need not exist.
        depth: levels of folders, 1 for `folder` alone; None for all.

    Raises:
        UserError: a folder cannot be read.
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
