"""How label files are stored: problems of single files, and differences within a list."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from ovenet.audit.content import LabelCounts
from ovenet.audit.reports import Finding, PairReport
from ovenet.data.info import Color, DatasetInfo
from ovenet.data.masks import MaskForm


def findings_about_form(form: MaskForm, counts: LabelCounts, label: str, *, as_colors: bool) -> Iterator[Finding]:
    """Remarks about the storage of one label file.

    Args:
        form: of the file.
        counts: of its values.
        label: its path.
        as_colors: whether it is read by its colours rather than its ids.
    """
    what, num_pixels = "colours" if as_colors else "ids", max(1, form.size[0] * form.size[1])
    if form.is_lossy:
        message = f"{form.file_format} changes {what} along edges: save masks as PNG, from the originals"
        yield Finding("lossy mask", False, message, (label,), 1.0)
    if counts.num_transparent:
        message = f"transparent pixels count as the {what} that they hide: save masks without where that is not meant"
        yield Finding("transparent mask", False, message, (label,), counts.num_transparent / num_pixels)
    if counts.is_smoothed:
        message = (
            "most edges run through ids that lie between those of both sides: masks were scaled with smoothing; scale "
            "them to the nearest pixel, from the originals (nothing to do where ids are the steps of a scale)"
        )
        yield Finding("smoothed edges", False, message, (label,))
    if counts.num_snapped:
        message = f'{what} that are no class became the nearest, as "snap" in dataset.json says'
        yield Finding("snapped pixels", False, message, (label,), counts.num_snapped / num_pixels)
    if {"icc", "gamma"} & set(form.color_chunks):
        message = (
            f"{what} are read as stored, and viewers that heed the file's gamma or ICC profile show other colours: "
            "save masks without"
        )
        yield Finding("mask with a colour profile", False, message, (label,), 1.0)
    if form.is_interlaced:
        message = "read rightly, but slower to read than others: save masks without interlacing"
        yield Finding("interlaced mask", False, message, (label,), 1.0)
    if form.num_pages > 1:
        message = f"the first of {form.num_pages} pages is read: save it alone, or merge the pages where all are meant"
        yield Finding("mask of several pages", False, message, (label,), 1.0)


def findings_about_forms(reports: Sequence[PairReport], info: DatasetInfo) -> list[Finding]:
    """Label files that are read as ids and disagree in their form."""
    return _about_palettes(reports, info) + _about_bits(reports, info)


def _about_palettes(reports: Sequence[PairReport], info: DatasetInfo) -> list[Finding]:
    """Indices with different colours in different files, where indices are read as ids."""
    files: dict[int, dict[Color, list[str]]] = defaultdict(lambda: defaultdict(list))
    for report in reports:
        palette = report.palette or {}
        if any(color != (index,) * 3 for index, color in palette.items()):  # more than the indices as grey levels
            for index, color in palette.items():
                files[index][color].append(report.label)
    for index, by_color in sorted(files.items()):
        if len(by_color) > 1:
            most, *others = sorted(by_color, key=lambda color: -len(by_color[color]))
            message = (
                f"index {index} is the colour {list(most)} in most files and {list(others[0])} in others, so it means "
                'other things: "label_format": "colors" in dataset.json reads the colours; or save all masks with one '
                "palette"
            )
            break
    else:
        return [] if info.label_format == "ids" else _about_colors_of_two_indices(reports)
    deviating = {
        label
        for by_color in files.values()
        for color in sorted(by_color, key=lambda color: -len(by_color[color]))[1:]
        for label in by_color[color]
    }
    ordered = tuple(report.label for report in reports if report.label in deviating)
    return [Finding("palettes differ", True, message, ordered)]


def _about_colors_of_two_indices(reports: Sequence[PairReport]) -> list[Finding]:
    """Palettes with the same colours in another order, where no index is in use in two files."""
    first: dict[Color, tuple[int, PairReport]] = {}
    for report in reports:
        for index, color in (report.palette or {}).items():
            other, earlier = first.setdefault(color, (index, report))
            if other != index and earlier.palette_number != report.palette_number:
                message = (
                    f"the colour {list(color)} is index {other} in {earlier.label} and index {index} in "
                    f'{report.label}: "label_format": "colors" in dataset.json reads the colours, "ids" the indices'
                )
                return [Finding("palettes differ", True, message, (earlier.label, report.label))]
    return []


def _about_bits(reports: Sequence[PairReport], info: DatasetInfo) -> list[Finding]:
    """Label files of fewer than 8 bits, and grey palettes; their values may stand for the levels in viewers.

    Tools that make files small store 0 and 255 in one bit, as 0 and 1, and others read them again as 0 and 255.
    """
    with_ids = [(report, report.form.bits) for report in reports if report.form and report.counts.id_pixels]
    grey = [(report, bits) for report, bits in with_ids if report.palette is None]
    shallow = [report for report, bits in grey if bits < 8]
    depths = {min(8, bits) for _, bits in grey}
    in_8_bits = frozenset(value for report, bits in grey if bits >= 8 for value in report.counts.id_pixels)
    in_use = in_8_bits.union(info.known_ids, info.ignored_ids)
    unsure: dict[tuple[str, int, int], list[str]] = defaultdict(list)
    for report, bits in with_ids:
        for value, shown in _shown_levels(report, bits).items():
            if report.palette is not None:
                stored, is_unsure = "a palette", shown in in_8_bits
            else:
                stored = f"{bits}-bit grey"
                is_unsure = shown in in_use and (value in report.counts.unknown_ids or len(depths) > 1)
            if is_unsure:
                unsure[stored, value, shown].append(report.label)
    if unsure:
        stored, value, shown = next(iter(unsure))
        labels = dict.fromkeys(label for named in unsure.values() for label in named)
        message = (
            f"{stored}, whose {value} viewers show as {shown}, and {shown} of 8 bits is in use too: whether they are "
            "one class cannot be told; save all masks as 8-bit grey"
        )
        return [Finding("bits differ", True, message, tuple(labels))]
    if not shallow or len(depths) == 1:
        return []
    found = ", ".join(map(str, sorted(depths)))
    message = f"grey masks of {found} bits; the ids of all are read as stored, and none is in doubt"
    return [Finding("bits differ", False, message, tuple(report.label for report in shallow))]


def _shown_levels(report: PairReport, bits: int) -> dict[int, int]:
    """The grey levels that viewers show for ids, where they differ from the ids."""
    if report.palette is not None:
        levels = {index: color[0] for index, color in report.palette.items() if len(set(color)) == 1}
    elif bits < 8:
        levels = {value: value * 255 // (2**bits - 1) for value in report.counts.id_pixels}
    else:
        return {}
    return {value: level for value, level in levels.items() if level != value}
