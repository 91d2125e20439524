"""Scores against loops and by hand."""

import math

import numpy as np
import pytest
import torch

from ovenet.evaluation.metrics import confusion_counts, confusion_tables, scores_from_counts


def test_counts_equal_loops():
    prediction, labels = torch.randint(0, 4, (3, 6, 7)), torch.randint(0, 4, (3, 6, 7))
    labels[torch.rand(3, 6, 7) < 0.3] = 255
    expected = np.zeros((4, 4), np.int64)
    for p, k in zip(prediction.flatten().tolist(), labels.flatten().tolist(), strict=True):
        if k != 255:
            expected[k, p] += 1
    counts = confusion_counts(prediction, labels.to(torch.int16), 4, ignore_label=255)
    assert counts.dtype == torch.int64
    np.testing.assert_array_equal(counts, expected)


def test_scores_by_hand():
    """Class c has no label: it is left out of the means, though one pixel was taken for it."""
    counts = torch.tensor([[3, 1, 0], [2, 4, 1], [0, 0, 0]])
    result = scores_from_counts(counts, ("a", "b", "c"))
    # a: 3 right, 1 missed, 2 wrongly claimed; b: 4 right, 3 missed, 1 wrongly claimed
    np.testing.assert_allclose(result.iou, [3 / 6, 4 / 8, np.nan])
    np.testing.assert_allclose(result.accuracy, [3 / 4, 4 / 7, np.nan])
    assert result.mean_iou == pytest.approx(0.5)
    assert result.mean_accuracy == pytest.approx((3 / 4 + 4 / 7) / 2)
    assert result.pixel_accuracy == pytest.approx(7 / 11)
    assert result.num_pixels == 11
    assert result.absent == ("c",)


def test_counts_beyond_float_precision_are_exact():
    counts = torch.tensor([[2**40 + 1, 0], [0, 1]])
    assert scores_from_counts(counts, ("a", "b")).num_pixels == 2**40 + 2


def test_nothing_labelled_gives_nan():
    result = scores_from_counts(torch.zeros(2, 2, dtype=torch.int64), ("a", "b"))
    assert math.isnan(result.mean_iou)
    assert math.isnan(result.pixel_accuracy)
    assert result.absent == ("a", "b")


@pytest.mark.parametrize("num_classes", [2, 19, 150])
@pytest.mark.parametrize("ignore_label", [255, -1])
def test_counts_and_means_equal_torchmetrics(num_classes, ignore_label):
    from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex  # takes seconds to import

    generator = torch.Generator().manual_seed(num_classes)
    shape = (2, 120, 130)
    prediction = torch.randint(0, num_classes, shape, generator=generator)
    labels = torch.where(torch.rand(shape, generator=generator) < 0.4, prediction, prediction.roll(1, dims=2))
    labels[torch.rand(shape, generator=generator) < 0.3] = ignore_label
    counts = confusion_counts(prediction, labels.to(torch.int16), num_classes, ignore_label=ignore_label)
    theirs = MulticlassConfusionMatrix(num_classes, ignore_index=ignore_label)(prediction, labels)
    torch.testing.assert_close(counts, theirs.to(torch.int64), atol=0, rtol=0)
    result = scores_from_counts(counts, [str(k) for k in range(num_classes)])
    mean_iou = MulticlassJaccardIndex(num_classes, ignore_index=ignore_label, average="macro")(prediction, labels)
    assert result.mean_iou == pytest.approx(float(mean_iou), abs=1e-6)
    valid = labels != ignore_label
    assert result.pixel_accuracy == pytest.approx(float((prediction == labels)[valid].double().mean()), abs=1e-12)


@pytest.mark.parametrize("num_classes", [4, 255, 300])
@pytest.mark.parametrize("ignore_label", [255, 300, -1])
def test_tables_of_bands_equal_loops(num_classes, ignore_label, monkeypatch):
    if 0 <= ignore_label < num_classes:
        pytest.skip("a class is no ignore label")
    monkeypatch.setattr("ovenet.evaluation.metrics._EXACT_FLOAT", 50)
    labels = torch.randint(0, num_classes, (9, 13))
    labels[torch.rand(9, 13) < 0.3] = ignore_label
    predictions = [torch.randint(0, num_classes, (9, 13)) for _ in range(2)]
    bands = torch.randint(0, 3, (9, 13), dtype=torch.uint8)
    tables = confusion_tables(
        predictions, labels.to(torch.int16), num_classes, ignore_label=ignore_label, bands=bands, num_bands=3
    )
    expected = np.zeros((2, 3, num_classes, num_classes), np.int64)
    for number, prediction in enumerate(predictions):
        for d, k, p in zip(*(x.flatten().tolist() for x in (bands, labels, prediction)), strict=True):
            if k != ignore_label:
                expected[number, d, k, p] += 1
    assert expected.sum() > 100
    np.testing.assert_array_equal(tables, expected)
