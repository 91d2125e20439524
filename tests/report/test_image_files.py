"""Files of a test, written in threads behind it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ovenet.data.catalog import CATALOG
from ovenet.evaluation.evaluator import SegEvaluator
from ovenet.evaluation.partial import PartialEvaluation
from ovenet.inference.inferencer import Prediction
from ovenet.report.image_files import ImageWriter
from ovenet.structures import Sample

CPU = torch.device("cpu")


class Listed(SimpleNamespace):
    def __len__(self):
        return len(self.pairs)


@pytest.fixture
def writer(tmp_path):
    info = CATALOG["synthetic"]
    dataset = Listed(info=info, has_labels=True, pairs=[(f"{n}.png", "") for n in range(40)])
    made = ImageWriter(dataset, None, tmp_path, save_predictions=True, gallery=False)
    made._num_rows_left = 0  # pictures need a network
    return made


def write(writer, index):
    labels = torch.full((64, 96), index % 3, dtype=torch.uint8)
    writer.write(index, Sample(np.zeros((64, 96, 3), np.uint8), None, f"{index}.png"), Prediction({"fused": labels}))


def test_all_files_are_there_after_waiting(writer, tmp_path):
    for index in range(40):
        write(writer, index)
    writer.wait()
    assert all(map(writer.has_written, range(40)))
    colors = [np.unique(np.asarray(Image.open(tmp_path / "predictions" / "color" / f"{n}.png"))) for n in range(40)]
    assert [c.tolist() for c in colors] == [[n % 3] for n in range(40)]


def test_counts_are_not_saved_before_the_files_nor_without_them(writer, tmp_path):
    """An image whose counts are kept is not evaluated again: its files must be there by then."""
    evaluator = SegEvaluator(CATALOG["synthetic"], ("fused",), ignore_label=255, detailed=False, device=CPU)
    partial = PartialEvaluation(tmp_path / "unfinished", {}, interval_s=0.0, before_save=writer.wait)
    partial.begin(0)
    for index in range(3):
        write(writer, index)
        partial.add({"index": index}, evaluator)
        assert writer.has_written(index)
    (tmp_path / "predictions" / "ids" / "7.png").mkdir()  # cannot be replaced by a file
    write(writer, 7)
    with pytest.raises(OSError, match=r"7\.png"):
        partial.add({"index": 7}, evaluator)
    writer.wait()
    assert PartialEvaluation(tmp_path / "unfinished", {}).join() == {0, 1, 2}
