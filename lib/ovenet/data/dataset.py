"""The one dataset: a list file of images and labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from ovenet.data.catalog import DatasetInfo
from ovenet.data.files import read_image, read_label_ids, read_list, to_train_ids
from ovenet.structures import Sample
from ovenet.utils.seeding import sample_rng

Transform = Callable[[Sample, np.random.Generator], Sample]


class ListDataset(Dataset[Sample]):
    """Images and labels as they lie on disk, by index.

    Args:
        root: ``DATASET.ROOT``; the entries of the list are relative to ``root/<dataset's name>``.
        list_file: relative to `root`.
        info: the dataset's facts.
        ignore_label: train id of pixels that do not count.
        num_samples: use the first so many lines; 0 is all.

    Raises:
        ValueError: the list is missing, empty or malformed.
    """

    def __init__(self, root: Path, list_file: str, info: DatasetInfo, *, ignore_label: int, num_samples: int = 0):
        self.list_path = Path(root) / list_file
        self.folder = Path(root) / info.name
        self.info = info
        self.pairs = read_list(self.list_path)[: num_samples or None]
        self._table = info.train_id_table(ignore_label)

    @property
    def has_labels(self) -> bool:
        """Whether every line of the list names a label."""
        return all(label is not None for _, label in self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """Reads one line's files.

        Raises:
            ValueError: a file is missing or unreadable, a label value is no class, or the sizes differ.
        """
        image_name, label_name = self.pairs[index]
        image_path = self.folder / image_name
        image = read_image(image_path)
        if label_name is None:
            return Sample(image, None, image_name)
        label_path = self.folder / label_name
        ids = read_label_ids(label_path)
        if ids.shape != image.shape[:2]:
            raise ValueError(
                f"{label_path}: the label is {ids.shape[1]}x{ids.shape[0]} pixels, its image {image_path} "
                f"{image.shape[1]}x{image.shape[0]}; check that the list pairs them rightly"
            )
        return Sample(image, to_train_ids(ids, self._table, self.info, label_path), image_name)


class AugmentedDataset(Dataset[Sample]):
    """Transformed samples by ``(epoch, index)``, the same for a seed whichever process or worker asks.

    Args:
        dataset: the samples; all of them labelled.
        transform: applied to each with random numbers of its own.
        seed: the run's.

    Raises:
        ValueError: the list has lines without a label.
    """

    def __init__(self, dataset: ListDataset, transform: Transform, *, seed: int):
        if not dataset.has_labels:
            line = next(i for i, (_, label) in enumerate(dataset.pairs, start=1) if label is None)
            raise ValueError(f"{dataset.list_path}, entry {line}: no label; training needs `image label` on every line")
        self.dataset = dataset
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        return self.transform(self.dataset[index], sample_rng(self.seed, epoch, index))
