"""Corrected label files, in the form of the original ones: what was not changed keeps its value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ovenet.data.info import Color
from ovenet.data.labels import LabelDecoder
from ovenet.data.masks import Mask, MaskForm, read_mask
from ovenet.errors import UserError
from ovenet.utils.writing import write_file

_SAMPLE_TYPES = {"1": np.bool_, "L": np.uint8, "P": np.uint8, "I": np.int32, "F": np.float32}  # by Pillow's mode
_PASSES = 3  # a corrected pixel may change what the smoothed pixels beside it are read as


class LabelCorrector:
    """Writes label files with other classes in some pixels.

    Args:
        decoder: reads the label files of the dataset.
    """

    def __init__(self, decoder: LabelDecoder):
        self._decoder, self._info = decoder, decoder.info
        ignored = self._info.ignored_ids
        self._ids = dict(enumerate(self._info.label_ids))
        self._colors = dict(enumerate(self._info.palette))
        if ignored:
            self._ids[decoder.ignore_label] = 255 if 255 in ignored else ignored[0]
        if self._info.ignored_colors:
            self._colors[decoder.ignore_label] = self._info.ignored_colors[0]

    def can_ignore(self, path: Path) -> bool:
        """Whether a label file of this form has a value for pixels without a label.

        Raises:
            UserError: see `read_mask`.
        """
        values = self._colors if self._decoder.holds_colors(read_mask(path).form) else self._ids
        return self._decoder.ignore_label in values

    def write(self, original: Path, train_ids: np.ndarray, path: Path) -> None:
        """Writes a corrected label file atomically, after it was read back as meant.

        Args:
            original: the label file. Pixels whose class is the same keep their value, one of several ids of a class
                too.
            train_ids: ``(H, W)`` classes, and the ignore label.
            path: of the corrected file, in the format of the original one; its folder is created.

        Raises:
            UserError: the original cannot be read, its format is lossy or cannot be written, or it has no value for a
                class.
            OSError: the file cannot be written.
        """
        mask = read_mask(original)
        if mask.form.is_lossy:
            raise UserError(
                f"{original}: the label is stored as {mask.form.file_format}, which changes values; save it as PNG, "
                "and test again, before you correct it"
            )
        changed = self._decoder.decode(mask, original).train_ids != train_ids
        if not changed.any():
            write_file(path, lambda unfinished: unfinished.write_bytes(original.read_bytes()))
            return

        def write_checked(unfinished: Path) -> None:
            wrong = changed
            corrected = mask
            for _ in range(_PASSES):
                corrected = self._changed(corrected, wrong, train_ids, original)
                _save(corrected, original, unfinished)
                found = self._decoder.decode(read_mask(unfinished), unfinished)
                wrong = (found.train_ids != train_ids) | found.unknown
                if not wrong.any():
                    return
            raise UserError(
                f"{original}: {mask.form.file_format} ({mask.form.mode}) is not read back as it was corrected; save "
                "the label as PNG first"
            )

        write_file(path, write_checked)

    def _changed(self, mask: Mask, where: np.ndarray, train_ids: np.ndarray, original: Path) -> Mask:
        """The mask with the values of other classes, opaque, in some pixels."""
        samples, alpha = mask.samples.copy(), None if mask.alpha is None else mask.alpha.copy()
        for train_id in np.unique(train_ids[where]).tolist():
            samples[where & (train_ids == train_id)] = self._value(mask.form, train_id, original)
        if alpha is not None:
            alpha[where] = 255
        return Mask(mask.form, samples, alpha)

    def _value(self, form: MaskForm, train_id: int, original: Path) -> int | Color:
        """What stands for a class in a file of this form."""
        holds_colors = self._decoder.holds_colors(form)
        values: dict[int, Any] = self._colors if holds_colors else self._ids
        name = "pixels without a label" if train_id == self._decoder.ignore_label else None
        name = name or repr(self._info.class_names[train_id])
        value = values.get(train_id)
        if value is not None and holds_colors and form.holds_ids:
            palette = form.palette or [(grey, grey, grey) for grey in range(0, 256, form.grey_step)]
            value = palette.index(value) if value in palette else None
        if value is None:
            raise UserError(f"{original}: label files of this form have no value for {name}; leave these pixels")
        return value


def _save(mask: Mask, original: Path, path: Path) -> None:
    """Writes a mask in its format, with the palette of the original file."""
    form = mask.form
    options: dict[str, Any] = {"lossless": True, "exact": True} if form.file_format == "WEBP" else {}
    if mask.samples.ndim == 3:
        alpha = mask.alpha
        if alpha is None and form.alpha == "channel":
            alpha = np.full(mask.samples.shape[:2], 255, np.uint8)
        image = Image.fromarray(
            np.ascontiguousarray(mask.samples if alpha is None else np.dstack([mask.samples, alpha]))
        )
    else:
        kind = np.uint16 if form.mode.startswith("I;16") else _SAMPLE_TYPES.get(form.mode, np.uint8)
        image = Image.fromarray(mask.samples.astype(kind))
        if form.mode == "P":
            with Image.open(original) as source:
                image.putpalette(source.getpalette("RGB") or [], "RGB")
                if mask.alpha is not None and isinstance(source.info.get("transparency"), (bytes, int)):
                    options["transparency"] = source.info["transparency"]
    try:
        image.save(path, form.file_format, **options)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{original}: labels in {form.file_format} ({form.mode}) cannot be written ({error}); "
            "save them as PNG first"
        ) from error
