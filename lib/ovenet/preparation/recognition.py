"""Recognises where a user's own folder keeps its images and masks, as ``layouts`` of a ``dataset.json``."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovenet.data.files import IMAGE_SUFFIXES
from ovenet.errors import UserError, first_of
from ovenet.preparation.layouts import image_files

# Words by which people and tools tell images from masks. Folders: in any case, without punctuation, alone or joined to
# the name of a split, as `ground_truth`, `SegmentationClass` (VOC, CVAT), `masks_machine` (Supervisely), `train_masks`.
_SPLITS = {"train": ("training", "train"), "val": ("validation", "valid", "val", "dev"), "test": ("testing", "test")}
_IMAGE_FOLDERS = re.compile("images?|imgs?|imgdir|photos?|pictures?|pics?|frames|rgb|jpegimages|inputs?|originals?|x")
_LABEL_FOLDERS = re.compile(
    "labels?|labelmaps?|masks?|masksmachine|annotations?|annots?|anns?|anndir|segs?|segmentations?|segmentationclass|gt|"
    "groundtruth|targets?|y"
)
# Files: before or after the name that an image and its mask share, as in `a_mask.png` (Roboflow) and `img_1.jpg`.
_IMAGE_WORDS = "image|img|rgb|photo|sat"
_LABEL_WORDS = "masks?|labels?|seg|segmentation|gt|ground_truth|annotation"
_SUFFIXES = r"\.(?:jpe?g|png|bmp|tiff?)"  # of the image, in the name of its mask: `a.jpg.png`
_LISTS = "ImageSets/Segmentation/{split}.txt"  # of VOC and CVAT: which images belong to a split
_MAX_NAMED = 3
_EXAMPLE = '{"layouts": {"images": "photos/**", "labels": "masks/**_mask"}}'

Folder = tuple[str, ...]  # the names of a folder and of those above it, from the dataset's down
Pairing = set[tuple[str, str]]  # an image and its mask: paths without suffixes


@dataclass(frozen=True)
class Recognized:
    """Where images and masks lie.

    Attributes:
        layouts: as ``dataset.json`` has them, one table.
        unused: further folders with images, relative to the dataset's.
    """

    layouts: dict[str, Any]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"images are {self.layouts['images']}, masks are {self.layouts['labels']}"]
        names = self.layouts.get("split_names", {})
        if names:
            meanings = {"all": "train and val", "test": "test, without masks" if "test" in self.layouts else "test"}
            parts.append(f"{{split}} is {', '.join(f'{name} ({meanings.get(s, s)})' for s, name in names.items())}")
        if self.unused:
            parts.append(f"not used: images in {first_of(self.unused)}")
        return "; ".join(parts)


@dataclass(frozen=True)
class _Place:
    """One reading of a folder.

    Attributes:
        frame: its path without the word for images or masks; equal for the two folders of a pair.
        split: name of the split there; "" for none.
        pattern: of all folders with the same reading, with ``{split}``.
        loose: the same with wildcards for folders above that may have any name.
        depth: levels of folders below those that the pattern names.
    """

    frame: Folder
    split: str
    pattern: str
    loose: str
    depth: int


@dataclass(frozen=True)
class _Find:
    """Images and masks that go together.

    Attributes:
        images: pattern of the images.
        labels: pattern of the masks.
        loose: the loose patterns of both, see `_Place`.
        splits: names of the splits; "" is none.
        folders: folders of the files.
    """

    images: str
    labels: str
    loose: tuple[str, str]
    splits: frozenset[str]
    folders: frozenset[Folder]


def recognize_layouts(folder: Path) -> Recognized:
    """Recognises the layout of a dataset's folder by its names.

    Raises:
        UserError: no images and masks go together, or several do; says how to write down what is meant.
    """
    stems: dict[Folder, set[str]] = defaultdict(set)
    for path in image_files(folder):
        stems[path.relative_to(folder).parts[:-1]].add(path.stem)
    finds = [
        find
        for (image, label, loose), pairs in _pairs_of_folders(stems).items()
        if (find := _find(folder, image, label, loose, pairs, stems))
    ]
    find = _only_one(folder, finds, stems)
    unlabelled = _unlabelled_tests(find, stems)
    unused = sorted(set(stems) - find.folders - set(unlabelled))
    return Recognized(_as_layouts(folder, find, unlabelled), tuple("/".join(one) or "." for one in unused))


def _pairs_of_folders(
    stems: Mapping[Folder, set[str]],
) -> dict[tuple[str, str, tuple[str, str]], list[tuple[_Place, Folder, Folder]]]:
    """Folders of images with the folders of masks that may go with them, by their patterns."""
    labels: dict[tuple[Folder, str], list[tuple[Folder, _Place]]] = defaultdict(list)
    for names in stems:
        for place in _named_places(names, _LABEL_FOLDERS):
            labels[place.frame, place.split].append((names, place))
    result = defaultdict(list)
    for names in stems:
        named = list(_named_places(names, _IMAGE_FOLDERS))
        for place in named or [_plain_place(names, "*")]:
            for other, label in labels[place.frame, place.split]:
                if other != names:
                    key = (place.pattern, label.pattern, (place.loose, label.loose))
                    result[key].append((label, names, other))
        if named or not any(True for _ in _named_places(names, _LABEL_FOLDERS)):
            place = named[0] if named else _plain_place(names, "**")
            result[place.pattern, place.pattern, (place.loose, place.loose)].append((place, names, names))
    return result


def _named_places(names: Folder, words: re.Pattern[str]) -> Iterator[_Place]:
    """The readings of a folder as one of images, or of masks: one for each of its names that is one of the words."""
    for index, name in enumerate(names):
        split = _split_beside(name, words)
        if split is None:
            continue
        above, below = names[:index], names[index + 1 :]
        frame = (*above, *filter(None, [split]), *below)
        rest = [name.replace(split, "{split}", 1) if split else name]
        if not split:
            split = next(filter(_split_of, above), "")
            if not split and below and _split_of(below[0]):
                split, below = below[0], below[1:]
                rest.append("{split}")
        yield _Place(frame, split, *_patterns(above, split, [*rest, "**"]), len(below))


def _plain_place(names: Folder, ending: str) -> _Place:
    """The reading of a folder of any name; with the ending ``**`` it includes all folders below."""
    index = next((i for i, name in enumerate(names) if _split_of(name)), None)
    split = "" if index is None else names[index]
    end = len(names) if ending == "*" else 0 if index is None else index + 1
    return _Place(names, split, *_patterns(names[:end], split, [ending]), len(names) - end)


def _patterns(above: Folder, split: str, rest: Sequence[str]) -> tuple[str, str]:
    """The strict and the loose pattern of `_Place`; `split` may be one of the folders above."""
    strict = ["{split}" if split and name == split else name for name in above]
    loose = [name if name == "{split}" else "*" for name in strict]
    return "/".join([*strict, *rest]), "/".join([*loose, *rest])


def _split_of(name: str) -> str:
    """``train``, ``val`` or ``test``; "" for a name of no split."""
    return next((split for split, words in _SPLITS.items() if name.lower() in words), "")


def _split_beside(name: str, words: re.Pattern[str]) -> str | None:
    """The part of a name that says the split, where the rest is one of the words; "" for no split, None for other
    names."""
    simple = re.sub("[^a-z0-9]", "", name.lower())
    if words.fullmatch(simple):
        return ""
    for word in (word for alike in _SPLITS.values() for word in alike):
        if words.fullmatch(simple.removeprefix(word)):
            return name[: len(word)] if name.lower().startswith(word) else None
        if words.fullmatch(simple.removesuffix(word)):
            return name[-len(word) :] if name.lower().endswith(word) else None
    return None


def _find(
    folder: Path,
    image_pattern: str,
    label_pattern: str,
    loose: tuple[str, str],
    pairs: Sequence[tuple[_Place, Folder, Folder]],
    stems: Mapping[Folder, set[str]],
) -> _Find | None:
    """The images and masks in folders with the same reading, by the most frequent naming of files; None for none.

    Raises:
        UserError: an image has two masks, or two images have the same.
    """
    pairings: dict[tuple[str, str], Pairing] = defaultdict(set)
    for _, one, other in pairs:
        images, labels = _by_affix(stems[one], _IMAGE_WORDS), _by_affix(stems[other], _LABEL_WORDS, _SUFFIXES)
        for image, label in ((image, label) for image in images for label in labels):
            if one == other and image == label:
                continue
            for key in images[image] & labels[label]:
                names = image.replace("*", key), label.replace("*", key)
                pairings[image, label].add(("/".join([*one, names[0]]), "/".join([*other, names[1]])))
    if not pairings:
        return None
    image, label = max(pairings, key=lambda affixes: (len(pairings[affixes]), affixes == ("*", "*")))
    chosen = pairings[image, label]
    for which in (0, 1):
        known = {pair[which]: pair for pair in chosen}
        for pair in sorted(set().union(*pairings.values()) - chosen):
            if pair[which] in known:
                raise _ambiguous(folder, [known[pair[which]], pair])
    used = {path.rpartition("/")[0] for pair in chosen for path in pair}
    inside = [(place, one, other) for place, one, other in pairs if {"/".join(one), "/".join(other)} <= used]
    if not (image.startswith("*") and label.startswith("*")) and any(place.depth for place, _, _ in inside):
        return None
    return _Find(
        _affixed(image_pattern, image),
        _affixed(label_pattern, label),
        (_affixed(loose[0], image), _affixed(loose[1], label)),
        frozenset(place.split for place, _, _ in inside),
        frozenset(names for _, one, other in inside for names in (one, other)),
    )


def _by_affix(stems: set[str], words: str, suffixes: str = "(?!)") -> dict[str, set[str]]:
    """Names by the prefix or suffix that marks them, as ``*_mask``; all of them by ``*`` too.

    Args:
        stems: names of files.
        words: regular expression of the words that mark a file.
        suffixes: regular expression of further endings.
    """
    before = re.compile(rf"((?:{words})[_\-. ])(.+)", re.IGNORECASE | re.DOTALL)
    after = re.compile(rf"(.+?)([_\-. ](?:{words})|{suffixes})", re.IGNORECASE | re.DOTALL)
    result = defaultdict(set, {"*": stems})
    for stem in stems:
        if match := before.fullmatch(stem):
            result[f"{match[1]}*"].add(match[2])
        if match := after.fullmatch(stem):
            result[f"*{match[2]}"].add(match[1])
    return result


def _affixed(pattern: str, affix: str) -> str:
    start, wildcard = pattern.rstrip("*"), "*" if not affix.startswith("*") else pattern[len(pattern.rstrip("*")) :]
    return start + affix.replace("*", wildcard)


def _only_one(folder: Path, finds: Sequence[_Find], stems: Mapping[Folder, set[str]]) -> _Find:
    """The one find; finds that differ only in folders of any name are merged.

    Raises:
        UserError: there is none, or there are several.
    """
    if not finds:
        raise _nothing(folder, stems)
    if len(finds) > 1 and len({find.loose for find in finds}) == 1:
        splits = frozenset(split for find in finds for split in find.splits)
        folders = frozenset(names for find in finds for names in find.folders)
        return _Find(*finds[0].loose, finds[0].loose, splits, folders)
    if len(finds) > 1:
        raise _ambiguous(folder, sorted((find.images, find.labels) for find in finds))
    return finds[0]


def _unlabelled_tests(find: _Find, stems: Mapping[Folder, set[str]]) -> dict[Folder, str]:
    """Folders of test images without masks beside the others, with the name of the split in each."""
    result: dict[Folder, str] = {}
    if "" in find.splits or any(_split_of(split) == "test" for split in find.splits):
        return result
    start = find.images.rpartition("/")[0]
    for names in stems:
        for place in [*_named_places(names, _IMAGE_FOLDERS), _plain_place(names, "*"), _plain_place(names, "**")]:
            starts = [pattern.rpartition("/")[0] for pattern in (place.pattern, place.loose)]
            if start in starts and _split_of(place.split) == "test":
                result[names] = place.split
    return result


def _as_layouts(folder: Path, find: _Find, unlabelled: Mapping[Folder, str]) -> dict[str, Any]:
    """The find as a table of ``layouts``.

    Raises:
        UserError: a split has two names, or there is none for training.
    """
    layouts: dict[str, Any] = {"images": find.images, "labels": find.labels}
    if find.splits == {""}:
        start = find.labels.partition("SegmentationClass/")[0]
        lists = start + _LISTS
        if "SegmentationClass/" in find.labels and all(
            (folder / lists.replace("{split}", split)).is_file() for split in ("train", "val")
        ):
            return {**layouts, "names": lists}
        return layouts
    names: dict[str, str] = {}
    for text in sorted({*find.splits, *unlabelled.values()}):
        other = names.setdefault(_split_of(text), text)
        if other != text:
            raise UserError(
                f"{folder}: {other} and {text} are both {_split_of(text)}; move the files of one to the other"
            )
    if "train" not in names:
        raise UserError(f"{folder}: images and masks of {', '.join(find.splits)} only; add those of train")
    if "val" not in names:
        names = {"all": names.pop("train"), **names}
    layouts["split_names"] = {split: names[split] for split in ("all", *_SPLITS) if split in names}
    return {**layouts, "test": {"labels": None}} if unlabelled else layouts


def _ambiguous(folder: Path, found: Sequence[tuple[str, str]]) -> UserError:
    named = ", or ".join(f"{image} with {label}" for image, label in found[:_MAX_NAMED])
    return UserError(
        f"{folder}: which are the images and their masks: {named}? Move away what is not meant, or say it in "
        f"{folder / 'dataset.json'}, as {_EXAMPLE}, and run this again"
    )


def _nothing(folder: Path, stems: Mapping[Folder, set[str]]) -> UserError:
    if any(path.name != "dataset.json" for path in folder.rglob("*.json")):
        hint = "annotations in JSON files become masks with --from labelme or --from coco"
    elif twins := _twins(folder):
        hint = f"masks beside images need names of their own: {twins[0]} and {twins[1]} may be a.jpg and a_mask.png"
    else:
        hint = (
            "expected folders such as images and labels with the same names in them, or a.jpg beside a_mask.png; or "
            f"say in {folder / 'dataset.json'} where they are, as {_EXAMPLE}"
        )
    if not stems:
        return UserError(f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)}); {hint}")
    most = sorted(stems, key=lambda names: -len(stems[names]))[:_MAX_NAMED]
    there = ", ".join(f"{'/'.join(names) or '.'} ({len(stems[names])})" for names in most)
    return UserError(f"{folder}: no images and masks that go together in {there}; {hint}")


def _twins(folder: Path) -> tuple[str, str] | None:
    """Two files of a folder that differ by their suffix."""
    known: dict[Path, str] = {}
    for path in image_files(folder):
        other = known.setdefault(path.with_suffix(""), path.name)
        if other != path.name:
            return other, path.name
    return None
