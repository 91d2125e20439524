"""Rows of a resized map against torch's own resize of the whole."""

import pytest
import torch
import torch.nn.functional as F

from ovenet.geometry import add_resized_rows_gradient, resize_rows, source_rows


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("in_size", "out_size"),
    [
        ((7, 90), (31, 400)),
        ((7, 400), (31, 90)),
        ((7, 9), (31, 20)),
        ((31, 20), (7, 9)),
        ((1, 1), (5, 3)),
        ((9, 6), (9, 13)),
        ((5, 4), (1, 1)),
    ],
)
@pytest.mark.parametrize("num_rows", [1, 4, 100])
def test_bands_make_up_the_resized_map(align_corners, in_size, out_size, num_rows):
    values = torch.randn(3, *in_size, dtype=torch.float64)
    expected = F.interpolate(values[None], size=out_size, mode="bilinear", align_corners=align_corners)
    bands = [
        resize_rows(
            values.permute(1, 0, 2),
            out_size,
            range(first, min(first + num_rows, out_size[0])),
            align_corners=align_corners,
        )
        for first in range(0, out_size[0], num_rows)
    ]
    torch.testing.assert_close(torch.cat(bands).permute(1, 0, 2), expected[0])


@pytest.mark.parametrize("align_corners", [True, False])
def test_the_rows_that_it_names_are_enough(align_corners):
    values = torch.randn(13, 2, 8)
    rows = range(17, 23)
    first, last = source_rows(13, 40, rows, align_corners=align_corners)
    whole = resize_rows(values, (40, 21), rows, align_corners=align_corners)
    part = resize_rows(
        values[first : last + 1], (40, 21), rows, align_corners=align_corners, in_height=13, first_row=first
    )
    assert torch.equal(part, whole)
    assert last - first < 6


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("in_size", "out_size"), [((7, 90), (31, 200)), ((31, 90), (7, 40)), ((9, 6), (9, 13)), ((5, 4), (9, 4))]
)
def test_the_gradient_is_that_of_torch(align_corners, in_size, out_size):
    values = torch.randn(1, 3, *in_size, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(1, 3, *out_size, dtype=torch.float64)
    F.interpolate(values, size=out_size, mode="bilinear", align_corners=align_corners).backward(gradient)
    total = torch.zeros(in_size[0], 3, in_size[1], dtype=torch.float64)
    for first in range(0, out_size[0], 4):
        rows = range(first, min(first + 4, out_size[0]))
        part = gradient[0, :, rows.start : rows.stop].permute(1, 0, 2).contiguous()
        add_resized_rows_gradient(part, total, out_size[0], rows, align_corners=align_corners)
    torch.testing.assert_close(total.permute(1, 0, 2), values.grad[0])
