"""Checks a list of images and labels for what makes training wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from ovenet.data.info import DatasetInfo
from ovenet.data.labels import JPEG, LabelDecoder
from ovenet.dataset_tools.audit.ids import findings_about_ids
from ovenet.dataset_tools.audit.pairs import audit_pair
from ovenet.dataset_tools.audit.reports import Finding, ListReport, PairReport

_ASKED_AT_ONCE = 16
_MAX_NAMES = 12
_AHEAD = 64  # pairs that are read ahead of the one that is reported


def audit_list(
    name: str,
    folder: Path,
    pairs: Sequence[tuple[str, str | None]],
    info: DatasetInfo,
    *,
    num_threads: int,
    decode_images: bool = False,
    on_pair: Callable[[], object] = lambda: None,
) -> ListReport:
    """Checks all pairs of a list.

    Args:
        name: of the list, for the report.
        folder: of the dataset.
        pairs: images and labels, relative to the folder.
        info: the dataset.
        num_threads: files that are read at the same time.
        decode_images: read the images' pixels too, not only their headers and ends.
        on_pair: called after each pair.
    """
    decoder = LabelDecoder(info, ignore_label=255)
    with ThreadPoolExecutor(num_threads) as pool:

        def audit(pair: tuple[str, str | None]) -> PairReport:
            return audit_pair(folder, *pair, decoder, decode_image=decode_images)

        reports = []
        for report in _map_lazily(pool, audit, pairs):
            reports.append(report)
            on_pair()
    class_pixels, class_images = np.zeros((2, info.num_classes), np.int64)
    id_pixels: Counter[int] = Counter()
    for report in reports:
        id_pixels.update(report.id_pixels)
        for k, num_pixels in report.class_pixels.items():
            class_pixels[k] += num_pixels
            class_images[k] += 1
    findings = [
        *findings_about_ids(reports, info),
        *_about_colors(reports, info),
        *(finding for report in reports for finding in report.findings),
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
        num_pixels=sum(report.num_pixels for report in reports),
        findings=_merged(findings),
    )


def _map_lazily(pool: ThreadPoolExecutor, function: Callable, items: Sequence) -> Iterator:
    """``pool.map``, but with a bounded number of calls ahead, so that an interruption ends soon."""
    remaining, ahead = iter(items), []
    for item in islice(remaining, _AHEAD):
        ahead.append(pool.submit(function, item))
    while ahead:
        yield ahead.pop(0).result()
        ahead.extend(pool.submit(function, item) for item in islice(remaining, 1))


def _about_colors(reports: Sequence[PairReport], info: DatasetInfo) -> Iterator[Finding]:
    """All colours that are no class, in one finding for PNGs and one for JPEGs, which have colours of their own."""
    for is_jpeg in (False, True):
        concerned = [r for r in reports if r.unknown_colors and (Path(r.label).suffix.lower() in JPEG) == is_jpeg]
        if not concerned:
            continue
        colors: Counter[tuple[int, int, int]] = Counter()
        for report in concerned:
            colors.update(report.unknown_colors)
        num_pixels = sum(report.num_pixels for report in concerned)
        most = colors.most_common(_MAX_NAMES)
        shown = ", ".join(f"{list(color)} {100 * n / num_pixels:.2g} %" for color, n in most)
        more = f" and {len(colors) - len(most)} more" if len(colors) > len(most) else ""
        if is_jpeg:
            advice = "JPEG changes colours: save masks as PNG"
        else:
            rows = ", ".join(f'{{"name": "…", "color": {list(color)}}}' for color, _ in most)
            ignored = ", ".join(str(list(color)) for color, _ in most)
            advice = (
                f'if they are classes, add to dataset.json: {rows}; if not: "ignore": [{ignored}]; if masks were '
                "smoothed, save them without"
            )
        message = f"{len(colors)} colours are no class of {info.name} ({shown}{more} of these masks' pixels); {advice}"
        yield Finding("unknown colour", True, message, tuple(report.label for report in concerned))


def _about_list(
    pairs: Sequence[tuple[str, str | None]],
    reports: Sequence[PairReport],
    class_images: np.ndarray,
    info: DatasetInfo,
) -> Iterator[Finding]:
    """Lines without a label, repeated lines, absent classes, labels without content."""
    unlabelled = tuple(image for image, label in pairs if label is None)
    if unlabelled:
        message = "training and validation need `image label` on every line of their lists; add the labels"
        yield Finding("line without a label", True, message, unlabelled)
    repeated = [name for name, times in Counter(image for image, _ in pairs).items() if times > 1]
    if repeated:
        yield Finding("repeated image", False, "listed more than once, so it counts more than once", tuple(repeated))
    absent = [name for name, images in zip(info.class_names, class_images, strict=True) if not images]
    if absent and any(label for _, label in pairs):
        names = ", ".join(absent[:_MAX_NAMES])
        if len(absent) > _MAX_NAMES:
            names += f" and {len(absent) - _MAX_NAMES} more"
        message = f"no labelled pixel of {names}: not learned from this list, and not scored on it"
        yield Finding("absent class", False, message)
    empty = tuple(
        r.label
        for r in reports
        if r.num_pixels and not (r.class_pixels or r.unknown_ids or r.unknown_colors or r.findings)
    )
    if empty:
        yield Finding("label without a class", False, "every pixel is ignored; nothing is learned from it", empty)


def _merged(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """One finding for each kind and message, errors first."""
    paths: dict[tuple[bool, str, str], list[str]] = {}
    for finding in findings:
        paths.setdefault((not finding.is_error, finding.kind, finding.message), []).extend(finding.paths)
    ordered = sorted(paths.items(), key=lambda item: item[0][0])
    return tuple(Finding(kind, not mild, message, tuple(names)) for (mild, kind, message), names in ordered)


def missing_files(folder: Path, pairs: Sequence[tuple[str, str | None]]) -> list[str]:
    """Listed files that do not exist; asked for side by side, since on network drives each question takes long."""
    names = [name for pair in pairs for name in pair if name is not None]
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        there = pool.map(lambda name: (folder / name).exists(), names, chunksize=256)
        return [name for name, exists in zip(names, there, strict=True) if not exists]


def shared_images(first: Sequence[tuple[str, str | None]], second: Sequence[tuple[str, str | None]]) -> list[str]:
    """Images that two lists have in common."""
    return sorted({image for image, _ in first} & {image for image, _ in second})


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
