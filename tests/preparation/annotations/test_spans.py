"""Polygons and run lengths against pycocotools, to the pixel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from ovenet.errors import UserError
from ovenet.preparation.annotations.spans import (
    count_pixels,
    fill,
    join,
    mask_spans,
    polygon_spans,
    resize,
    run_spans,
)

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))
# Around the image and on both sides of it, on pixels, on the grid of fifths, and anywhere.
COORDINATES = st.one_of(
    st.integers(-60, 100),
    st.integers(-100, 250).map(lambda n: n / 5),
    st.integers(-100, 250).map(lambda n: n / 10),
    st.floats(-60, 100, allow_nan=False, width=32),
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
RINGS = st.lists(st.tuples(COORDINATES, COORDINATES), min_size=3, max_size=9)


def decoded(ring, size):
    [runs] = coco.frPyObjects([np.ravel(ring).tolist()], *size)
    return coco.decode(runs).astype(bool)


@given(RINGS, SIZES)
@settings(max_examples=800, deadline=None)
def test_polygons(ring, size):
    spans = polygon_spans(np.array(ring, float), size)
    np.testing.assert_array_equal(fill(spans, size), decoded(ring, size))
    assert count_pixels(spans) == decoded(ring, size).sum()


def test_many_corners():
    """A star of 500 corners on a larger image, whose edges cross each other."""
    rng = np.random.default_rng(0)
    ring = rng.uniform(-50, 700, (500, 2)).round(2)
    np.testing.assert_array_equal(fill(polygon_spans(ring, (480, 640)), (480, 640)), decoded(ring, (480, 640)))


def test_far_corners():
    """Beyond what pycocotools can count: a triangle of which the image sees one straight edge, at x = 4."""
    ring = np.array([[4, -3e9], [3e9, 0], [4, 3e9]], float)
    expected = np.zeros((6, 10), bool)
    expected[:, 4:] = True
    np.testing.assert_array_equal(fill(polygon_spans(ring, (6, 10)), (6, 10)), expected)
    assert not len(polygon_spans(np.array([[1e300, 0], [1e308, 5], [1e300, 9]]), (6, 10)))


@given(st.lists(RINGS, min_size=0, max_size=4), SIZES)
@settings(max_examples=200, deadline=None)
def test_joined_polygons(rings, size):
    expected = np.zeros(size, bool)
    for ring in rings:
        expected |= decoded(ring, size)
    joined = join([polygon_spans(np.array(ring, float), size) for ring in rings])
    np.testing.assert_array_equal(fill(joined, size), expected)
    assert (joined[1:, 0] >= joined[:-1, 1]).all()


MASKS = SIZES.flatmap(
    lambda size: st.lists(st.integers(0, 2 ** size[1] - 1), min_size=size[0], max_size=size[0]).map(
        lambda rows: np.array([[row >> x & 1 for x in range(size[1])] for row in rows], bool)
    )
)


@given(MASKS)
@settings(max_examples=200, deadline=None)
def test_run_lengths(mask):
    runs = coco.encode(np.asfortranarray(mask, np.uint8))
    size, spans = run_spans({"size": list(mask.shape), "counts": runs["counts"].decode()})
    assert size == mask.shape
    np.testing.assert_array_equal(fill(spans, size), mask)
    np.testing.assert_array_equal(spans, mask_spans(mask))
    edges = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=False))
    counts = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
    np.testing.assert_array_equal(run_spans({"size": list(mask.shape), "counts": counts})[1], spans)


def test_long_compressed_lengths():
    """Numbers of several characters, and differences of both signs."""
    mask = np.zeros((700, 900), np.uint8, order="F")
    mask[3:650, 5:9], mask[600:, 100:700], mask[0, 899] = 1, 1, 1
    spans = run_spans({"size": [700, 900], "counts": coco.encode(mask)["counts"].decode()})[1]
    np.testing.assert_array_equal(fill(spans, (700, 900)), mask)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([3, 4], r"do not make up 4 x 5 pixels \(7 pixels in all\)"),
        ([-3, 23], r"one of -3"),
        ([0, 10**15], r"one of 1000000000000000"),
        ([0, 10**30], "more than 63 bits"),
        ([2.5, 17.5], "no integers"),
        ([float("nan"), 20], "no integers"),
        ([float("inf"), 20], "no integers"),
        (["20"], "no integers"),
        ([True, 19], "no integers"),
        (None, "no integers"),
        ("T", "cut off"),
        ("Ã", "stands for nothing"),
        ("4 4", "stands for nothing"),
        ("\ud800", "stands for nothing"),
        ("oooooooooooo0", "more than 32 bits"),
        ("", r"\(0 pixels in all\)"),
        ([], r"\(0 pixels in all\)"),
    ],
)
def test_bad_run_lengths(counts, message):
    with pytest.raises(UserError, match=message):
        run_spans({"size": [4, 5], "counts": counts})


@pytest.mark.parametrize("size", [None, [4], [4, 0], [4, -5], [4.0, 5], "45", [4, True]])
def test_bad_sizes(size):
    with pytest.raises(UserError, match=r"expected \[height, width\]"):
        run_spans({"size": size, "counts": [20]})


def test_resizing():
    """Twice as large each pixel becomes four; half as large each second one stays, also of an image that would not fit
    into memory."""
    mask = np.random.default_rng(0).random((7, 9)) < 0.5
    larger = resize(mask_spans(mask), (7, 9), (14, 18))
    np.testing.assert_array_equal(fill(larger, (14, 18)), mask.repeat(2, axis=0).repeat(2, axis=1))
    np.testing.assert_array_equal(fill(resize(larger, (14, 18), (7, 9)), (7, 9)), mask)
    half = resize(np.array([[0, 10**11]]), (10**6, 2 * 10**5), (10, 2))
    np.testing.assert_array_equal(fill(half, (10, 2)), [[True, False]] * 10)
