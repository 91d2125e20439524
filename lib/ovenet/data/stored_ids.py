"""Which ids the label files of a list hold, by the pattern of the layout that they match."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import PurePosixPath

from ovenet.data.info import DatasetInfo
from ovenet.errors import UserError

TRAIN_IDS = "_labelTrainIds"  # name ending of the files that converters of Cityscapes and COCO-Stuff put beside labels


CORRECTED = "_corrected"  # end of the name of a folder with corrected label files, which hold what the original ones do


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A layout's pattern as a regular expression with a group for each wildcard."""
    expression = re.escape(pattern).replace(r"\*\*", "(.+)").replace(r"\*", "([^/]+)")
    return re.compile(expression.replace(r"\{condition\}", "[^/]+") + r"\.[^./]+", re.DOTALL)


def with_stored_ids(info: DatasetInfo, labels: Iterable[str]) -> DatasetInfo:
    """The same dataset, with the ids that the given label files hold by their layout.

    Args:
        info: the dataset.
        labels: paths relative to its folder.

    Raises:
        UserError: two of them hold ids of different meaning, or one is named as train ids and matches no layout.
    """
    coded = [
        (one.labels, (one.stored_ids, one.stored_ignored))
        for layouts in info.layouts
        for one in layouts.values()
        if one.stored_ids and one.labels
    ]
    matchers = [(compile_pattern(pattern), meaning) for pattern, meaning in coded]
    train_ids = next((pattern for pattern, _ in coded if pattern.endswith(TRAIN_IDS)), None)
    first: dict[tuple[tuple[tuple[int, int], ...], tuple[int, ...]], str] = {}
    for label in map(_original, labels) if coded else ():
        meaning = next((meaning for matcher, meaning in matchers if matcher.fullmatch(label)), ((), ()))
        if meaning == ((), ()) and train_ids and PurePosixPath(label).stem.endswith(TRAIN_IDS):
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


def _original(label: str) -> str:
    """The name of the label file that a corrected one stands for."""
    first, slash, rest = label.partition("/")
    return f"{first.removesuffix(CORRECTED)}{slash}{rest}"
