"""The real CamVid, where it is prepared."""

from pathlib import Path

import numpy as np
import pytest

from ovenet.data.catalog import CATALOG
from ovenet.data.dataset import ListDataset

ROOT = Path(__file__).parents[2] / "data"


@pytest.mark.data
@pytest.mark.parametrize(("split", "count"), [("train", 367), ("val", 101), ("test", 233)])
def test_every_pair_reads(split, count):
    dataset = ListDataset(ROOT, ROOT / f"list/camvid/{split}.lst", CATALOG["camvid"], ignore_label=255)
    assert len(dataset) == count
    present = set()
    for sample in dataset:
        assert sample.image.shape == (360, 480, 3)
        present |= set(np.unique(sample.labels).tolist())
    assert present == {*range(11), 255}
