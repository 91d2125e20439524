"""Facts about datasets, as data: classes, colours, label ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

INVALID = np.iinfo(np.int16).min  # what `train_id_table` holds for ids that the dataset does not know


@dataclass(frozen=True)
class DatasetInfo:
    """One dataset.

    Attributes:
        name: its folder below ``DATASET.ROOT``, and the value of ``DATASET.DATASET``.
        class_names: ``K`` names, in the order of the train ids.
        palette: an ``(R, G, B)`` per class.
        label_ids: the id in the label files of each class, in the order of the train ids.
        ignored_ids: ids in the label files that do not count.
        layout: how the files lie, see `ovenet.data.prepare`.
        class_weights: ``K`` loss weights, or None.
    """

    name: str
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    label_ids: tuple[int, ...]
    ignored_ids: tuple[int, ...]
    layout: str
    class_weights: tuple[float, ...] | None = None

    @property
    def num_classes(self) -> int:
        """``K``."""
        return len(self.class_names)

    def train_id_table(self, ignore_label: int) -> np.ndarray:
        """Table from label file ids to train ids.

        Args:
            ignore_label: train id of the ids that do not count.

        Returns:
            ``(256,)`` int16; `INVALID` for ids that the dataset does not know.
        """
        table = np.full(256, INVALID, dtype=np.int16)
        table[list(self.ignored_ids)] = ignore_label
        table[list(self.label_ids)] = np.arange(self.num_classes)
        return table

    def label_id_table(self) -> np.ndarray:
        """Table ``(K,)`` uint8 from train ids back to the ids of the label files."""
        return np.array(self.label_ids, dtype=np.uint8)


# Names, ids, train ids and colours as published with the Cityscapes dataset (Cordts et al., 2016).
_CITYSCAPES = (
    ("road", 7, (128, 64, 128), 0.8373),
    ("sidewalk", 8, (244, 35, 232), 0.918),
    ("building", 11, (70, 70, 70), 0.866),
    ("wall", 12, (102, 102, 156), 1.0345),
    ("fence", 13, (190, 153, 153), 1.0166),
    ("pole", 17, (153, 153, 153), 0.9969),
    ("traffic light", 19, (250, 170, 30), 0.9754),
    ("traffic sign", 20, (220, 220, 0), 1.0489),
    ("vegetation", 21, (107, 142, 35), 0.8786),
    ("terrain", 22, (152, 251, 152), 1.0023),
    ("sky", 23, (70, 130, 180), 0.9539),
    ("person", 24, (220, 20, 60), 0.9843),
    ("rider", 25, (255, 0, 0), 1.1116),
    ("car", 26, (0, 0, 142), 0.9037),
    ("truck", 27, (0, 0, 70), 1.0865),
    ("bus", 28, (0, 60, 100), 1.0955),
    ("train", 31, (0, 80, 100), 1.0865),
    ("motorcycle", 32, (0, 0, 230), 1.1529),
    ("bicycle", 33, (119, 11, 32), 1.0507),
)
# The 11 classes that SegNet made common (Badrinarayanan et al., 2017), in the order of its label files.
_CAMVID = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (0, 0, 192)),
    ("tree", (128, 128, 0)),
    ("sign symbol", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)


def _cityscapes_like(name: str, *, with_weights: bool) -> DatasetInfo:
    label_ids = tuple(row[1] for row in _CITYSCAPES)
    return DatasetInfo(
        name=name,
        class_names=tuple(row[0] for row in _CITYSCAPES),
        palette=tuple(row[2] for row in _CITYSCAPES),
        label_ids=label_ids,
        ignored_ids=tuple(i for i in range(34) if i not in label_ids),
        layout="cityscapes",
        class_weights=tuple(row[3] for row in _CITYSCAPES) if with_weights else None,
    )


CATALOG: dict[str, DatasetInfo] = {
    info.name: info
    for info in (
        _cityscapes_like("cityscapes", with_weights=True),
        _cityscapes_like("synthetic", with_weights=False),
        DatasetInfo(
            name="camvid",
            class_names=tuple(row[0] for row in _CAMVID),
            palette=tuple(row[1] for row in _CAMVID),
            label_ids=tuple(range(11)),
            ignored_ids=(11,),
            layout="camvid",
        ),
    )
}


def find_dataset(name: str) -> DatasetInfo:
    """The catalog's entry.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in CATALOG:
        raise ValueError(f"DATASET.DATASET is {name!r}; expected one of {', '.join(sorted(CATALOG))}")
    return CATALOG[name]
