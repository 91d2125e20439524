"""The results of an audit as dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ovenet.audit.content import LabelCounts
from ovenet.data.info import Color
from ovenet.data.masks import MaskForm
from ovenet.structures import Size


@dataclass(frozen=True)
class Finding:
    """One problem or remark.

    Attributes:
        kind: the mistake in a word or two.
        is_error: whether training would be wrong.
        message: its meaning and its remedy.
        paths: the files; empty for the whole list.
        share: of the label's pixels, or of the pixels of all labels in the list; None where it is not about pixels.
    """

    kind: str
    is_error: bool
    message: str
    paths: tuple[str, ...] = ()
    share: float | None = None


@dataclass(frozen=True)
class PairReport:
    """One image and its label.

    Attributes:
        label: path of the label; "" for none.
        size: ``(H, W)`` of the image as training sees it; None if it cannot be read.
        num_pixels: of the label, including ignored pixels.
        counts: of the label's values; empty if it cannot be read.
        findings: about this pair.
        form: of the label, without its palette; None without a readable label.
        palette: colours of the indices in use, where they are read as ids; None without a palette.
        palette_number: equal for labels with the same whole palette.
    """

    label: str
    size: Size | None
    num_pixels: int = 0
    counts: LabelCounts = field(default_factory=LabelCounts)
    findings: tuple[Finding, ...] = ()
    form: MaskForm | None = None
    palette: Mapping[int, Color] | None = None
    palette_number: int = 0


@dataclass(frozen=True)
class ListReport:
    """A list of images and labels.

    Attributes:
        name: of the list.
        num_pairs: number of lines.
        sizes: each ``(H, W)`` with its number of images, in decreasing order.
        class_pixels: ``(K,)`` pixels of each class.
        class_images: ``(K,)`` images with each class.
        id_pixels: pixels of each id in the label files.
        num_pixels: pixels of all labels, including ignored ones.
        findings: errors first.
        pairs: report of each pair.
    """

    name: str
    num_pairs: int
    sizes: tuple[tuple[Size, int], ...]
    class_pixels: np.ndarray
    class_images: np.ndarray
    id_pixels: Mapping[int, int]
    num_pixels: int
    findings: tuple[Finding, ...]
    pairs: tuple[PairReport, ...] = ()
