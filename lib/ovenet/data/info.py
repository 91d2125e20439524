"""Dataset facts, as dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np

INVALID = np.iinfo(np.int16).min  # what `train_id_table` holds for ids that the dataset does not know
SPLITS = ("train", "val", "test")

Color = tuple[int, int, int]
Resize = Literal["long_side", "short_side", "stretch"]


@dataclass(frozen=True)
class Layout:
    """Where the files of one split lie, as patterns relative to the dataset's folder and without their suffix.

    ``*`` stands for one path component or a part of it, ``**`` for any number of components. An image and a label
    belong together where the same text stands for the wildcards.

    Attributes:
        images: pattern of the images.
        labels: pattern of the labels; None for a split without.
        names: file that names the wildcard's texts of this split, one per line; None takes all files.
        names_not_in: file that names the texts of another split: all labels but these belong to this one.
        also: where further images of the split lie.
        stored_ids: pairs of an id of `DatasetInfo.label_ids` and the one that stands for it in these label files; none
            where they hold the dataset's own.
        stored_ignored: ids in these label files that are ignored; goes with `stored_ids`.
        num_images: of the split as published in this form; None for the dataset's own number.
    """

    images: str
    labels: str | None
    names: str | None = None
    names_not_in: str | None = None
    also: Layout | None = None
    stored_ids: tuple[tuple[int, int], ...] = ()
    stored_ignored: tuple[int, ...] = ()
    num_images: int | None = None


@dataclass(frozen=True)
class EvaluationRule:
    """How an image is brought to the size at which the network sees it.

    Attributes:
        resize: ``long_side`` scales the long side to ``BASE_SIZE`` and cuts what exceeds ``TEST.IMAGE_SIZE`` into
            windows; ``short_side`` scales the short side to ``BASE_SIZE`` and runs the image whole; ``stretch`` gives
            up the proportions for those of ``IMAGE_SIZE``, in training too.
        multiple_of: pad the right and the bottom until both sides are multiples of this many pixels.
        keeps_padding: the public test takes that padding for a part of the image, see ``TEST.PROTOCOL``.
    """

    resize: Resize = "long_side"
    multiple_of: int = 1
    keeps_padding: bool = False


LONG_SIDE = EvaluationRule()


@dataclass(frozen=True)
class SubmissionRule:
    """What the dataset's test server takes: one PNG per image, named like it.

    Attributes:
        ids: ``label_ids`` (of the label files) or ``train_ids``.
        folder: of the PNGs inside the zip; "" for none.
        num_files: of the test split; None where it is not fixed.
    """

    ids: Literal["label_ids", "train_ids"]
    folder: str = ""
    num_files: int | None = None


@dataclass(frozen=True)
class Category:
    """Classes that may be taken as one.

    Attributes:
        name: of the category.
        color: ``(R, G, B)``.
        classes: names of its classes.
    """

    name: str
    color: Color
    classes: tuple[str, ...]


@dataclass(frozen=True)
class DatasetInfo:
    """One dataset.

    Attributes:
        name: its folder below ``DATASET.ROOT``, and the value of ``DATASET.DATASET``.
        class_names: ``K`` names, in the order of the train ids.
        palette: an ``(R, G, B)`` per class.
        label_ids: the id in the label files of each class, in the order of the train ids.
        ignored_ids: ids in the label files that are ignored.
        ignored_colors: likewise for label files that hold colours.
        layouts: by split, in every form in which the data is known to lie; the first one that fits is taken.
        archives: what to download and unpack, for messages.
        num_images: of the published splits.
        class_weights: ``K`` published loss weights, or None.
        conditions: names of subsets that are scored separately; a component of each image's path.
        flip_pairs: pairs of train ids that change places when an image is flipped.
        evaluation: how images are resized for a test.
        submission: what the server expects; None where there is no server.
        label_format: ``ids``: label files hold ids; ``colors``: they hold the palette's colours; ``either``: colour
            images are read as colours, the others as ids.
        snap: pixels at smoothed edges of masks, and those that JPEG changed, are of the class that they are nearest to;
            otherwise a value of no class is refused.
        transparent: the class of fully transparent pixels in masks of colours, or ``ignore``; None takes the colour
            that is hidden there where it can mean one thing only.
        upright: turn photographs as their EXIF tag says before pairing them with labels.
        optional_background: class 0 may be left out; then it is ignored.
        categories: in which its classes may be merged, all of them.
        merged_ids: further ids in the label files, each with the train id of the class that it belongs to.
        val_share: share of the images that is kept for validation where the layout has no split.
        chosen_colors: train ids of the classes whose colours somebody chose; the others have the usual ones.
    """

    name: str
    class_names: tuple[str, ...]
    palette: tuple[Color, ...]
    label_ids: tuple[int, ...]
    ignored_ids: tuple[int, ...] = ()
    ignored_colors: tuple[Color, ...] = ()
    layouts: tuple[Mapping[str, Layout], ...] = ()
    archives: str = ""
    num_images: Mapping[str, int] = field(default_factory=dict)
    class_weights: tuple[float, ...] | None = None
    conditions: tuple[str, ...] = ()
    flip_pairs: tuple[tuple[int, int], ...] = ()
    evaluation: EvaluationRule = LONG_SIDE
    submission: SubmissionRule | None = None
    label_format: Literal["ids", "colors", "either"] = "ids"
    snap: bool = False
    transparent: str | None = None
    upright: bool = False
    optional_background: bool = False
    categories: tuple[Category, ...] = ()
    merged_ids: tuple[tuple[int, int], ...] = ()
    val_share: float = 0.2
    chosen_colors: tuple[int, ...] = ()

    @property
    def num_classes(self) -> int:
        """``K``."""
        return len(self.class_names)

    @property
    def known_ids(self) -> tuple[int, ...]:
        """All ids in the label files that belong to a class."""
        return (*self.label_ids, *(label_id for label_id, _ in self.merged_ids))

    def train_id_table(self, ignore_label: int) -> np.ndarray:
        """Table from label file ids to train ids.

        Args:
            ignore_label: train id of the ignored ids.

        Returns:
            ``(256,)`` int16; `INVALID` for ids that the dataset does not know.
        """
        table = np.full(256, INVALID, dtype=np.int16)
        table[list(self.ignored_ids)] = ignore_label
        table[list(self.label_ids)] = np.arange(self.num_classes)
        for label_id, train_id in self.merged_ids:
            table[label_id] = train_id
        return table

    def label_id_table(self) -> np.ndarray:
        """Table ``(K,)`` uint8 from train ids back to the ids of the label files."""
        return np.array(self.label_ids, dtype=np.uint8)

    def flip_table(self) -> np.ndarray:
        """Table ``(K,)`` from train ids to those of the flipped image."""
        table = np.arange(self.num_classes)
        for left, right in self.flip_pairs:
            table[[left, right]] = right, left
        return table

    def condition_of(self, image_name: str) -> str | None:
        """Which of `conditions` an image belongs to, told from its path; None for none."""
        return next((part for part in PurePosixPath(image_name).parts if part in self.conditions), None)

    def as_dict(self) -> dict[str, Any]:
        """All but where the files lie, as plain values: what a checkpoint carries."""
        return {key: value for key, value in asdict(self).items() if key != "layouts"}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> DatasetInfo:
        """The dataset of `as_dict`.

        Raises:
            TypeError: a key is missing or not known.
        """
        evaluation, submission = EvaluationRule(**content["evaluation"]), content["submission"]
        if "mirrored_classes" in content:  # of earlier checkpoints
            content = {"flip_pairs" if key == "mirrored_classes" else key: value for key, value in content.items()}
        rules = {"evaluation": evaluation, "submission": submission and SubmissionRule(**submission)}
        categories = tuple(Category(**category) for category in content.get("categories", ()))
        return cls(**content | rules | {"categories": categories})

    def without_background(self) -> DatasetInfo:
        """The same dataset with class 0 ignored instead of learned."""
        return replace(
            self,
            class_names=self.class_names[1:],
            palette=self.palette[1:],
            label_ids=self.label_ids[1:],
            chosen_colors=tuple(k - 1 for k in self.chosen_colors if k),
            ignored_ids=(*self.ignored_ids, self.label_ids[0]),
            class_weights=self.class_weights[1:] if self.class_weights else None,
            flip_pairs=tuple((a - 1, b - 1) for a, b in self.flip_pairs),
            optional_background=False,
        )

    def by_category(self) -> DatasetInfo:
        """The same dataset with its categories for classes; nothing of it can be submitted any more."""
        first = {c.name: self.label_ids[self.class_names.index(c.classes[0])] for c in self.categories}
        merged = [
            (self.label_ids[self.class_names.index(name)], index)
            for index, category in enumerate(self.categories)
            for name in category.classes[1:]
        ]
        return replace(
            self,
            class_names=tuple(first),
            palette=tuple(category.color for category in self.categories),
            label_ids=tuple(first.values()),
            chosen_colors=(),
            merged_ids=tuple(merged),
            class_weights=None,
            flip_pairs=(),
            submission=None,
            optional_background=False,
            categories=(),
        )
