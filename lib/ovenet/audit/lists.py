"""Checks a list of images and labels for mistakes that spoil training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from ovenet.audit.colors import findings_about_colors
from ovenet.audit.forms import findings_about_forms
from ovenet.audit.ids import findings_about_ids, findings_about_ignored_foreground
from ovenet.audit.pairs import audit_pair
from ovenet.audit.repeats import (
    LOOKED_UP_AT_ONCE,
    Pairs,
    copied_images,
    findings_about_repeats,
    shared_images,
)
from ovenet.audit.reports import Finding, ListReport, PairReport
from ovenet.data.info import DatasetInfo
from ovenet.data.labels import LabelDecoder
from ovenet.data.masks import MaskForm
from ovenet.errors import first_of

T = TypeVar("T")
R = TypeVar("R")

_MAX_NAMES = 12
_MAX_MESSAGES = 8  # messages of a kind, before the others are merged
_AND_OTHERS = "and others of this kind, with numbers of their own"
_AHEAD = 64  # pairs that are read ahead of the reported one


def audit_list(
    name: str,
    folder: Path,
    pairs: Pairs,
    info: DatasetInfo,
    *,
    num_threads: int,
    decode_images: bool = False,
    if_missing: str = "",
    on_pair: Callable[[], object] = lambda: None,
) -> ListReport:
    """Checks all pairs of a list.

    Args:
        name: of the list, for the report.
        folder: of the dataset.
        pairs: images and labels, relative to the folder.
        info: the dataset.
        num_threads: number of files to read at the same time.
        decode_images: decode the images' pixels too, in addition to checking their headers and ends.
        if_missing: the remedy for files that do not exist; "" for the default.
        on_pair: called after each pair.
    """
    decoder = LabelDecoder(info, ignore_label=255)
    with ThreadPoolExecutor(num_threads) as pool:

        def audit(pair: tuple[str, str | None]) -> PairReport:
            return audit_pair(folder, *pair, decoder, decode_image=decode_images, if_missing=if_missing)

        reports: list[PairReport] = []
        forms: dict[MaskForm | None, MaskForm | None] = {}
        for report in _map_lazily(pool, audit, pairs):
            reports.append(replace(report, form=forms.setdefault(report.form, report.form)))  # equal forms are shared
            on_pair()
    class_pixels, class_images = np.zeros((2, info.num_classes), np.int64)
    id_pixels: Counter[int] = Counter()
    for report in reports:
        id_pixels.update(report.counts.id_pixels)
        for k, num_pixels in report.counts.class_pixels.items():
            class_pixels[k] += num_pixels
            class_images[k] += 1
    num_pixels = sum(report.num_pixels for report in reports)
    findings = [
        *findings_about_forms(reports, info),
        *findings_about_ids(reports, info),
        *findings_about_colors(reports, info),
        *_about_pairs(reports, num_pixels),
        *_about_list(pairs, reports, class_images, info),
    ]
    sizes = Counter(report.size for report in reports if report.size is not None)
    return ListReport(
        name=name,
        num_pairs=len(pairs),
        sizes=tuple(sizes.most_common()),
        class_pixels=class_pixels,
        class_images=class_images,
        id_pixels=id_pixels,
        num_pixels=num_pixels,
        findings=_merged(findings),
        pairs=tuple(reports),
    )


def _map_lazily(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """``pool.map``, but with a bounded number of calls ahead, so that an interruption ends soon."""
    remaining = iter(items)
    ahead = [pool.submit(function, item) for item in islice(remaining, _AHEAD)]
    while ahead:
        yield ahead.pop(0).result()
        ahead.extend(pool.submit(function, item) for item in islice(remaining, 1))


def _about_list(
    pairs: Pairs, reports: Sequence[PairReport], class_images: np.ndarray, info: DatasetInfo
) -> Iterator[Finding]:
    """Lines without a label, repeated lines, absent classes, labels without a class."""
    unlabelled = tuple(image for image, label in pairs if label is None)
    if unlabelled:
        message = "training and validation need `image label` on every line of their lists; add the labels"
        yield Finding("line without a label", True, message, unlabelled)
    yield from findings_about_repeats(pairs)
    absent = [name for name, images in zip(info.class_names, class_images, strict=True) if not images]
    if absent and any(label for _, label in pairs) and not any(map(_may_hold_more, reports)):
        names = first_of(absent, _MAX_NAMES)
        message = f"no labelled pixel of {names}: not learned from this list, and not scored on it"
        yield Finding("absent class", False, message)
    empty = tuple(report.label for report in reports if _is_ignored(report))
    if empty:
        yield Finding("label without a class", False, "every pixel is ignored; nothing is learned from it", empty)


def _may_hold_more(report: PairReport) -> bool:
    """Whether a label may have classes that were not counted: it was not read, or has unknown values."""
    counts = report.counts
    is_read = counts.id_pixels or counts.class_pixels or counts.unknown_colors
    return bool(counts.unknown_ids) or (not is_read and any(f.is_error for f in report.findings))


def _is_ignored(report: PairReport) -> bool:
    """Whether a readable label has no pixel of a class."""
    counts = report.counts
    holds_something = counts.class_pixels or counts.unknown_ids or counts.unknown_colors
    return report.num_pixels > 0 and not holds_something and not any(f.is_error for f in report.findings)


def _about_pairs(reports: Sequence[PairReport], num_pixels: int) -> Iterator[Finding]:
    """The findings of each pair, with shares of all pixels."""
    for report in reports:
        for finding in report.findings:
            share = None if finding.share is None else finding.share * report.num_pixels / num_pixels
            yield replace(finding, share=share)


def _merged(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """One finding for each kind and message, errors first; from `_MAX_MESSAGES` of a kind on, the others are merged."""
    kinds: dict[tuple[bool, str], dict[str, list[Finding]]] = {}
    for finding in findings:
        by_message = kinds.setdefault((not finding.is_error, finding.kind), {})
        is_told = finding.message in by_message or len(by_message) < _MAX_MESSAGES
        by_message.setdefault(finding.message if is_told else _AND_OTHERS, []).append(finding)
    merged = []
    for _, by_message in sorted(kinds.items(), key=lambda item: item[0][0]):
        for message, group in by_message.items():
            shares = [finding.share for finding in group if finding.share is not None]
            paths = tuple(path for finding in group for path in finding.paths)
            merged.append(replace(group[0], message=message, paths=paths, share=sum(shares) if shares else None))
    return tuple(merged)


def findings_about_both(
    folder: Path, lists: Sequence[Pairs], reports: Sequence[ListReport], info: DatasetInfo
) -> list[Finding]:
    """Findings about two lists together.

    Args:
        folder: of the dataset.
        lists: pairs of training and validation, all of them.
        reports: of the same lists.
        info: the dataset.
    """
    is_whole = sum(report.num_pairs for report in reports) == sum(map(len, lists))
    findings = findings_between(reports, info, is_whole=is_whole)
    copies = copied_images(folder, *lists)
    where = f" under different names (like {' and '.join(copies[0])})" if copies else ""
    for names, how in ((shared_images(*lists), ""), (list(dict.fromkeys(other for _, other in copies)), where)):
        if names:
            message = f"{len(names)} images are in both lists{how}: scores on them say little about new images"
            findings.append(Finding("shared image", False, message, tuple(names)))
    return findings


def findings_between(reports: Sequence[ListReport], info: DatasetInfo, *, is_whole: bool) -> list[Finding]:
    """Label files of different lists that disagree, unless those of one list already do.

    Args:
        reports: of the lists.
        info: the dataset.
        is_whole: whether all of their pairs were looked at.
    """
    said = {finding.kind for report in reports for finding in report.findings}
    together = [pair for report in reports for pair in report.pairs]
    about_forms = [finding for finding in findings_about_forms(together, info) if finding.kind not in said]
    return about_forms + findings_about_ignored_foreground(together, info, is_whole=is_whole)


def missing_files(folder: Path, pairs: Pairs) -> list[str]:
    """Listed files that do not exist; looked up in parallel, since network drives have a high latency."""
    names = [name for pair in pairs for name in pair if name is not None]
    with ThreadPoolExecutor(LOOKED_UP_AT_ONCE) as pool:
        there = pool.map(lambda name: (folder / name).exists(), names, chunksize=256)
        return [name for name, exists in zip(names, there, strict=True) if not exists]


def suggested_weights(class_pixels: np.ndarray) -> np.ndarray:
    """Loss weights that grow as classes get rarer: ``1 / ln(1.02 + p)`` (ENet, Paszke et al., 2016), with mean 1.

    Args:
        class_pixels: ``(K,)`` pixels of each class.

    Returns:
        ``(K,)`` float64; 1 for classes without a pixel.
    """
    present = class_pixels > 0
    weights = np.ones(len(class_pixels))
    if present.any():
        raw = 1 / np.log(1.02 + class_pixels[present] / class_pixels.sum())
        weights[present] = raw / raw.mean()
    return weights
