"""The script docs/seed_reach.py against a search of every pixel."""

import importlib.util
from pathlib import Path

import numpy as np


def test_wrong_pixels_within_reach_of_right_ones():
    path = Path(__file__).parents[1] / "docs/seed_reach.py"
    spec = importlib.util.spec_from_file_location("seed_reach", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (9, 13))
    labels[2] = 255
    predicted = np.where(rng.random(labels.shape) < 0.2, labels, (labels + 1) % 3)
    limits = (0.2, 0.5)  # of 13 x 9 pixels: one pixel to the side and none up, three and two
    expected = np.zeros((3, 4), dtype=int)
    for y, x in np.ndindex(*labels.shape):
        k = labels[y, x]
        if k == 255:
            continue
        expected[k, 0] += 1
        if predicted[y, x] == k:
            continue
        expected[k, 1] += 1
        for column, (side, up) in enumerate(((1, 0), (3, 2))):
            around = np.s_[max(y - up, 0) : y + up + 1, max(x - side, 0) : x + side + 1]
            expected[k, 2 + column] += ((labels[around] == k) & (predicted[around] == k)).any()
    found = module.wrong_and_within_reach(labels, predicted, 3, limits)
    np.testing.assert_array_equal(found, expected)
    assert 0 < found[:, 2].sum() < found[:, 3].sum() < found[:, 1].sum()
