"""Sampling by gathers against torch's `grid_sample`, and against a slow loop over pixels."""

import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.geometry.test_resample import bilinear_by_hand

from ovenet.geometry import SRM, GatherSampling, sample_bilinear, warp
from ovenet.geometry.gather import gather_bilinear

SIZES = [(1, 1), (1, 7), (4, 1), (5, 8), (17, 23)]
CONVENTIONS = [(mode, align) for mode in ("border", "zeros") for align in (True, False)]


def positions(number, dtype=torch.float32):
    """``(2, 2, number, 9)``: in the map, over its border, exactly on it, on pixel centres, and far away."""
    position = torch.rand(2, 2, number, 9, dtype=dtype) * 3 - 1.5
    position[:, :, 0] = torch.tensor([-1.0, 1.0, 0.0, 0.5, -0.5, 1.5, 1e9, -1e30, 7.0], dtype=dtype)
    position[1, 1, 0] = torch.tensor([1.0, 1.0, -1.0, 0.25, 0.0, -1e9, 0.0, 1e30, 1.0], dtype=dtype)
    position[1, :, 1] = float("nan")
    return position


@pytest.mark.parametrize(("padding_mode", "align_corners"), CONVENTIONS)
@pytest.mark.parametrize("size", SIZES)
def test_gathers_give_what_grid_sample_gives(size, padding_mode, align_corners):
    for dtype, limit in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        values, position = torch.rand(2, 3, *size, dtype=dtype), positions(11, dtype)
        options = {"padding_mode": padding_mode, "align_corners": align_corners}
        expected = sample_bilinear(values, position, **options)
        with GatherSampling():
            sampled = sample_bilinear(values, position, **options)
        torch.testing.assert_close(sampled, expected, rtol=0, atol=limit)


@pytest.mark.parametrize(("padding_mode", "align_corners"), CONVENTIONS)
def test_gathers_give_what_a_loop_gives(padding_mode, align_corners):
    height, width = 3, 5
    values = torch.randn(2, 2, height, width, dtype=torch.float64)
    grid = torch.rand(2, 4, 6, 2, dtype=torch.float64) * 2.6 - 1.3
    sampled = gather_bilinear(values, grid, padding_mode=padding_mode, align_corners=align_corners)
    for b, i, j in np.ndindex(2, 4, 6):
        x, y = (
            (g + 1) / 2 * (n - 1) if align_corners else (g + 1) / 2 * n - 0.5
            for g, n in zip(grid[b, i, j].tolist(), (width, height), strict=True)
        )
        if padding_mode == "border":
            x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
        expected = bilinear_by_hand(values[b].numpy(), x, y, outside_is_zero=padding_mode == "zeros")
        np.testing.assert_allclose(sampled[b, :, i, j], expected, atol=1e-12)


def test_many_channels_and_a_large_map():
    """As wide as the scores of a 2048-pixel image; neighbours differ by 1/100 at most, a rounded position by less."""
    values = F.interpolate(torch.rand(1, 300, 2, 5), (16, 512), mode="bilinear", align_corners=True)
    position = positions(5)[:1]
    with GatherSampling():
        sampled = sample_bilinear(values, position, align_corners=False)
    torch.testing.assert_close(sampled, sample_bilinear(values, position, align_corners=False), rtol=0, atol=1e-6)


def test_only_bilinear_samples_of_maps_gather_and_in_this_thread_alone():
    calls = []

    class Counted(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            calls.append(func)
            return func(*args, **(kwargs or {}))

    values, grid = torch.rand(1, 2, 4, 5), torch.rand(1, 3, 3, 2)
    for mode in ("nearest", "bicubic"):
        expected = F.grid_sample(values, grid, mode=mode, align_corners=False)
        with GatherSampling():
            assert torch.equal(F.grid_sample(values, grid, mode=mode, align_corners=False), expected)
    with Counted(), GatherSampling():
        F.grid_sample(values, grid)
        other = threading.Thread(target=lambda: calls.append(F.grid_sample(values, grid, align_corners=False)))
        other.start()
        other.join()
    samples = [one for one in calls if isinstance(one, torch.Tensor)]
    assert torch.equal(samples[0], F.grid_sample(values, grid, align_corners=False))
    assert F.grid_sample not in calls
    assert torch.Tensor.index_select in calls


def test_outside_of_the_context_nothing_changes():
    values, field = torch.rand(2, 4, 9, 7), torch.randn(2, 4, 9, 7)
    before = warp(values, field, SRM, num_groups=2)
    with GatherSampling():
        torch.testing.assert_close(warp(values, field, SRM, num_groups=2), before, rtol=0, atol=1e-6)
    assert torch.equal(warp(values, field, SRM, num_groups=2), before)
