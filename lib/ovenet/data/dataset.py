"""The one dataset: a list file of images and labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from ovenet.data.cache import DecodedCache
from ovenet.data.corruptions import Corruption
from ovenet.data.files import read_image, read_list
from ovenet.data.info import DatasetInfo
from ovenet.data.invalid_masks import mask_name, read_invalid_mask, require_masks
from ovenet.data.labels import LabelDecoder
from ovenet.data.stored_ids import with_stored_ids
from ovenet.errors import UserError
from ovenet.structures import Sample
from ovenet.utils.logging import get_logger
from ovenet.utils.seeding import sample_rng

Transform = Callable[[Sample, np.random.Generator], Sample]


class ListDataset(Dataset[Sample]):
    """Decoded images and labels of a list, by index.

    Args:
        root: ``DATASET.ROOT``; the entries of the list are relative to ``root/<dataset's name>``.
        list_path: the list file.
        info: the dataset.
        ignore_label: train id of ignored pixels.
        num_samples: use only the first N lines; 0 is all.

    Attributes:
        decoder: reads label files; its `info` has the ids that the listed files hold.
        cache: decoded files that are used in place of the listed ones; None at first.
        reads_invalid: read the mask of invalid pixels of each label too, see `read_invalid_masks`.
        corruption: applied to each image as it is read; None at first.

    Raises:
        UserError: the list is missing, empty or malformed.
    """

    def __init__(self, root: Path, list_path: Path, info: DatasetInfo, *, ignore_label: int, num_samples: int = 0):
        self.list_path = list_path
        self.folder = root / info.name
        self.info = info
        self.pairs = read_list(self.list_path)[: num_samples or None]
        stored = with_stored_ids(info, (label for _, label in self.pairs if label is not None))
        if stored is not info:
            first, last, ignored = min(stored.label_ids), max(stored.label_ids), sorted(stored.ignored_ids)
            message = "%s: ids %d to %d in the label files, %s ignored, as their folder and name say"
            get_logger().info(message, self.list_path, first, last, " and ".join(map(str, ignored)) or "none")
        self.decoder = LabelDecoder(stored, ignore_label)
        self.cache: DecodedCache | None = None
        self.reads_invalid = False
        self.corruption: Corruption | None = None

    def read_invalid_masks(self) -> None:
        """Reads the mask of invalid pixels of each label from now on.

        Raises:
            UserError: the dataset has no such masks, or one is missing.
        """
        require_masks(self.folder, [label for _, label in self.pairs if label is not None], self.info)
        self.reads_invalid = True

    @property
    def has_labels(self) -> bool:
        """Whether every line of the list names a label."""
        return all(label is not None for _, label in self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """The image and labels of one line; arrays from the cache are memory-mapped.

        Raises:
            UserError: see `read_files` and `Corruption`.
        """
        sample = self._read(index)
        return sample if self.corruption is None else replace(sample, image=self.corruption(sample.image, sample.name))

    def _read(self, index: int) -> Sample:
        label_name = self.pairs[index][1]
        sample = self._cached(index) or self._decoded(index)
        if not self.reads_invalid or label_name is None or sample.labels is None:
            return sample
        path = self.folder / mask_name(label_name, self.info)
        return replace(sample, invalid=read_invalid_mask(path, sample.labels.shape))

    def _cached(self, index: int) -> Sample | None:
        """The image and labels of one line from the cache, if it has both."""
        if self.cache is None:
            return None
        image_name, label_name = self.pairs[index]
        image = self.cache.read(image_name)
        labels = None if label_name is None else self.cache.read(label_name)
        if image is None or (label_name is not None and labels is None):
            return None
        return Sample(image, labels, image_name)

    def _decoded(self, index: int) -> Sample:
        """The image and labels of one line from their files; a cache that fills as they are read gets them."""
        image, labels = self.read_files(index)
        if self.cache is not None and self.cache.fills:
            self.cache.fill(self.pairs[index], image, labels)
        return Sample(image, labels, self.pairs[index][0])

    def read_files(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Decodes the files of one line.

        Returns:
            The image ``(H, W, 3)`` uint8, and train ids ``(H, W)`` int16, None without a label.

        Raises:
            UserError: a file is missing or unreadable, a label value is no class, or the sizes differ.
        """
        image_name, label_name = self.pairs[index]
        image_path = self.folder / image_name
        image = read_image(image_path, upright=self.info.upright)
        if label_name is None:
            return image, None
        label_path = self.folder / label_name
        labels = self.decoder.read(label_path)
        if labels.shape != image.shape[:2]:
            raise UserError(
                f"{label_path}: the label is {labels.shape[1]}x{labels.shape[0]} pixels, its image {image_path} "
                f"{image.shape[1]}x{image.shape[0]}; check that the list pairs them rightly"
                + self._exif_hint(labels, image)
            )
        return image, labels

    def _exif_hint(self, labels: np.ndarray, image: np.ndarray) -> str:
        if labels.shape != image.shape[1::-1]:
            return ""
        state, change = ("turned", "false") if self.info.upright else ("not turned", "true")
        return f'. Photographs are {state} as their EXIF tag says: "upright": {change} in dataset.json changes that'


class AugmentedDataset(Dataset[Sample]):
    """Transformed samples by ``(epoch, index)``, determined by the seed in every process and worker.

    Args:
        dataset: the samples; all of them labelled.
        transform: applied to each sample with its own random generator.
        seed: of the run.
        skip_broken: replace a sample that cannot be read by the next one, whose `Sample.problem` says why.
        repeats: number of times that each sample belongs to an epoch, every time transformed anew.

    Raises:
        UserError: the list has lines without a label.
    """

    def __init__(
        self,
        dataset: ListDataset,
        transform: Transform,
        *,
        seed: int,
        skip_broken: bool = False,
        repeats: int = 1,
    ):
        if not dataset.has_labels:
            line = next(i for i, (_, label) in enumerate(dataset.pairs, start=1) if label is None)
            raise UserError(f"{dataset.list_path}, entry {line}: no label; training needs `image label` on every line")
        self.dataset = dataset
        self.transform = transform
        self.seed = seed
        self.skip_broken = skip_broken
        self.repeats = repeats

    def __len__(self) -> int:
        return self.repeats * len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        sample = self._readable(index)
        out = self.transform(sample, sample_rng(self.seed, epoch, index))
        return replace(out, problem=sample.problem)

    def _readable(self, index: int) -> Sample:
        """The sample or, where broken samples are skipped, the next one that can be read."""
        problems = []
        for following in range(len(self.dataset)):
            try:
                sample = self.dataset[(index + following) % len(self.dataset)]
            except UserError as error:
                if not self.skip_broken:
                    raise
                problems.append(str(error))
                continue
            return replace(sample, problem="; ".join(problems))
        raise UserError(f"{self.dataset.list_path}: no sample can be read; the first says: {problems[0]}")
