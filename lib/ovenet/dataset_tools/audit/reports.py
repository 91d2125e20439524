"""What an audit finds, as dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ovenet.data.info import Color
from ovenet.data.masks import MaskForm
from ovenet.dataset_tools.audit.content import LabelCounts


@dataclass(frozen=True)
class Finding:
    """One problem or remark.

    Attributes:
        kind: what, in a word or two; the same for the same mistake.
        is_error: whether training would be wrong.
        message: what it means, and what to do.
        paths: the files; empty where it is about the whole list.
        share: of the label's pixels, or of all labels' of the list; None where it is not about pixels.
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
        num_pixels: of the label, ignored ones included.
        counts: what the label holds; nothing where it cannot be read.
        findings: about this pair.
        form: how the label is stored, without its palette; None without a label that can be read.
        palette: colours of the indices in use, where they are read as ids; None without a palette.
        palette_number: the same for labels of the same whole palette.
    """

    label: str
    size: tuple[int, int] | None
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
        num_pairs: lines.
        sizes: how many images have which ``(H, W)``, the most frequent first.
        class_pixels: ``(K,)`` pixels of each class.
        class_images: ``(K,)`` images that show each class.
        id_pixels: pixels of each id in the label files.
        num_pixels: labelled pixels, ignored ones included.
        findings: errors first.
        pairs: what was found of each.
    """

    name: str
    num_pairs: int
    sizes: tuple[tuple[tuple[int, int], int], ...]
    class_pixels: np.ndarray
    class_images: np.ndarray
    id_pixels: Mapping[int, int]
    num_pixels: int
    findings: tuple[Finding, ...]
    pairs: tuple[PairReport, ...] = ()
