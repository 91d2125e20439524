"""Ids and colours in the masks of a folder: which of them are classes, and which come from smoothing, from JPEG, or
from tools that store the same picture in several ways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from ovenet.data.info import Color
from ovenet.data.keys import MAX_CLASSES
from ovenet.data.labels import color_codes, colors_of_codes, count_values
from ovenet.data.masks import MaskForm, count_plain_ids, read_form, read_mask
from ovenet.data.snapping import (
    LOSSY_TOLERANCE,
    MANY_VALUES,
    MAX_SHARE,
    ROUNDED,
    TOLERANCE,
    even_values,
    near_choices,
    on_line,
)
from ovenet.errors import UserError, first_of
from ovenet.utils.progress import tell, track

MAX_MASKS = 200  # masks to read, unless they are stored in different ways
TRANSPARENT: Literal["transparent"] = "transparent"
Value = int | Color | Literal["transparent"]
T = TypeVar("T")

_NUM_THREADS = 4
_REACH_PX = 8  # largest distance from a pixel in a soft edge to the class on either side
_FEW = 16  # values of a mask between others that may be thin classes; smoothing makes more
_MAX_WRONG = 0.2  # largest share of unusable masks with which the draft goes on without them
_MIN_BLENDS = 5  # colours of a mask on lines between classes beside them; fewer may be chance
_NEARLY_ALL = 0.9  # least share of a value's pixels between others for it to be a possible edge
_MIN_APART = 64  # levels between the colours of the classes beside an edge


def describe(value: Value) -> str:
    """A value in words."""
    if isinstance(value, int):
        return f"id {value}"
    return "transparent" if value == TRANSPARENT else f"colour {', '.join(map(str, value))}"


@dataclass(frozen=True)
class FileValues:
    """The values in one mask.

    Attributes:
        label: name of the mask.
        form: how it is stored.
        counts: pixels of each id, index or colour.
        even: values that cover 3 x 3 pixels somewhere.
        hidden: ids and indices that are marked transparent.
    """

    label: str
    form: MaskForm
    counts: Mapping[Value, int]
    even: frozenset[Value]
    hidden: frozenset[int] = frozenset()

    @property
    def is_grey(self) -> bool:
        """Whether its samples are grey levels rather than indices or colours."""
        return self.form.holds_ids and self.form.palette is None

    @property
    def has_ids(self) -> bool:
        """Whether its values are ids or indices rather than colours."""
        return all(isinstance(value, int) for value in self.counts)

    def color_of(self, value: int) -> Color:
        """The colour of an id or index in a viewer."""
        if self.form.palette is not None:
            return self.form.palette[value] if value < len(self.form.palette) else (0, 0, 0)
        level = value * self.form.grey_step
        return level, level, level

    def in_colors(self) -> FileValues:
        """The same mask with each value as its colour."""
        colors: dict[Value, Value] = {}
        for value in self.counts:
            colors[value] = self.color_of(value) if isinstance(value, int) else value
            if value in self.hidden:
                colors[value] = TRANSPARENT
        counts: Counter[Value] = Counter()
        for value, number in self.counts.items():
            counts[colors[value]] += number
        return replace(self, counts=counts, even=frozenset(colors[value] for value in self.even))


def read_all_values(folder: Path, labels: Sequence[str]) -> tuple[list[FileValues], list[str]]:
    """Reads the headers of all masks, and the pixels of `MAX_MASKS`; of all where depths or palettes differ, and where
    counting is fast.

    Returns:
        The values of each mask, and error messages about the few that cannot be masks.

    Raises:
        UserError: many cannot be read, or hold values that cannot be classes.
    """
    problems: list[UserError] = []

    def attempt(read: Callable[[Path], T], some: Sequence[str], title: str) -> list[tuple[str, T]]:
        found = []
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            tasks = [(label, pool.submit(read, folder / label)) for label in some]
            for label, task in track(tasks, title, len(tasks), tell=tell):
                try:
                    found.append((label, task.result()))
                except UserError as error:
                    problems.append(error)
        if len(problems) > _MAX_WRONG * len(labels):
            raise problems[0]
        return found

    forms = dict(attempt(read_form, labels, "headers of masks"))
    depths = {form.bits for form in forms.values() if form.holds_ids and form.palette is None}
    palettes = {form.palette for form in forms.values() if form.palette is not None}
    is_alike = len(depths) <= 1 and len(palettes) <= 1
    chosen = dict.fromkeys(list(forms)[:: max(1, -(-len(forms) // MAX_MASKS)) if is_alike else 1])
    files = [replace(file, label=label) for label, file in attempt(_values_of, list(chosen), "masks")]
    even = frozenset(value for file in files for value in file.even)
    rest = [label for label in forms if label not in chosen]
    more = attempt(lambda path: _counts_of(path, even), rest, "further masks")
    return [*files, *(replace(file, label=label) for label, file in more if file is not None)], list(map(str, problems))


def _counts_of(path: Path, even: frozenset[Value]) -> FileValues | None:
    """A mask whose ids can be counted fast, read whole where it has other values than `even`; None for other masks."""
    plain = count_plain_ids(path, num_rows=1)
    if plain is None:
        return None
    form, counts, _ = plain
    numbers: dict[Value, int] = dict(counts.items())
    return FileValues("", form, numbers, frozenset()) if numbers.keys() <= even else _values_of(path)


def _values_of(path: Path) -> FileValues:
    """The values in a mask, without its name.

    Raises:
        UserError: it cannot be read, or holds values that cannot be classes.
    """
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
    most = MAX_CLASSES if mask.form.is_lossy else MANY_VALUES
    if len(found) - len(even) > most and numbers[~np.isin(found, even)].sum() > MAX_SHARE * codes.size:
        raise UserError(
            f"{path}: looks like a photograph: {len(found)} ids or colours, and most of them nowhere 3 pixels wide; "
            "expected a mask of few classes, saved as PNG and without smoothing"
        )

    def named(some: np.ndarray) -> list[Value]:
        if codes is mask.samples:
            return some.tolist()
        return [TRANSPARENT if c < 0 else color for c, color in zip(some, colors_of_codes(some), strict=True)]

    return FileValues(
        "", mask.form, dict(zip(named(found), numbers.tolist(), strict=True)), frozenset(named(even)), hidden
    )


def unify(folder: Path, files: Sequence[FileValues]) -> tuple[list[FileValues], bool]:
    """Reads all masks in the same way: as ids, or by their colours where ids have different meanings.

    Returns:
        The masks, and whether files with one channel are read by their colours.

    Raises:
        UserError: they cannot be read in the same way.
    """
    _refuse_mixed_depths(folder, files)
    num_ids = sum(file.form.holds_ids for file in files)
    if num_ids == 0 or (num_ids == len(files) and not _palettes_differ(files)):
        return list(files), False
    unified = [file.in_colors() for file in files]
    known = {value for file in unified if not file.is_grey for value in file.counts}
    for file in unified:
        foreign = next((value for value in file.counts if value not in known), None) if file.is_grey else None
        if foreign is not None:
            other = next(file for file in files if not file.is_grey)
            why = "by colours" if not other.form.holds_ids else "by palettes that differ, so by colours"
            raise UserError(
                f"{folder}: some masks are ids and some are colours: {other.label} is read {why}, and {file.label} has "
                f"grey {list(foreign) if isinstance(foreign, tuple) else foreign}, which no other has; write "
                f"{folder / 'dataset.json'} by hand"
            )
    return unified, True


def _palettes_differ(files: Sequence[FileValues]) -> bool:
    """Whether an index in use has two colours, or a colour has two indices in files of different palettes."""
    colors: dict[int, Color] = {}
    first: dict[Color, tuple[int, FileValues]] = {}
    for file in files:
        for value in file.counts if file.form.palette is not None else ():
            if isinstance(value, int):
                color = file.color_of(value)
                index, other = first.setdefault(color, (value, file))
                if colors.setdefault(value, color) != color:
                    return True
                if index != value and other.form.palette != file.form.palette:
                    return True
    return False


def _refuse_mixed_depths(folder: Path, files: Sequence[FileValues]) -> None:
    """Refuses masks whose samples, as viewers show them, are other ids in use in further masks.

    Programs that make files small store black and white (0 and 255) as 1 bit (0 and 1), or as a palette of two.
    """
    plain = [file for file in files if file.is_grey and file.form.bits >= 8]
    levels = {(value, value, value): file.label for file in reversed(plain) for value in file.counts}
    for file in files:
        for value in file.counts if file.form.holds_ids else ():
            shown = file.color_of(value) if isinstance(value, int) else value
            if isinstance(shown, tuple) and shown in levels and shown != (value, value, value):
                kind = "a palette" if file.form.palette is not None else f"{file.form.bits}-bit grey"
                concerned = [f.label for f in files if f.form.bits == file.form.bits and f.is_grey == file.is_grey]
                raise UserError(
                    f"{folder / file.label}: {kind}, whose {value} a viewer shows as {shown[0]}, and {levels[shown]} "
                    f"of 8 bits holds {shown[0]}: whether both are one class cannot be told; save as 8-bit grey: "
                    f"{first_of(concerned)}"
                )


@dataclass(frozen=True)
class Classes:
    """The values that are classes, and the others.

    Attributes:
        values: of the classes, in decreasing order of pixels.
        doubtful: values of classes that may be smoothed edges.
        edges: pixels of each value that is an edge and no class.
        smoothed: the masks with values of no class.
    """

    values: list[Value]
    doubtful: list[Value]
    edges: dict[Value, int]
    smoothed: set[str]


def find_classes(folder: Path, files: Sequence[FileValues], *, has_edges: bool = True) -> Classes:
    """Tells classes from the values that smoothing and JPEG made of them.

    Every value is a class unless `_edges` finds it; in JPEG files only values that cover 3 x 3 pixels, far from others.

    Raises:
        UserError: there are more than `MAX_CLASSES`.
    """
    exact = [file for file in files if not file.form.is_lossy]
    even = {value for file in exact for value in file.even}
    totals: Counter[Value] = Counter()
    for file in files:
        totals.update(file.counts)
    edges, doubtful = _edges(folder, exact, even) if has_edges else (set(), set())
    classes = {value for file in exact for value in file.counts} - edges
    for value in sorted({v for file in files if file.form.is_lossy for v in file.even}, key=lambda v: -totals[v]):
        if len(classes) <= MAX_CLASSES and all(_apart(value, other) > 2 * LOSSY_TOLERANCE for other in classes):
            classes.add(value)
    if len(classes) > MAX_CLASSES:
        largest = max(files, key=lambda file: len(file.counts))
        raise UserError(
            f"{folder / largest.label}: with it there are more than {MAX_CLASSES} ids or colours; save masks as PNG, "
            "and scale them without smoothing"
        )
    ordered = [value for value, _ in totals.most_common()]
    return Classes(
        [value for value in ordered if value in classes],
        [value for value in ordered if value in doubtful],
        {value: totals[value] for value in ordered if value in edges},
        {file.label for file in files if file.counts.keys() - classes},
    )


def _edges(folder: Path, files: Sequence[FileValues], even: set[Value]) -> tuple[set[Value], set[Value]]:
    """Values that smoothing made, and values that it may have made (an image may end where two classes meet).

    They are nowhere 3 x 3 pixels wide, and lie between two classes that are: most of their pixels within `_REACH_PX` of
    both, and their value between both. Leaving out a class is worse than drafting edges as classes, so a mask counts as
    smoothed only if it has many such values. Indices of a palette are never smoothed.
    """
    wide, thin = even - {TRANSPARENT}, {v for file in files for v in file.counts} - even - {TRANSPARENT}
    holders = [f for f in files if not (f.form.holds_ids and f.form.palette is not None and f.has_ids)]
    holders = [file for file in holders if not thin.isdisjoint(file.counts)]
    if len(wide) < 2 or not holders:
        return set(), set()
    values, ends = _Values(thin), _Values(wide)
    pixels, between = np.zeros((2, 2, len(thin)), np.int64)  # in sharp and in smoothed masks
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for numbers, (strict, loose) in pool.map(lambda file: _count_between(folder, file, values, ends), holders):
            some = np.maximum(1, numbers)
            is_much_blended = (2 * loose >= some).sum() > _FEW
            is_smoothed = is_much_blended or (values.has_colors and (2 * strict >= some).sum() >= _MIN_BLENDS)
            pixels[int(is_smoothed)] += numbers
            between[int(is_smoothed)] += loose if is_much_blended else strict
    is_between = 2 * between >= pixels
    edges = is_between.all(0) & (pixels[1] > 0)
    doubtful = (between.sum(0) >= _NEARLY_ALL * np.maximum(1, pixels.sum(0))) | ((pixels[0] == 0) & (pixels[1] > 0))
    return values.named(edges), values.named(doubtful & ~edges)


class _Values:
    """Values in the order of their codes: ids themselves, colours by `color_codes`.

    Attributes:
        codes: ``(N,)``.
        levels: ``(N, C)`` float32.
    """

    def __init__(self, values: Iterable[Value]):
        listed = list(values)
        self.has_colors = not isinstance(listed[0], int)
        codes = color_codes(np.array(listed, np.uint8)) if self.has_colors else np.array(listed)
        order = np.argsort(codes)
        self._listed = [listed[k] for k in order]
        self.codes = codes[order]
        self.levels = np.array([np.atleast_1d(value) for value in self._listed], np.float32)

    def named(self, chosen: np.ndarray) -> set[Value]:
        """The values that are `chosen`, ``(N,)`` bool."""
        return {value for value, is_one in zip(self._listed, chosen, strict=True) if is_one}


def _count_between(folder: Path, file: FileValues, thin: _Values, wide: _Values) -> tuple[np.ndarray, np.ndarray]:
    """Pixels ``(T,)`` of thin values in a mask, and their pixels between two wide values ``(2, T)``: strictly between
    them, and within the tolerance of snapping."""
    mask = read_mask(folder / file.label)
    image = mask.samples if file.has_ids else color_codes(mask.colors(folder / file.label))
    chosen = np.flatnonzero(np.isin(image, thin.codes))
    which = np.searchsorted(thin.codes, image.ravel()[chosen])
    place = np.searchsorted(wide.codes, image).clip(max=len(wide.codes) - 1)
    near = near_choices(place, wide.codes[place] == image, chosen, len(wide.codes), reach=_REACH_PX)
    near, ends = near[:, near.any(0)], wide.levels[near.any(0)]
    numbers, between = np.bincount(which, minlength=len(thin.codes)), np.zeros((2, len(thin.codes)), np.int64)
    for t in np.flatnonzero(numbers):
        found = near[which == t]
        for kind, joined in enumerate(_joined(thin.levels[t], ends)):
            between[kind, t] = ((found.astype(np.float32) @ joined > 0) & found).any(1).sum()
    return numbers, between


def _joined(value: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether a value ``(C,)`` may be a blend of two of the `ends` ``(N, C)``, strictly and loosely; ``(N, N)`` each.

    Colours that are near each other, or grey, may lie on a line by chance, or because they are ids.
    """
    strict, loose = np.zeros((2, len(ends), len(ends)), np.float32)
    for n, start in enumerate(ends):
        along, away = on_line(value[None], start, ends)
        is_inside = (along[0] > 0) & (along[0] < 1)
        loose[n] = is_inside & (away[0] <= TOLERANCE[len(value)])
        is_telling = np.abs(ends - start).max(1) >= _MIN_APART
        is_telling &= (np.ptp(ends, axis=1) > 0) | (np.ptp(start) > 0)
        strict[n] = is_inside & (away[0] <= ROUNDED) & (is_telling | (len(value) == 1))
    return strict, loose


def _apart(value: Value, other: Value) -> int:
    """Levels between two values in the channel where they differ most."""
    if TRANSPARENT in (value, other):
        return MAX_CLASSES
    return int(np.abs(np.atleast_1d(value) - np.atleast_1d(other)).max())
