"""Decodes label files, ids or colours, to train ids; its messages name the likely cause of wrong values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ovenet.data.description import voc_color
from ovenet.data.info import INVALID, Color, DatasetInfo
from ovenet.data.masks import Mask, MaskForm, read_mask
from ovenet.data.snapping import LOSSY_TOLERANCE, snap
from ovenet.errors import UserError


@dataclass(frozen=True)
class LabelContent:
    """A decoded label file.

    Attributes:
        train_ids: ``(H, W)`` int16; undefined where `unknown`.
        unknown: ``(H, W)`` bool, values that the dataset does not know.
        num_snapped: pixels of no class that got the nearest class (``snap`` in dataset.json).
    """

    train_ids: np.ndarray
    unknown: np.ndarray
    num_snapped: int = 0


class LabelDecoder:
    """Turns label files of one dataset into train ids.

    Args:
        info: the dataset.
        ignore_label: train id of ignored pixels.
    """

    def __init__(self, info: DatasetInfo, ignore_label: int):
        self.info = info
        self.ignore_label = ignore_label
        self.table = info.train_id_table(ignore_label)
        self._ids = np.flatnonzero(self.table != INVALID).astype(np.uint8)[:, None]
        colors = np.array([*info.palette, *info.ignored_colors], dtype=np.uint8)
        train_ids = np.array([*range(info.num_classes), *[ignore_label] * len(info.ignored_colors)], np.int16)
        order = np.argsort(color_codes(colors))
        self._colors, self._color_train_ids = colors[order], train_ids[order]
        self._color_codes = color_codes(self._colors)
        self._chosen_colors = _chosen_colors(info)
        is_class = info.transparent in info.class_names
        self._hidden_train_id = np.int16(info.class_names.index(info.transparent) if is_class else ignore_label)

    def read(self, path: Path) -> np.ndarray:
        """A label file as train ids.

        Args:
            path: an image of ids (one channel, or palette indices) or, where the dataset says so, of colours.

        Returns:
            ``(H, W)`` int16.

        Raises:
            UserError: the file is missing, no image or truncated, holds an id or a colour of no class, or is ambiguous.
        """
        return self.read_content(path).train_ids

    def read_content(self, path: Path) -> LabelContent:
        """As `read`, with the number of snapped pixels."""
        return self._known(read_mask(path), path)

    def decode_known(self, mask: Mask, path: Path) -> np.ndarray:
        """A label map in memory as train ids ``(H, W)`` int16; arguments and errors as in `decode` and `read`."""
        return self._known(mask, path).train_ids

    def _known(self, mask: Mask, path: Path) -> LabelContent:
        content = self.decode(mask, path)
        if content.unknown.any():
            raise self._unknown_value(mask, content.unknown, path)
        return content

    def holds_colors(self, form: MaskForm) -> bool:
        """Whether a label file is to be read by its colours rather than as ids."""
        return self.info.label_format == "colors" or (self.info.label_format == "either" and not form.holds_ids)

    def decode(self, mask: Mask, path: Path) -> LabelContent:
        """Decodes a label file; values that the dataset does not know are marked.

        Args:
            mask: its content.
            path: the file, for messages.

        Raises:
            UserError: it is a colour image where ids are expected, a JPEG of values that JPEG mixes up, or ambiguous:
                its palette's colours contradict its indices, or the colours hidden under transparent pixels vary.
        """
        if self.holds_colors(mask.form):
            return self._decode_colors(mask, path)
        if mask.samples.ndim == 3:
            raise UserError(
                f"{path}: the label is a colour image ({mask.form.mode}); {self.info.name} expects one channel of "
                "class ids. Convert it, or describe the data with its colours in a dataset.json"
            )
        self._refuse_contradicting_palette(mask, path)
        ids = mask.samples
        in_range = ids if ids.dtype == np.uint8 else np.clip(ids, 0, 255).astype(np.uint8)
        train_ids = self.table[in_range]
        unknown = (train_ids == INVALID) | (in_range != ids)
        if not self._is_snapped(mask.form, self._ids, unknown, path) or (in_range != ids).any():
            return LabelContent(train_ids, unknown)
        index = np.searchsorted(self._ids[:, 0], in_range).clip(max=len(self._ids) - 1)
        index, rest = snap(in_range[..., None], index, ~unknown, unknown, self._ids, is_lossy=mask.form.is_lossy)
        return LabelContent(self.table[self._ids[index, 0]], rest, int((unknown & ~rest).sum()))

    def _decode_colors(self, mask: Mask, path: Path) -> LabelContent:
        pixels = mask.colors(path)
        codes = color_codes(pixels)
        starts, lengths = _runs(codes)
        run_codes = codes.ravel()[starts]
        run_index = np.searchsorted(self._color_codes, run_codes).clip(max=len(self._color_codes) - 1)

        def spread(values: np.ndarray) -> np.ndarray:
            return np.repeat(values, lengths).reshape(codes.shape)

        known = spread(self._color_codes[run_index] == run_codes)
        train_ids = spread(self._color_train_ids[run_index])
        unknown = ~known
        if mask.alpha is not None:
            transparent = mask.alpha == 0
            if self.info.transparent is None:
                self._refuse_ambiguous_transparency(codes, known, transparent, path)
            else:
                train_ids[transparent] = self._hidden_train_id
                known, unknown = known & ~transparent, unknown & ~transparent
        rest, num_snapped = unknown, 0
        if self._is_snapped(mask.form, self._colors, unknown, path):
            index, rest = snap(pixels, spread(run_index), known, unknown, self._colors, is_lossy=mask.form.is_lossy)
            snapped = unknown & ~rest
            train_ids[snapped], num_snapped = self._color_train_ids[index[snapped]], int(snapped.sum())
        return LabelContent(train_ids, rest, num_snapped)

    def _is_snapped(self, form: MaskForm, values: np.ndarray, unknown: np.ndarray, path: Path) -> bool:
        """Whether unknown values of a file are to get the nearest class.

        Raises:
            UserError: the file is a JPEG or the like, and two classes are so near that it may mix them up.
        """
        for n, value in enumerate(values if form.is_lossy else ()):
            apart = np.abs(values[:n].astype(np.int32) - value).max(axis=1, initial=0)
            if (apart <= 2 * LOSSY_TOLERANCE).any():
                first, second = (", ".join(map(str, one)) for one in (values[int(apart.argmin())], value))
                raise UserError(
                    f"{path}: the label is stored as {form.file_format}, which changes values, and its classes are as "
                    f"near as {first} and {second}, so it may mix them up; save it as PNG from the original"
                )
        return self.info.snap and bool(unknown.any())

    def _refuse_contradicting_palette(self, mask: Mask, path: Path) -> None:
        """Refuses a palette file in which indices are ids of one class and colours those of another.

        Only colours in the description count, not the default ones; and a single contradiction does not count where
        other colours are no class, since tools write palettes of their own.
        """
        if self.info.label_format != "either" or mask.form.palette is None or not self._chosen_colors:
            return
        meanings = {**dict.fromkeys(self.info.ignored_colors, self.ignore_label), **self._chosen_colors}
        by_color = {i: meanings[color] for i, color in enumerate(mask.form.palette) if color in meanings}
        by_id = self.table.tolist()
        if all(by_id[i] == train_id for i, train_id in by_color.items()):
            return  # whichever indices are in use
        ignored = self.info.ignored_ids
        used = [i for i, n in enumerate(np.bincount(mask.samples.ravel()).tolist()) if n and i not in ignored]
        wrong = [i for i in used if i in by_color and by_color[i] != by_id[i]]
        if not wrong or (len(wrong) == 1 and any(i not in by_color for i in used)):
            return
        first = wrong[0]
        raise UserError(
            f"{path}: index {first} is {self._name(by_id[first])} by its number and {self._name(by_color[first])} by "
            f"its palette's colour {list(mask.form.palette[first])}; say in dataset.json which holds: "
            '"label_format": "colors", or "ids"'
        )

    def _name(self, train_id: int) -> str:
        names = {INVALID: "no class", self.ignore_label: "ignored"}
        return names.get(train_id) or repr(self.info.class_names[train_id])

    def _refuse_ambiguous_transparency(
        self, codes: np.ndarray, known: np.ndarray, transparent: np.ndarray, path: Path
    ) -> None:
        """Refuses transparent pixels unless one class's colour is hidden under all of them and visible nowhere."""
        hidden = codes[transparent]
        if hidden.size == 0:
            return
        is_one = (hidden == hidden[0]).all() and known[transparent].all()
        if not is_one or ((codes == hidden[0]) & ~transparent).any():
            raise UserError(
                f"{path}: {100 * hidden.size / codes.size:.2g} % of the label is transparent, and the colours hidden "
                'there are ambiguous; add to dataset.json "transparent": the name of a class, or "ignore"'
            )

    def _unknown_value(self, mask: Mask, unknown: np.ndarray, path: Path) -> UserError:
        """The error about values of no class."""
        if not self.holds_colors(mask.form):
            values = np.unique(mask.samples[unknown])
            return UserError(
                f"{path}: label value {values[0]} is no class of {self.info.name}; "
                f"{_likely_cause(values, self.info, mask.form)}"
            )
        color = [int(channel) for channel in mask.colors(path)[unknown][0]]
        if mask.form.is_lossy:
            cause = f'{mask.form.file_format} changes colours: save masks as PNG, or set "snap": true in dataset.json'
        elif self.info.snap:
            cause = "it is no blend of classes beside it; add it to dataset.json, as a class or under 'ignore'"
        else:
            cause = (
                "add it to dataset.json, as a class or under 'ignore', or save the mask without smoothing; "
                'if these are smoothed edges alone, set "snap": true there'
            )
        return UserError(
            f"{path}: colour {color} is no class of {self.info.name} ({int(unknown.sum())} pixels); {cause}"
        )


def color_codes(pixels: np.ndarray) -> np.ndarray:
    """One int32 code per pixel of ``(..., 3)`` uint8 RGB."""
    if pixels.ndim != 3 or pixels.size == 0:
        wide = pixels.astype(np.int32)
        return wide[..., 0] | wide[..., 1] << 8 | wide[..., 2] << 16
    padded = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2RGBA)  # six times as fast; adds a byte of 255
    return padded.view("<i4")[..., 0] & 0xFFFFFF


def count_values(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``np.unique`` of integers with counts, by runs of the same value, which is several times as fast on masks."""
    starts, lengths = _runs(values)
    found, which = np.unique(values.ravel()[starts], return_inverse=True)
    return found, np.bincount(which, weights=lengths, minlength=len(found)).astype(np.int64)


def _runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Starts and lengths of the runs of the same value in the flat array."""
    flat = values.ravel()
    starts = np.concatenate([np.zeros(min(1, flat.size), np.int64), np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    return starts, np.diff(starts, append=flat.size)


def colors_of_codes(codes: np.ndarray) -> list[Color]:
    """The colours of codes from `color_codes`."""
    return list(zip((codes & 255).tolist(), (codes >> 8 & 255).tolist(), (codes >> 16).tolist(), strict=True))


def _chosen_colors(info: DatasetInfo) -> dict[Color, int]:
    """Train ids of the colours that the user chose.

    None where all classes have the default colours, even if these are written down, as earlier versions drafted them.
    """
    if info.palette == tuple(voc_color(k) for k in range(1, info.num_classes + 1)):
        return {}
    return {info.palette[k]: k for k in info.chosen_colors}


def _likely_cause(values: np.ndarray, info: DatasetInfo, form: MaskForm) -> str:
    """Why a label file may hold the unknown ids `values`, sorted, and the remedy."""
    first, last = min(info.known_ids), max(info.known_ids)
    known = f"its ids are {first} to {last}"
    if info.ignored_ids:
        known += f", {info.ignored_ids[0] if len(info.ignored_ids) == 1 else 'the others'} ignored"
    if form.is_lossy:
        return f"{known}. {form.file_format} changes ids: save label files as PNG"
    if form.bits < 8 and form.palette is None:
        white = 2**form.bits - 1
        return (
            f"{known}. The file has {form.bits} bit{'s' if form.bits > 1 else ''}, so its white is {white}, not 255: "
            "save label files with 8 bits"
        )
    if 255 in values and has_cityscapes_ids(info):
        return f"{known}. 255 marks ignored pixels in train id files: list the *_labelIds.png files instead"
    if 255 in values:
        return f"{known}. 255 may be a foreground mask or another tool's ignore value: map it to an id first"
    if values[0] == last_known_id(info) + 1 and len(values) == 1:
        return f"{known}. The labels may count from {first + 1}: subtract 1; or they have a class more than the dataset"
    if info.label_ids == tuple(range(info.num_classes)) and values.max() <= 33:
        return (
            f"{known}. These look like another dataset's raw ids instead of train ids: convert them first "
            "(Cityscapes' *_labelTrainIds.png files hold train ids)"
        )
    return f"{known}. Check that the list names the label files of this dataset"


def last_known_id(info: DatasetInfo) -> int:
    """The highest class or ignored id, except 255 as the ignored one."""
    return max((*info.known_ids, *(i for i in info.ignored_ids if i != 255)))


def has_cityscapes_ids(info: DatasetInfo) -> bool:
    """Whether the label files hold the label ids of Cityscapes, 7 to 33 with gaps."""
    return len(info.known_ids) == 19 and max(info.known_ids) == 33
