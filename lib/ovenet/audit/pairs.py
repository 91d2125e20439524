"""Checks one image and its label: files, formats, sizes, and which ids the label holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from PIL import ImageFile

from ovenet.audit.content import LabelCounts, LabelValues, count_label, read_values
from ovenet.audit.forms import findings_about_form
from ovenet.audit.reports import Finding, PairReport
from ovenet.audit.turns import Stored, check_turns, remark_on_turn
from ovenet.data.files import bytes_of, header_size, opened, orientation_of
from ovenet.data.labels import LabelDecoder
from ovenet.data.masks import MaskForm
from ovenet.data.snapping import MANY_VALUES, MAX_SHARE
from ovenet.errors import UserError

_END_BYTES = 16


def audit_pair(
    folder: Path,
    image_name: str,
    label_name: str | None,
    decoder: LabelDecoder,
    *,
    decode_image: bool = False,
    if_missing: str = "",
) -> PairReport:
    """Checks one image and its label; errors are reported, never raised.

    Args:
        folder: of the dataset.
        image_name: relative to `folder`.
        label_name: relative to `folder`; None for an image without a label.
        decoder: of the dataset's labels.
        decode_image: decode the image's pixels too, in addition to checking its header and its end.
        if_missing: the remedy for a file that does not exist; "" for the default.
    """
    findings: list[Finding] = []
    image, upright = None, decoder.info.upright
    try:
        image, remarks = _check_image(folder, image_name, decode=decode_image)
        findings += [Finding(kind, False, message, (image_name,)) for kind, message in remarks]
    except UserError as error:
        message = _message(error, folder / image_name, if_missing)
        findings.append(Finding("unreadable file", True, message, (image_name,)))
    report = PairReport(label_name or "", image.size_as_read(upright=upright) if image else None)
    if label_name is None:
        findings += remark_on_turn(image, upright=upright) if image else ()
        return replace(report, findings=tuple(findings))
    values = None
    try:
        values = read_values(folder / label_name, decoder)
        form = values.mask.form
        if image is not None:
            findings += check_turns(image, Stored(label_name, form.size, form.orientation), upright=upright)
        report = replace(report, form=replace(form, palette=None), num_pixels=form.size[0] * form.size[1])
        counts = count_label(values, folder / label_name, decoder)
    except UserError as error:
        message = _message(error, folder / label_name, if_missing)
        is_swapped = _is_swapped(folder, image_name, label_name, decoder)
        finding = _swapped(label_name) if is_swapped else Finding(_kind(values, decoder), True, message, (label_name,))
        return replace(report, findings=(*findings, finding))
    if (counts.unknown_ids or counts.unknown_colors) and _is_swapped(folder, image_name, label_name, decoder):
        counts = LabelCounts(class_pixels=counts.class_pixels)
        return replace(report, findings=(*findings, _swapped(label_name)), counts=counts)
    if _is_photograph(counts, form):
        message = (
            f"looks like a photograph: {len(counts.unknown_ids or counts.unknown_colors)} ids or colours are no class; "
            "list the mask, or correct the folders where they were exchanged"
        )
        finding = Finding("photograph as label", True, message, (label_name,), 1.0)
        return replace(report, findings=(*findings, finding), counts=LabelCounts(class_pixels=counts.class_pixels))
    findings += findings_about_form(form, counts, label_name, as_colors=decoder.holds_colors(form))
    used = None if form.palette is None else {i: form.palette[i] for i in counts.id_pixels if i < len(form.palette)}
    return replace(report, counts=counts, findings=tuple(findings), palette=used, palette_number=hash(form.palette))


def _kind(values: LabelValues | None, decoder: LabelDecoder) -> str:
    """The kind of finding about a label that cannot be read."""
    if values is None:
        return "unreadable file"
    mask = values.mask
    if mask.samples.ndim == 3 and not decoder.holds_colors(mask.form):
        return "RGB mask"
    if mask.form.is_lossy:
        return "lossy mask"
    if mask.alpha is not None:
        return "transparent mask"
    return "palette contradicts ids" if mask.form.palette is not None else "unreadable file"


def _check_image(folder: Path, name: str, *, decode: bool) -> tuple[Stored, list[tuple[str, str]]]:
    """How an image is stored, and remarks as ``(kind, message)``.

    Raises:
        UserError: the image is missing, unreadable or truncated.
    """
    with opened(folder / name, "image") as image:
        remarks = list(_remarks_on_format(image))
        stored = Stored(name, header_size(image), orientation_of(image))
        if decode or not _ends_properly(image):
            image.load()
    return stored, remarks


def _remarks_on_format(image: ImageFile.ImageFile) -> Iterator[tuple[str, str]]:
    if image.mode in ("L", "LA", "1") or image.mode.startswith("I"):
        yield "grey image", "its one channel is repeated three times; nothing to do if that is meant"
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        yield "image with alpha", "transparency is dropped and hidden colours appear; flatten the image if they matter"
    if image.mode in ("P", "PA"):
        yield "palette image", "its colours are looked up in its palette; if it is a label file, correct the list"
    if image.mode == "CMYK":
        yield "CMYK image", "it is converted to RGB; convert it yourself where colours matter"
    if image.mode.startswith("I") or (image.format == "PNG" and bytes_of(image, 25)[24] == 16):
        yield (
            "16-bit image",
            "the upper 8 of its 16 bits are used; if it holds fewer than 16 (10 or 12 bit sensors) it comes out dark: "
            "rescale it to 8 bits",
        )


def _ends_properly(image: ImageFile.ImageFile) -> bool:
    """Whether a PNG or JPEG has its end mark; a truncated file has none."""
    mark = {"PNG": b"IEND", "JPEG": b"\xff\xd9", "MPO": b"\xff\xd9"}.get(image.format or "")
    return mark is not None and mark in bytes_of(image, -_END_BYTES)


def _message(error: UserError, path: Path, if_missing: str) -> str:
    message = str(error).removeprefix(f"{path}: ")
    return f"{message.split(';')[0]}; {if_missing}" if if_missing and not path.exists() else message


def _is_photograph(counts: LabelCounts, form: MaskForm) -> bool:
    """Whether a label has very many values of no class, not only at edges; JPEG changes values everywhere."""
    num_pixels = sum(counts.unknown_colors.values()) + sum(counts.id_pixels[value] for value in counts.unknown_ids)
    is_much = num_pixels > MAX_SHARE * form.size[0] * form.size[1]
    return is_much and not form.is_lossy and len(counts.unknown_ids or counts.unknown_colors) > MANY_VALUES


def _swapped(label_name: str) -> Finding:
    message = "the label looks like a photograph and the image like a label; swap the two columns of the list"
    return Finding("image and label swapped", True, message, (label_name,))


def _is_swapped(folder: Path, image_name: str, label_name: str, decoder: LabelDecoder) -> bool:
    """Whether the image file is a valid label, and the label file has far more values than labels have."""
    try:
        as_label = decoder.read(folder / image_name)
        with opened(folder / label_name, "label") as as_image:
            as_image.load()
            colors = as_image.convert("RGB").getcolors(maxcolors=MANY_VALUES)
    except UserError:
        return False
    return as_label.size > 0 and colors is None
