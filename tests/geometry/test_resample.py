"""Seed resampling against slow loops over pixels."""

import math

import numpy as np
import pytest
import torch

from ovenet.geometry import lookup_labels, pixel_grid, refine_offset, sample_bilinear, seed_position

SIZES = [(5, 7), (7, 5), (1, 6), (4, 1), (1, 1)]


def bilinear_by_hand(values: np.ndarray, x: float, y: float, *, outside_is_zero: bool) -> np.ndarray:
    """``values`` (C, h, w) at pixel coordinates (x, y)."""
    _, h, w = values.shape
    total = np.zeros(values.shape[0])
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            weight = max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
            inside = 0 <= row < h and 0 <= column < w
            if outside_is_zero and not inside:
                continue
            total += weight * values[:, min(max(row, 0), h - 1), min(max(column, 0), w - 1)]
    return total


def to_pixels(normalized: float, n: int) -> float:
    return (normalized + 1) / 2 * (n - 1)


@pytest.mark.parametrize("size", SIZES)
def test_zero_offset_is_the_identity(size):
    scores = torch.randn(2, 3, *size)
    sampled = sample_bilinear(scores, seed_position(torch.zeros(2, 2, *size)))
    torch.testing.assert_close(sampled, scores, atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_sampling_equals_loops(size):
    h, w = size
    scores = torch.randn(2, 3, h, w, dtype=torch.float64)
    offset = torch.empty(2, 2, h, w, dtype=torch.float64).uniform_(-0.9, 0.9)
    sampled = sample_bilinear(scores, seed_position(offset))
    for b in range(2):
        for i in range(h):
            for j in range(w):
                p = (0.0 if w == 1 else -1 + 2 * j / (w - 1), 0.0 if h == 1 else -1 + 2 * i / (h - 1))
                q = [min(max(p[axis] + offset[b, axis, i, j].item(), -1), 1) for axis in (0, 1)]
                expected = bilinear_by_hand(
                    scores[b].numpy(), to_pixels(q[0], w), to_pixels(q[1], h), outside_is_zero=False
                )
                np.testing.assert_allclose(sampled[b, :, i, j], expected, atol=1e-9)


def test_an_offset_of_one_pixel_fetches_the_neighbour():
    scores = torch.arange(12.0).view(1, 1, 3, 4)
    offset = torch.zeros(1, 2, 3, 4)
    offset[:, 0] = 2 / 3  # one of the three steps between the four columns
    expected = torch.tensor([[1.0, 2, 3, 3], [5, 6, 7, 7], [9, 10, 11, 11]])
    torch.testing.assert_close(sample_bilinear(scores, seed_position(offset))[0, 0], expected)


def test_refinement_follows_the_seeds_own_offset():
    offset = torch.zeros(1, 2, 1, 5, dtype=torch.float64)
    offset[0, 0, 0] = torch.tensor([0.5, 0.25, 1.0, 0.0, 2.0])  # pixels lie 0.5 apart
    refined = refine_offset(offset, 1)
    # pixel 0 -> pixel 1, whose offset is 0.25; pixel 1 -> halfway between 1 and 2: (0.25 + 1) / 2;
    # pixel 2 -> pixel 4: 2; pixel 3 stays; pixel 4 is clamped to itself: 2 more
    np.testing.assert_allclose(refined[0, 0, 0], [0.75, 0.875, 3.0, 0.0, 4.0])
    assert refine_offset(offset, 0) is offset


def test_label_lookup_equals_loops():
    labels = torch.randint(0, 9, (2, 5, 8))
    position = torch.empty(2, 2, 7, 6).uniform_(-1.3, 1.3)
    found = lookup_labels(labels, position)
    for b in range(2):
        for i in range(7):
            for j in range(6):
                x = min(max(round(to_pixels(position[b, 0, i, j].item(), 8)), 0), 7)
                y = min(max(round(to_pixels(position[b, 1, i, j].item(), 5)), 0), 4)
                assert found[b, i, j] == labels[b, y, x]


def test_label_lookup_between_edges_is_the_pixel_that_a_position_lies_in():
    """Of 4 pixels in a row, each 0.5 wide; outside it is the one at the border."""
    labels = torch.tensor([[[5, 6, 7, 8]]])
    x = torch.tensor([-1.2, -0.99, -0.51, -0.49, -0.01, 0.01, 0.49, 0.51, 0.99, 1.2])
    position = torch.stack((x, torch.zeros_like(x))).view(1, 2, 1, 10)
    assert lookup_labels(labels, position, align_corners=False).tolist() == [[[5, 5, 5, 6, 6, 7, 7, 8, 8, 8]]]


def test_grid_ends_at_the_corner_pixels_centres():
    grid = pixel_grid((3, 5))
    assert grid.shape == (1, 2, 3, 5)
    np.testing.assert_allclose(grid[0, 0, 0], [-1, -0.5, 0, 0.5, 1])
    np.testing.assert_allclose(grid[0, 1, :, 0], [-1, 0, 1])


def test_sampling_has_right_gradients():
    scores = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    offset = torch.empty(1, 2, 4, 5, dtype=torch.float64).uniform_(-0.3, 0.3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s, o: sample_bilinear(s, seed_position(refine_offset(o, 1))), (scores, offset)
    )


def test_positions_that_are_not_numbers_do_no_harm():
    """On the CPU, torch's grid_sample ends the process with a segmentation fault in its backward pass."""
    values = torch.rand(1, 2, 33, 47, requires_grad=True)
    position = torch.full((1, 2, 33, 47), float("nan"), requires_grad=True)
    sample_bilinear(values, position).sum().backward()
    assert values.grad.isfinite().all()
    offset = torch.full((1, 2, 9, 9), float("nan"), requires_grad=True)
    seed = sample_bilinear(torch.rand(1, 2, 9, 9), seed_position(torch.tanh(offset)))
    seed.sum().backward()
    assert offset.grad.isnan().all()  # a step can tell by its gradient
