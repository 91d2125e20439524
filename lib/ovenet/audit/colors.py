"""Colours of label files that are no class: forgotten classes, smoothed edges, JPEG."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from ovenet.audit.reports import Finding, PairReport
from ovenet.data.info import Color, DatasetInfo
from ovenet.data.snapping import ROUNDED, is_blend
from ovenet.errors import first_of

_ADVICE = {
    "smoothed": "they lie between two classes' colours: masks were drawn or scaled with smoothing; save them without, "
    'or set "snap": true in dataset.json, which gives them the nearer class',
    "lossy": 'JPEG changes colours: save masks as PNG, or set "snap": true in dataset.json',
}
_MAX_NAMES = 12  # colours to name that may be classes
_FEW_NAMES = 3  # other colours to name, and where there are more
_MIN_BLENDS = 3  # colours between two others; one or two may be a forgotten class
_MAX_BLENDED_SHARE = 0.2  # of the pixels that may be edges
_MAX_TRIED = 4096  # colours; a mask with more is a photograph


def findings_about_colors(reports: Sequence[PairReport], info: DatasetInfo) -> Iterator[Finding]:
    """Colours of no class, in one finding for each probable cause."""
    groups: dict[str, list[PairReport]] = {"forgotten": [], "smoothed": [], "lossy": []}
    for report in reports:
        if report.counts.unknown_colors:
            is_lossy = report.form is not None and report.form.is_lossy
            cause = "lossy" if is_lossy else "smoothed" if _is_smoothed(report, info) else "forgotten"
            groups[cause].append(report)
    num_pixels = sum(report.num_pixels for report in reports)
    for cause, concerned in groups.items():
        if concerned:
            totals: Counter[Color] = Counter()
            for report in concerned:
                totals.update(report.counts.unknown_colors)
            colors, of_these = totals.most_common(), sum(report.num_pixels for report in concerned)
            num_named = _MAX_NAMES if cause == "forgotten" and len(colors) <= _MAX_NAMES else _FEW_NAMES
            advice = _ADVICE.get(cause) or _advice_to_paste(colors[:num_named])
            shown = first_of([f"{list(color)} {100 * n / of_these:.2g} %" for color, n in colors], num_named)
            message = f"{len(colors)} colours are no class of {info.name} ({shown} of these masks' pixels); {advice}"
            kind = "smoothed edges" if cause == "smoothed" else "unknown colour"
            labels = tuple(report.label for report in concerned)
            yield Finding(kind, True, message, labels, sum(totals.values()) / num_pixels)


def _advice_to_paste(colors: Sequence[tuple[Color, int]]) -> str:
    rows = ", ".join(f'{{"name": "…", "color": {list(color)}}}' for color, _ in colors)
    ignored = ", ".join(str(list(color)) for color, _ in colors)
    return f'if they are classes, add to dataset.json: {rows}; if not: "ignore": [{ignored}]'


def _is_smoothed(report: PairReport, info: DatasetInfo) -> bool:
    """Whether nearly all unknown colours of a mask lie between two of its known colours, on few pixels."""
    unknown = report.counts.unknown_colors
    num_unknown = sum(unknown.values())
    if not _MIN_BLENDS <= len(unknown) <= _MAX_TRIED or num_unknown > _MAX_BLENDED_SHARE * report.num_pixels:
        return False
    pure = np.array([*(info.palette[k] for k in report.counts.class_pixels), *info.ignored_colors]).reshape(-1, 3)
    ends = np.arange(len(pure) if len(pure) > 1 else 0)
    blended = is_blend(np.array(list(unknown), np.float32), pure, ends, ROUNDED).any(1)
    return np.array(list(unknown.values()))[blended].sum() >= 0.9 * num_unknown
