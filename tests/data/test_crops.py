"""Crops of resized images against resizing everything and cropping then."""

import cv2
import numpy as np
import pytest

from ovenet.data.crops import ResizedCrop
from ovenet.data.transforms import IMAGENET, resize_image, resize_labels

FILL = 255


def resized_then_cropped(image, labels, crop):
    """What public code does: the whole image is resized and padded, and a window is cut out."""
    image, labels = resize_image(image, crop.scaled_size), resize_labels(labels, crop.scaled_size)
    bottom, right = (max(n - m, 0) for n, m in zip(crop.size, labels.shape, strict=True))
    image = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=IMAGENET.pad_color)
    labels = cv2.copyMakeBorder(labels, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=FILL)
    window = np.s_[crop.top : crop.top + crop.size[0], crop.left : crop.left + crop.size[1]]
    return image[window], labels[window]


def assert_same(image, labels, crop):
    expected_image, expected_labels = resized_then_cropped(image, labels, crop)
    np.testing.assert_array_equal(crop.of_labels(labels, FILL), expected_labels)
    difference = np.abs(crop.of_image(image, IMAGENET.pad_color).astype(int) - expected_image.astype(int))
    assert difference.shape == (*crop.size, 3)
    assert difference.max() <= 1
    return difference


@pytest.mark.parametrize("size", [(75, 131), (64, 96), (96, 64), (1, 9), (7, 1)])
@pytest.mark.parametrize("step", range(17))
def test_every_scale_and_place(size, step):
    """Black and white noise has the steepest edges that there are."""
    rng = np.random.default_rng(step)
    image = (rng.integers(0, 2, (*size, 3)) * 255).astype(np.uint8)
    labels = rng.integers(0, 19, size).astype(np.int16)
    scaled = tuple(max(1, round(n * (0.5 + step / 10))) for n in size)
    for _ in range(5):
        window = (40, 56)
        top, left = (int(rng.integers(max(n - w, 0) + 1)) for n, w in zip(scaled, window, strict=True))
        assert_same(image, labels, ResizedCrop(scaled, top, left, window))


def test_most_pixels_are_equal():
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (300, 400, 3)).astype(np.uint8), (0, 0), 3)
    difference = assert_same(image, np.zeros((300, 400), np.int16), ResizedCrop((413, 551), 100, 200, (256, 320)))
    assert (difference > 0).mean() < 0.3


def test_the_image_at_its_own_size_is_only_cut():
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    crop = ResizedCrop((30, 40), 5, 7, (20, 30))
    np.testing.assert_array_equal(crop.of_image(image, IMAGENET.pad_color), image[5:25, 7:37])


def test_narrow_labels_are_widened():
    labels = np.random.default_rng(0).integers(0, 256, (30, 40)).astype(np.uint8)
    window = ResizedCrop((60, 80), 0, 0, (30, 40)).of_labels(labels, FILL)
    assert window.dtype == np.int16
    np.testing.assert_array_equal(window, resize_labels(labels.astype(np.int16), (60, 80))[:30, :40])
