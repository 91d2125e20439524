"""Checks one image and its label: files, formats, sizes, and which ids the label holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from ovenet.data.files import first_bytes, header_size, last_bytes, open_image, opened, orientation_of
from ovenet.data.labels import LabelDecoder
from ovenet.data.masks import MaskForm
from ovenet.data.snapping import MANY_VALUES, MAX_SHARE
from ovenet.dataset_tools.audit.content import LabelCounts, LabelValues, count_label, read_values
from ovenet.dataset_tools.audit.forms import findings_about_form
from ovenet.dataset_tools.audit.reports import Finding, PairReport
from ovenet.dataset_tools.audit.turns import Pair, check_turns, remark_on_turn, size_as_read
from ovenet.errors import UserError

_END_BYTES = 16


@dataclass(frozen=True)
class _Image:
    """Size ``(H, W)`` as stored, and EXIF orientation of an image."""

    size: tuple[int, int]
    turn: int


def audit_pair(
    folder: Path,
    image_name: str,
    label_name: str | None,
    decoder: LabelDecoder,
    *,
    decode_image: bool = False,
    if_missing: str = "",
) -> PairReport:
    """Checks one image and its label; what is wrong with them is reported, never raised.

    Args:
        folder: of the dataset.
        image_name: relative to it.
        label_name: likewise; None for an image without.
        decoder: of the dataset's labels.
        decode_image: read the image's pixels too, not only its header and its end.
        if_missing: what to do about a file that does not exist; "" for the usual.
    """
    findings: list[Finding] = []
    image, upright = None, decoder.info.upright
    try:
        image, remarks = _check_image(folder / image_name, decode=decode_image)
        findings += [Finding(kind, False, message, (image_name,)) for kind, message in remarks]
    except UserError as error:
        message = _message(error, folder / image_name, if_missing)
        findings.append(Finding("unreadable file", True, message, (image_name,)))
    report = PairReport(label_name or "", image and size_as_read(image.size, image.turn, upright=upright))
    if label_name is None:
        findings += remark_on_turn(image_name, image.size, image.turn, upright=upright) if image else ()
        return replace(report, findings=tuple(findings))
    values = None
    try:
        values = read_values(folder / label_name, decoder)
        form = values.mask.form
        if image is not None:
            pair = Pair(image_name, label_name, image.size, form.size, image.turn, form.orientation)
            findings += check_turns(pair, upright=upright)
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
    """Of a label that is not read: by its file, or by how it is stored."""
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


def _check_image(path: Path, *, decode: bool) -> tuple[_Image, list[tuple[str, str]]]:
    """How an image is stored, and remarks as ``(kind, message)``.

    Raises:
        UserError: the image is missing, unreadable or cut off.
    """
    with opened(path, "image") as image:
        remarks = list(_remarks_on_format(image))
        stored = _Image(header_size(image), orientation_of(image))
        is_whole = _ends_properly(image)
    if decode or not is_whole:
        open_image(path, "image")
    return stored, remarks


def _remarks_on_format(image: Image.Image) -> Iterator[tuple[str, str]]:
    if image.mode in ("L", "LA", "1") or image.mode.startswith("I"):
        yield "grey image", "its one channel is repeated three times; nothing to do if that is meant"
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        yield "image with alpha", "transparency is dropped and hidden colours appear; flatten the image if they matter"
    if image.mode in ("P", "PA"):
        yield "palette image", "its colours are looked up in its palette; if it is a label file, correct the list"
    if image.mode == "CMYK":
        yield "CMYK image", "it is converted to RGB; convert it yourself where colours matter"
    if image.mode.startswith("I") or _png_bit_depth(image) == 16:
        yield (
            "16-bit image",
            "the upper 8 of its 16 bits are used; if it holds fewer than 16 (10 or 12 bit sensors) it comes out dark: "
            "rescale it to 8 bits",
        )


def _png_bit_depth(image: Image.Image) -> int | None:
    """Bits per channel of a PNG, whose 25th byte says so; None for other files."""
    return first_bytes(image, 25)[24] if image.format == "PNG" else None


def _ends_properly(image: Image.Image) -> bool:
    """Whether a PNG or JPEG has its end mark; a file that was cut off has none."""
    mark = {"PNG": b"IEND", "JPEG": b"\xff\xd9", "MPO": b"\xff\xd9"}.get(image.format or "")
    return mark is not None and mark in last_bytes(image, _END_BYTES)


def _message(error: UserError, path: Path, if_missing: str) -> str:
    message = str(error).removeprefix(f"{path}: ")
    return f"{message.split(';')[0]}; {if_missing}" if if_missing and not path.exists() else message


def _is_photograph(counts: LabelCounts, form: MaskForm) -> bool:
    """Whether a label has very many values of no class, and not just at edges; JPEG changes them everywhere."""
    num_pixels = sum(counts.unknown_colors.values()) + sum(counts.id_pixels[value] for value in counts.unknown_ids)
    is_much = num_pixels > MAX_SHARE * form.size[0] * form.size[1]
    return is_much and not form.is_lossy and len(counts.unknown_ids or counts.unknown_colors) > MANY_VALUES


def _swapped(label_name: str) -> Finding:
    message = "the label looks like a photograph and the image like a label; swap the two columns of the list"
    return Finding("image and label swapped", True, message, (label_name,))


def _is_swapped(folder: Path, image_name: str, label_name: str, decoder: LabelDecoder) -> bool:
    """Whether the image file would do as a label, and the label file has far more values than labels have."""
    try:
        as_label = decoder.read(folder / image_name)
        as_image = open_image(folder / label_name, "label")
    except UserError:
        return False
    colors = as_image.convert("RGB").getcolors(maxcolors=MANY_VALUES)
    return as_label.size > 0 and colors is None
