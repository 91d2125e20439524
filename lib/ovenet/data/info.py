"""Dataset facts, as dataclasses."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np

INVALID = np.iinfo(np.int16).min  # train id of ids that the dataset does not know
SPLITS = ("train", "val", "test")

Color = tuple[int, int, int]
Resize = Literal["long_side", "short_side", "stretch"]


@dataclass(frozen=True)
class Layout:
    """Where the files of one split lie, as patterns relative to the dataset's folder and without their suffix.

    ``*`` matches one path component or a part of it, ``**`` any number of components. An image and a label belong
    together where the wildcards match the same text.

    Attributes:
        images: pattern of the images.
        labels: pattern of the labels; None for a split without labels.
        names: file with the wildcard's text of each image of this split, one per line; None takes all files.
        names_not_in: file with the texts of another split: all other labels belong to this one.
        also: where further images of the split lie.
        stored_ids: pairs of an id of `DatasetInfo.label_ids` and the id that stands for it in these label files; empty
            where the files hold the dataset's own ids.
        stored_ignored: ignored ids in these label files; only with `stored_ids`.
        num_images: number of published images of the split in this form; None for `DatasetInfo.num_images`.
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
        resize: ``long_side`` scales the long side to ``BASE_SIZE`` and cuts images larger than ``TEST.IMAGE_SIZE`` into
            windows; ``short_side`` scales the short side to ``BASE_SIZE`` and runs the image whole; ``stretch`` scales
            to the aspect ratio of ``IMAGE_SIZE``, in training too.
        multiple_of: pad right and bottom until both sides are multiples of this many pixels.
        keeps_padding: the public test treats that padding as part of the image, see ``TEST.PROTOCOL``.
    """

    resize: Resize = "long_side"
    multiple_of: int = 1
    keeps_padding: bool = False


LONG_SIDE = EvaluationRule()


@dataclass(frozen=True)
class SubmissionRule:
    """What the dataset's test server accepts: one PNG per image, with the image's name.

    Attributes:
        ids: which ids the PNGs hold: ``label_ids``, those of the label files, or ``train_ids``.
        folder: folder of the PNGs inside the zip; "" for none.
        num_files: number of images in the test split; None where it is not fixed.
        confidence_folder: folder of the confidence maps inside the zip; None for a server that takes none.
        confidence_bits: bits of a confidence map's one channel, 8 or 16; its largest value is a confidence of 1.
    """

    ids: Literal["label_ids", "train_ids"]
    folder: str = ""
    num_files: int | None = None
    confidence_folder: str | None = None
    confidence_bits: int = 16


@dataclass(frozen=True)
class Category:
    """Classes that may be merged into one.

    Attributes:
        name: name of the category.
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
        palette: ``(R, G, B)`` of each class.
        label_ids: id of each class in the label files, in the order of the train ids.
        ignored_ids: ignored ids in the label files.
        ignored_colors: ignored colours in label files that hold colours.
        layouts: layout of each split, in every form in which the data is known to lie; the first that fits is used.
        archives: files to download and unpack, for messages.
        num_images: number of images of each published split.
        class_weights: ``K`` published loss weights, or None.
        conditions: names of subsets that are scored separately; a component of each image's path.
        flip_pairs: pairs of train ids that are exchanged when an image is flipped.
        evaluation: how images are resized for a test.
        submission: what the test server expects; None without a server.
        label_format: ``ids``: label files hold ids; ``colors``: they hold the palette's colours; ``either``: colour
            images are read as colours, the others as ids.
        snap: pixels at smoothed edges of masks, and pixels changed by JPEG, get the nearest class; otherwise a value of
            no class is refused.
        transparent: class of fully transparent pixels in colour masks, or ``ignore``; None uses the hidden colour where
            it is unambiguous.
        upright: turn photographs as their EXIF tag says before pairing them with labels.
        optional_background: class 0 may be left out; then it is ignored.
        categories: categories into which all of its classes may be merged.
        merged_ids: further ids in the label files, each with the train id of its class.
        val_share: share of the images that is kept for validation where the layout has no split.
        chosen_colors: train ids of the classes with a colour from the description; the others have the usual colours.
        invalid_masks: pairs of a text in a label's path and the text that replaces it in the path of the mask of its
            invalid pixels, see `ovenet.data.invalid_masks`; empty for a dataset without such masks.
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
    invalid_masks: tuple[tuple[str, str], ...] = ()

    @property
    def num_classes(self) -> int:
        """``K``."""
        return len(self.class_names)

    @property
    def known_ids(self) -> tuple[int, ...]:
        """All ids in the label files that belong to a class."""
        return (*self.label_ids, *(label_id for label_id, _ in self.merged_ids))

    def train_id_table(self, ignore_label: int) -> np.ndarray:
        """Table ``(256,)`` int16 from label file ids to train ids: `ignore_label` for ignored ids, `INVALID` for ids
        that the dataset does not know."""
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
        """The condition that an image belongs to by its path; None for none."""
        return condition_of(image_name, self.conditions)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the layouts as plain values, as checkpoints store it.

        Without masks and confidence maps, as before there were any, since decoded caches are found by it.
        """
        content = {key: value for key, value in asdict(self).items() if key != "layouts"}
        if not self.invalid_masks:
            del content["invalid_masks"]
        if self.submission and self.submission.confidence_folder is None:
            del content["submission"]["confidence_folder"], content["submission"]["confidence_bits"]
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> DatasetInfo:
        """The dataset of `as_dict`.

        Raises:
            TypeError: a key is missing or not known.
        """
        old_names = {"mirrored_classes": "flip_pairs"}
        values = {old_names.get(key, key): value for key, value in content.items()}
        values["evaluation"] = EvaluationRule(**values["evaluation"])
        values["submission"] = values["submission"] and SubmissionRule(**values["submission"])
        values["categories"] = tuple(Category(**category) for category in values.get("categories", ()))
        return cls(**values)

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
        """The same dataset with its categories as classes, which cannot be submitted to its test server."""
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


def condition_of(image_name: str, conditions: Collection[str]) -> str | None:
    """The first of an image's folders that is one of `conditions`; None for none."""
    return next((part for part in PurePosixPath(image_name).parts if part in conditions), None)
