"""Rows of a resized map against torch's own resize of the whole."""

import pytest
import torch
import torch.nn.functional as F

from ovenet.geometry import resize_rows, source_rows


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("in_size", "out_size"),
    [((7, 9), (31, 20)), ((31, 20), (7, 9)), ((1, 1), (5, 3)), ((9, 6), (9, 13)), ((5, 4), (1, 1))],
)
@pytest.mark.parametrize("num_rows", [1, 4, 100])
def test_bands_make_up_the_resized_map(align_corners, in_size, out_size, num_rows):
    values = torch.randn(2, 3, *in_size)
    expected = F.interpolate(values, size=out_size, mode="bilinear", align_corners=align_corners)
    bands = [
        resize_rows(values, out_size, range(first, min(first + num_rows, out_size[0])), align_corners=align_corners)
        for first in range(0, out_size[0], num_rows)
    ]
    torch.testing.assert_close(torch.cat(bands, dim=2), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("align_corners", [True, False])
def test_the_rows_that_it_names_are_enough(align_corners):
    values = torch.randn(1, 2, 13, 8)
    rows = range(17, 23)
    first, last = source_rows(13, 40, rows, align_corners=align_corners)
    whole = resize_rows(values, (40, 21), rows, align_corners=align_corners)
    part = resize_rows(
        values[:, :, first : last + 1], (40, 21), rows, align_corners=align_corners, in_height=13, first_row=first
    )
    assert torch.equal(part, whole)
    assert last - first < 6
