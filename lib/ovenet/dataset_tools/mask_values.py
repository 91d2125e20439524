"""Which ids or colours the masks of a folder hold, which of them are classes, and which are the work of smoothing, of
JPEG, or of tools that store the same picture in several ways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from tqdm import tqdm

from ovenet.data.description import MAX_CLASSES
from ovenet.data.info import Color
from ovenet.data.labels import color_codes, colors_of_codes, count_values
from ovenet.data.masks import MaskForm, read_form, read_mask
from ovenet.data.snapping import LOSSY_TOLERANCE, MAX_SHARE, REACH_PX, is_blend
from ovenet.errors import UserError

MAX_MASKS = 200  # that are read, unless they are stored in different ways
TRANSPARENT: Literal["transparent"] = "transparent"
Value = int | Color | Literal["transparent"]

_NUM_THREADS = 4
_MIN_EDGE_VALUES = 3  # smoothing makes more than one; a single one may be a class for outlines
_FEW = 16  # values of a mask that may be thin classes; smoothing makes more
_RARE = 0.25  # share of the masks, of which at most so many are taken for drawn in another way
_SEVERAL = 5  # doubtful values in one mask, with which it may be
_MAX_NAMED = 3


def describe(value: Value) -> str:
    """A value in words."""
    if isinstance(value, int):
        return f"id {value}"
    return "transparent" if value == TRANSPARENT else f"colour {', '.join(map(str, value))}"


@dataclass(frozen=True)
class FileValues:
    """What one mask holds.

    Attributes:
        label: its name.
        form: how it is stored.
        counts: pixels of each id, index or colour.
        even: those that cover 3 x 3 pixels somewhere.
        hidden: ids and indices that are marked transparent.
    """

    label: str
    form: MaskForm
    counts: dict[Value, int]
    even: frozenset[Value]
    hidden: frozenset[int] = frozenset()

    @property
    def is_grey(self) -> bool:
        """Whether its samples are grey levels, and no indices or colours."""
        return self.form.holds_ids and self.form.palette is None

    def color_of(self, value: Value) -> Value:
        """The colour in which a viewer shows a value."""
        if not isinstance(value, int):
            return value
        if self.form.palette is not None:
            return self.form.palette[value] if value < len(self.form.palette) else (0, 0, 0)
        return (value * (255 // (2**self.form.bits - 1) if self.form.bits < 8 else 1),) * 3

    def in_colors(self) -> FileValues:
        """The same, each value by its colour."""
        colors = {value: TRANSPARENT if value in self.hidden else self.color_of(value) for value in self.counts}
        counts: Counter[Value] = Counter()
        for value, number in self.counts.items():
            counts[colors[value]] += number
        return replace(self, counts=counts, even=frozenset(colors[value] for value in self.even))


def read_values(folder: Path, labels: Sequence[str], *, show_progress: bool = False) -> list[FileValues]:
    """Looks at the headers of all masks, and at the pixels of `MAX_MASKS`; of all where depths or palettes differ.

    Raises:
        UserError: a mask cannot be read, or holds what cannot be classes.
    """
    bar = {"disable": not show_progress, "leave": False}
    forms = [read_form(folder / label) for label in tqdm(labels, desc="headers of masks", **bar)]
    depths = {form.bits for form in forms if form.holds_ids and form.palette is None}
    palettes = {form.palette for form in forms if form.palette is not None}
    is_alike = len(depths) <= 1 and len(palettes) <= 1
    chosen = labels[:: max(1, -(-len(labels) // MAX_MASKS))] if is_alike else labels
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        values = pool.map(lambda label: _values_of(folder / label, label), chosen)
        return list(tqdm(values, total=len(chosen), desc="masks", **bar))


def _values_of(path: Path, label: str) -> FileValues:
    mask = read_mask(path)
    if mask.samples.ndim == 3:
        codes = color_codes(mask.samples)
        if mask.alpha is not None:
            codes = np.where(mask.alpha == 0, -1, codes)
    else:
        codes = mask.samples
        wrong = codes[(codes < 0) | (codes > 255)] if codes.dtype != np.uint8 else codes[:0, 0]
        if wrong.size:
            raise UserError(f"{path}: the mask holds the id {wrong[0]}; expected ids from 0 to 255, or colours")
    found, numbers = count_values(codes)
    even = even_values(codes, found)
    hidden = frozenset() if mask.alpha is None else frozenset(np.unique(mask.samples[mask.alpha == 0]).tolist())
    if len(found) > MAX_CLASSES and numbers[~np.isin(found, even)].sum() > MAX_SHARE * codes.size:
        raise _too_many(path)

    def named(some: np.ndarray) -> list[Value]:
        if codes is mask.samples:
            return some.tolist()
        return [TRANSPARENT if c < 0 else color for c, color in zip(some, colors_of_codes(some), strict=True)]

    return FileValues(
        label, mask.form, dict(zip(named(found), numbers.tolist(), strict=True)), frozenset(named(even)), hidden
    )


def even_values(codes: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Those of the values `found` in a mask ``(H, W)`` that cover 3 x 3 pixels somewhere."""
    for step in (8, 1):  # every eighth row shows most of them
        above, centre, below = (codes[start : len(codes) - 2 + start : step] for start in range(3))
        same = (above == centre) & (centre == below)
        same = same[:, 1:-1] & same[:, :-2] & same[:, 2:]
        middle = centre[:, 1:-1]
        even = np.unique(middle[same & (middle == centre[:, :-2]) & (middle == centre[:, 2:])])
        if len(even) == len(found):
            break
    return even


def unify(folder: Path, files: Sequence[FileValues]) -> tuple[list[FileValues], bool]:
    """Reads all masks in one way: as ids, or, where ids would mean different things, by their colours.

    Returns:
        The masks, and whether files with one channel are read by their colours.

    Raises:
        UserError: they cannot be read in one way.
    """
    _refuse_mixed_depths(folder, files)
    with_ids = [file for file in files if file.form.holds_ids]
    colored = [file for file in files if not file.form.holds_ids]
    if not colored and not _palettes_differ(files):
        return list(files), False
    if not with_ids:
        return list(files), False
    unified = [file.in_colors() for file in files]
    known = {value for file in unified if not file.is_grey for value in file.counts}
    for file in unified:
        if file.is_grey and (foreign := next((value for value in file.counts if value not in known), None)):
            other = next(file for file in files if not file.is_grey)
            why = "by colours" if not other.form.holds_ids else "by palettes that differ, so by colours"
            raise UserError(
                f"{folder}: some masks are ids and some are colours: {other.label} is read {why}, and {file.label} has "
                f"grey {list(foreign)}, which no other has; write {folder / 'dataset.json'} by hand"
            )
    return unified, True


def _palettes_differ(files: Sequence[FileValues]) -> bool:
    """Whether an index that is in use has two colours, or a colour two indices in files of different palettes."""
    colors: dict[Value, Value] = {}
    first: dict[Value, tuple[Value, FileValues]] = {}
    for file in files:
        for value in file.counts if file.form.palette is not None else ():
            color = file.color_of(value)
            index, other = first.setdefault(color, (value, file))
            if colors.setdefault(value, color) != color:
                return True
            if index != value and other.form.palette != file.form.palette:
                return True
    return False


def _refuse_mixed_depths(folder: Path, files: Sequence[FileValues]) -> None:
    """Refuses masks whose samples, shown in a viewer, are other ids that further masks hold.

    A program that makes files small stores black and white (0 and 255) as 1 bit (0 and 1), or as a palette of two.
    """
    plain = [file for file in files if file.is_grey and file.form.bits >= 8]
    levels = {(value,) * 3: file.label for file in reversed(plain) for value in file.counts}
    for file in files:
        for value in file.counts:
            shown = file.color_of(value)
            if file.form.holds_ids and shown in levels and shown != (value,) * 3:
                kind = "a palette" if file.form.palette is not None else f"{file.form.bits}-bit grey"
                concerned = [f.label for f in files if f.form.bits == file.form.bits and f.is_grey == file.is_grey]
                more = f" and {len(concerned) - _MAX_NAMED} more" if len(concerned) > _MAX_NAMED else ""
                raise UserError(
                    f"{folder / file.label}: {kind}, whose {value} a viewer shows as {shown[0]}, and {levels[shown]} "
                    f"of 8 bits holds {shown[0]}: whether both are one class cannot be told; save as 8-bit grey: "
                    f"{', '.join(concerned[:_MAX_NAMED])}{more}"
                )


def find_classes(folder: Path, files: Sequence[FileValues]) -> tuple[list[Value], list[Value], set[str]]:
    """Tells classes from what smoothing and JPEG made of them.

    Classes are the values that cover 3 x 3 pixels somewhere; of masks that hold few others these too, unless they lie
    where two classes meet; and values that are no blend of two classes. Of JPEG files, those far from all others.

    Returns:
        The classes' values, those of them that may be edges, and the masks that hold others.

    Raises:
        UserError: there are more than `MAX_CLASSES`.
    """
    exact = [file for file in files if not file.form.is_lossy]
    even = {value for file in exact for value in file.even}
    classes = {value for file in exact if len(file.counts.keys() - even) <= _FEW for value in file.counts} | even
    totals: Counter[Value] = Counter()
    for file in files:
        totals.update(file.counts)
    if len(classes) <= MAX_CLASSES:
        _add_what_is_no_blend(classes, {v: totals[v] for file in exact for v in file.counts.keys() - classes})
    for value in sorted({v for file in files if file.form.is_lossy for v in file.even}, key=lambda v: -totals[v]):
        if len(classes) <= MAX_CLASSES and all(_apart(value, other) > 2 * LOSSY_TOLERANCE for other in classes):
            classes.add(value)
            even.add(value)
    if len(classes) > MAX_CLASSES:
        raise _too_many(folder / max(files, key=lambda file: len(file.counts)).label)
    ordered = sorted(classes, key=lambda value: -totals[value])
    doubtful = _doubtful(ordered, even)
    edges = _edge_values(folder, files, doubtful, even) if len(doubtful) >= _MIN_EDGE_VALUES else []
    if len(edges) >= _MIN_EDGE_VALUES:
        classes -= set(edges)
    snapped = {file.label for file in files if file.counts.keys() - classes}
    return [v for v in ordered if v in classes], [v for v in doubtful if v in classes], snapped


def _edge_values(folder: Path, files: Sequence[FileValues], doubtful: Sequence[Value], even: set[Value]) -> list[Value]:
    """Which of some values mostly lie where two wide classes meet: in the 3 x 3 pixels around them.

    Of a few masks of many that alone hold several such values, as one that was drawn with a soft brush: within
    `REACH_PX`, as far as a brush smooths.
    """
    codes, wide = np.sort(_codes_of(doubtful)), np.sort(_codes_of(even - {TRANSPARENT}))
    on_edges, pixels = np.zeros((2, len(codes)), np.int64)
    holders = [file for file in files if not file.counts.keys().isdisjoint(doubtful)]
    is_rare = len(holders) <= _RARE * len(files)
    for file in holders:
        mask = read_mask(folder / file.label)
        has_ids = all(isinstance(value, int) for value in file.counts)
        image = mask.samples if has_ids else color_codes(mask.colors(folder / file.label))
        is_odd = is_rare and len(file.counts.keys() & set(doubtful)) >= _SEVERAL
        meets = _where_classes_meet(image, wide, REACH_PX if is_odd else 1)
        chosen = np.isin(image, codes)
        index = np.searchsorted(codes, image[chosen])
        pixels += np.bincount(index, minlength=len(codes))
        on_edges += np.bincount(index, weights=meets[chosen], minlength=len(codes)).astype(np.int64)
    found = set(codes[2 * on_edges >= np.maximum(pixels, 1)].tolist())
    return [value for value, code in zip(doubtful, _codes_of(doubtful).tolist(), strict=True) if code in found]


def _where_classes_meet(image: np.ndarray, wide: np.ndarray, reach: int) -> np.ndarray:
    """Where ``(H, W)`` two of the sorted values `wide` are within `reach` pixels."""
    place = np.searchsorted(wide, image).clip(max=len(wide) - 1)
    is_wide = wide[place] == image
    highest, lowest = (
        cv2.dilate(np.where(is_wide, rank, 0).astype(np.float32), np.ones((2 * reach + 1,) * 2, np.uint8))
        for rank in (place + 1, len(wide) - place)
    )
    return (highest > 0) & (lowest > 0) & (highest != len(wide) + 1 - lowest)


def _codes_of(values: Iterable[Value]) -> np.ndarray:
    """Ids as they are, colours as `color_codes` gives them."""
    listed = list(values)
    return np.array(listed) if isinstance(listed[0], int) else color_codes(np.array(listed, np.uint8))


def _doubtful(classes: Sequence[Value], even: set[Value]) -> list[Value]:
    """Classes that are nowhere 3 x 3 pixels wide and may be blends of two that are: thin objects, or smoothed edges."""
    wide = [value for value in classes if value in even and value != TRANSPARENT]
    thin = [value for value in classes if value not in even and value != TRANSPARENT]
    if len(wide) < 2 or not thin:
        return []
    values, ends = (np.array([np.atleast_1d(one) for one in some], np.float32) for some in (thin, wide))
    blended = is_blend(values, ends, np.ones(len(wide), bool)).any(1)
    return [value for value, is_one in zip(thin, blended, strict=True) if is_one]


def _add_what_is_no_blend(classes: set[Value], others: dict[Value, int]) -> None:
    """Adds thin classes that show only where masks are smoothed, the one with most pixels first."""
    choices = [one for one in classes if one != TRANSPARENT]
    left = sorted((value for value in others if value != TRANSPARENT), key=lambda value: -others[value])
    is_new = [True] * len(choices)
    while left and len(choices) <= MAX_CLASSES:
        if choices:
            values, ends = (np.array([np.atleast_1d(one) for one in some], np.float32) for some in (left, choices))
            blended = is_blend(values, ends, np.array(is_new)).any(1)
            left = [value for value, is_one in zip(left, blended, strict=True) if not is_one]
        choices += left[:1]
        is_new = [False] * (len(choices) - 1) + [True]
        left = left[1:]
    classes.update(choices)


def _too_many(path: Path) -> UserError:
    return UserError(
        f"{path}: with it there are more than {MAX_CLASSES} ids or colours; save masks as PNG, and scale them without "
        "smoothing"
    )


def _apart(value: Value, other: Value) -> int:
    """Levels between two values, in the channel where they differ most."""
    if TRANSPARENT in (value, other):
        return MAX_CLASSES
    return int(np.abs(np.atleast_1d(value) - np.atleast_1d(other)).max())
