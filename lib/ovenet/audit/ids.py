"""Classic mistakes in label ids, recognised from the ids of all label files together, each with its remedy.

A mistake is a function from the facts to a message, or None where it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ovenet.audit.reports import Finding, PairReport
from ovenet.data.info import DatasetInfo
from ovenet.data.labels import has_cityscapes_ids, last_known_id

_MAX_TRAIN_ID = 18  # of Cityscapes; its label id files hold higher ids (vegetation, sky, car)
_MIN_TRAIN_IDS = 8  # fewer different small ids are no evidence
_MIN_BLENDS = 3  # ids between two others; fewer may be forgotten classes
_MAX_BLENDED_SHARE = 0.2  # of the pixels that may be edges
_MAX_SHOWN = 8
_BLACK_AND_WHITE = (
    'a foreground mask saved as black and white. Give the foreground its id, or write "id": 255 for its class in '
    "dataset.json"
)


@dataclass(frozen=True)
class _Facts:
    """Ids in the label files of a list; `unknown_share` is relative to the pixels of files with unknown ids."""

    info: DatasetInfo
    present: frozenset[int]
    unknown: frozenset[int]
    label_names: tuple[str, ...]
    unknown_share: float
    all_lossy: bool

    @property
    def first(self) -> int:
        return min(self.info.known_ids)

    @property
    def last(self) -> int:
        return max(self.info.known_ids)

    @property
    def shown(self) -> str:
        ids = sorted(self.unknown)
        return ", ".join(map(str, ids[:_MAX_SHOWN])) + ("…" if len(ids) > _MAX_SHOWN else "")

    @property
    def expected(self) -> str:
        ignored = ", ".join(map(str, self.info.ignored_ids)) or "none"
        return f"{self.info.name} has the ids {self.first} to {self.last} and ignores {ignored}"


def findings_about_ids(reports: Sequence[PairReport], info: DatasetInfo) -> list[Finding]:
    """A finding about the first mistake that explains the ids; none where there is no such mistake."""
    concerned = [report for report in reports if report.counts.unknown_ids]
    num_unknown = sum(report.counts.id_pixels[value] for report in concerned for value in report.counts.unknown_ids)
    facts = _Facts(
        info,
        frozenset(value for report in reports for value in report.counts.id_pixels),
        frozenset(value for report in concerned for value in report.counts.unknown_ids),
        tuple(report.label for report in reports),
        num_unknown / max(1, sum(report.num_pixels for report in concerned)),
        all(report.form is not None and report.form.is_lossy for report in concerned),
    )
    share = num_unknown / max(1, sum(report.num_pixels for report in reports))
    for kind, explain in _MISTAKES:
        if not facts.unknown and explain is not _train_ids_for_label_ids:
            continue
        if message := explain(facts):
            names = tuple(report.label for report in concerned)
            return [Finding(kind, True, message, names or facts.label_names, share if concerned else None)]
    return []


def findings_about_ignored_foreground(
    reports: Sequence[PairReport], info: DatasetInfo, *, is_whole: bool
) -> list[Finding]:
    """Labels of two classes that hold only 0 and 255, where 255 is ignored: only class 0 would be learned.

    Ignored borders around rare objects look the same in single labels, so all lists are needed together.

    Args:
        reports: of the pairs of all lists.
        info: the dataset.
        is_whole: whether these are all pairs; a sample may lack the other ids, so the finding is only a remark.
    """
    present = {value for report in reports for value in report.counts.id_pixels}
    if present != {0, 255} or info.num_classes != 2 or 255 not in info.ignored_ids:
        return []
    names = tuple(report.label for report in reports if 255 in report.counts.id_pixels)
    where = "" if is_whole else " in the labels looked at"
    doubt = "" if is_whole else "if that holds for all, it is "
    message = f"the only values{where} are 0 and 255, and 255 is ignored by {info.name}: {doubt}{_BLACK_AND_WHITE}"
    return [Finding("255 as foreground", is_whole, message, names)]


def _foreground_is_255(facts: _Facts) -> str | None:
    if facts.present != {0, 255} or 255 not in facts.unknown:
        return None
    return f"the only values are 0 and 255, and 255 is no class of {facts.info.name}: {_BLACK_AND_WHITE}"


def _grey_levels_of_colors(facts: _Facts) -> str | None:
    """Grey masks with the colours of the classes, where these are grey."""
    colors = (*facts.info.palette, *facts.info.ignored_colors)
    greys = {red for red, green, blue in colors if red == green == blue}
    if facts.info.label_format != "either" or not facts.present <= greys:
        return None
    return (
        f"id {facts.shown} found, {facts.expected}; these are the grey levels of its colours: if the masks show "
        'colours, add "label_format": "colors" to dataset.json'
    )


def _changed_by_compression(facts: _Facts) -> str | None:
    if not facts.all_lossy:
        return None
    return (
        f"id {facts.shown} found, {facts.expected}: JPEG changes ids: save masks as PNG, or set "
        '"snap": true in dataset.json'
    )


def _smoothed(facts: _Facts) -> str | None:
    known = facts.present - facts.unknown
    is_blend = known and all(min(known) < value < max(known) for value in facts.unknown)
    if not is_blend or len(facts.unknown) < _MIN_BLENDS or facts.unknown_share > _MAX_BLENDED_SHARE:
        return None
    return (
        f"{len(facts.unknown)} ids ({facts.shown}) lie between others on few pixels, {facts.expected}: masks were "
        'drawn or scaled with smoothing; save them without, or set "snap": true in dataset.json'
    )


def _train_ids_for_label_ids(facts: _Facts) -> str | None:
    if not has_cityscapes_ids(facts.info):
        return None
    values = facts.present - {255}
    looks_so = values and max(values) <= _MAX_TRAIN_ID and (255 in facts.unknown or len(values) >= _MIN_TRAIN_IDS)
    if not looks_so and not any("labelTrainIds" in name for name in facts.label_names):
        return None
    return (
        f"these are train ids (0 to 18, 255 ignored), but {facts.info.name} expects label ids (7 to 33): "
        "list the *_labelIds.png files, not *_labelTrainIds.png"
    )


def _label_ids_for_train_ids(facts: _Facts) -> str | None:
    if facts.info.label_ids != tuple(range(19)) or not facts.unknown <= set(range(19, 34)):
        return None
    return (
        f"id {facts.shown} found, {facts.expected}: these are the label ids of Cityscapes where train ids are "
        "expected; list the *_labelTrainIds.png files"
    )


def _counted_from_one_more(facts: _Facts) -> str | None:
    if facts.unknown != {last_known_id(facts.info) + 1} or facts.first in facts.present:
        return None
    return (
        f"id {facts.shown} found and {facts.first} never, {facts.expected}: "
        f"the labels count from {facts.first + 1}; subtract 1"
    )


def _counted_from_one_less(facts: _Facts) -> str | None:
    if facts.unknown != {facts.first - 1} or facts.last in facts.present:
        return None
    return (
        f"id {facts.shown} found and {facts.last} never, {facts.expected}: "
        f"the labels count from {facts.first - 1}; add 1"
    )


def _shifted_already(facts: _Facts) -> str | None:
    """For datasets like ADE20K, where id 0 is ignored and the classes begin with 1."""
    if facts.unknown != {255} or facts.info.ignored_ids != (facts.first - 1,) or facts.last in facts.present:
        return None
    return (
        f"255 found and {facts.last} never, {facts.expected}: the labels were shifted already "
        "(0 is the first class, 255 ignored); use the original files"
    )


def _foreign_ignore_value(facts: _Facts) -> str | None:
    if facts.unknown != {255}:
        return None
    return (
        f"255 found, {facts.expected}: the ignore value of other tools. "
        'Map it to an ignored id, or add it to "ignore" in dataset.json'
    )


def _too_many_classes(facts: _Facts) -> str | None:
    if min(facts.unknown) != last_known_id(facts.info) + 1:
        return None
    return (
        f"ids up to {max(facts.unknown - {255}, default=255)} found, {facts.expected}: the labels have more classes "
        "than the dataset; use the dataset that they are of, or add the classes to dataset.json"
    )


def _foreign_ids(facts: _Facts) -> str:
    add = "add the class to dataset.json, or " if facts.info.label_format == "either" else ""  # of an own dataset
    return f"id {facts.shown} found, {facts.expected}; {add}check that the list names the label files of this dataset"


_MISTAKES: tuple[tuple[str, Callable[[_Facts], str | None]], ...] = (
    ("grey levels of colours", _grey_levels_of_colors),
    ("255 as foreground", _foreground_is_255),
    ("unknown id", _changed_by_compression),
    ("wrong kind of ids", _train_ids_for_label_ids),
    ("wrong kind of ids", _label_ids_for_train_ids),
    ("off by one", _counted_from_one_more),
    ("off by one", _counted_from_one_less),
    ("off by one", _shifted_already),
    ("smoothed edges", _smoothed),
    ("255 is unknown", _foreign_ignore_value),
    ("wrong class count", _too_many_classes),
    ("unknown id", _foreign_ids),
)
