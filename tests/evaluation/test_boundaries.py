"""Boundary measures against slow ones by scipy, class by class."""

import numpy as np
import pytest
from scipy import ndimage

from ovenet.evaluation import boundaries
from ovenet.evaluation.boundaries import IGNORE

NUM_CLASSES = 5
SQUARE = np.ones((3, 3), bool)


def random_maps(seed, size=(43, 58)):
    """A blocky label with ignored, and a prediction that differs from it in places, ignored at the same pixels."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, NUM_CLASSES, (8, 10))
    labels = np.kron(small, np.ones((6, 6), int))[: size[0], : size[1]].astype(np.int16)
    prediction = np.roll(labels, (2, -1), (0, 1))
    prediction[10:20, 30:41] = 3
    ignored = np.zeros(size, bool)
    ignored[25:33, 5:20] = True
    ignored |= rng.random(size) < 0.01
    return np.where(ignored, np.int16(IGNORE), labels), np.where(ignored, np.int16(IGNORE), prediction)


def slow_contour(labels):
    """Pixels of a class with one of eight neighbours in another class."""
    contour = np.zeros(labels.shape, bool)
    for k in range(NUM_CLASSES):
        others = (labels != k) & (labels != IGNORE)
        contour |= (labels == k) & ndimage.binary_dilation(others, SQUARE)
    return contour


def slow_band(mask, width):
    """Cheng et al.: the mask without its erosion, outside being no mask."""
    return mask & ~ndimage.binary_erosion(mask, SQUARE, iterations=width, border_value=0)


@pytest.mark.parametrize("seed", range(3))
def test_contours(seed):
    for labels in random_maps(seed):
        np.testing.assert_array_equal(boundaries.contour_mask(labels), slow_contour(labels))


def test_void_and_the_border_make_no_contour():
    labels = np.zeros((5, 6), np.int16)
    labels[2, 3] = IGNORE
    assert not boundaries.contour_mask(labels).any()


def test_distances_are_euclidean():
    mask = np.random.default_rng(0).random((41, 60)) < 0.01
    np.testing.assert_allclose(boundaries.distance_to(mask), ndimage.distance_transform_edt(~mask), rtol=1e-5)
    assert boundaries.distance_to(np.zeros((3, 4), bool)).min() > 1e6


@pytest.mark.parametrize("seed", range(3))
def test_boundary_iou_counts(seed):
    labels, prediction = random_maps(seed)
    widths = (1, 3, 7)
    bands = [boundaries.inner_band(m, widths) for m in (labels, prediction)]
    own = boundaries.band_counts(labels, bands[0], NUM_CLASSES)
    counts = boundaries.inner_band_counts(labels, bands[0], own, prediction, bands[1], NUM_CLASSES)
    for i, width in enumerate(widths):
        for k in range(NUM_CLASSES):
            true, predicted = slow_band(labels == k, width), slow_band(prediction == k, width)
            expected = [(true & predicted).sum(), true.sum(), predicted.sum()]
            np.testing.assert_array_equal(counts[i, k], expected)


@pytest.mark.parametrize("seed", range(3))
def test_contour_matches(seed):
    labels, prediction = random_maps(seed)
    widths = (1, 2, 5)
    both = [boundaries.Contours(m, boundaries.contour_mask(m), widths, NUM_CLASSES) for m in (labels, prediction)]
    counts = boundaries.contour_matches(*both)
    true_contour, predicted_contour = slow_contour(labels), slow_contour(prediction)
    for i, width in enumerate(widths):
        for k in range(NUM_CLASSES):
            true, predicted = true_contour & (labels == k), predicted_contour & (prediction == k)
            near_true, near_predicted = (
                ndimage.binary_dilation(mask, SQUARE, iterations=width) for mask in (true, predicted)
            )
            expected = [(predicted & near_true).sum(), predicted.sum(), (true & near_predicted).sum(), true.sum()]
            np.testing.assert_array_equal(counts[i, k], expected)


def test_segments_are_connected_regions():
    labels, _ = random_maps(0)
    segments, classes = boundaries.segment_map(labels, NUM_CLASSES)
    expected = 0
    for k in range(NUM_CLASSES):
        numbers, count = ndimage.label(labels == k, SQUARE)
        expected += count
        for number in range(1, count + 1):
            own = segments[numbers == number]
            assert (own == own[0]).all()
            assert (segments == own[0]).sum() == len(own)
            assert classes[own[0]] == k
    assert len(classes) == expected + 1
    assert (segments[labels == IGNORE] == 0).all()


def test_widths_are_shares_of_the_diagonal():
    assert boundaries.boundary_widths((30, 40), (0.02, 0.1)) == (1, 5)
    assert boundaries.boundary_widths((1024, 2048), (0.005, 0.02)) == (11, 46)
    assert boundaries.boundary_widths((4, 4), (0.005,)) == (1,)
