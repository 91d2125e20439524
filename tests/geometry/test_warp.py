"""One warp in four conventions, against each other, loops and the formulas of the systems."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ovenet.geometry import FLOW_ALIGNMENT, FREQ_FUSION, OVENET, SRM, sample_bilinear, seed_position, warp

ALL = {"ovenet": OVENET, "srm": SRM, "flow alignment": FLOW_ALIGNMENT, "freqfusion": FREQ_FUSION}
H, W = 7, 10


def units_per_pixel(name):
    """One pixel of the field in the units of each system, ``(x, y)``."""
    return {
        "ovenet": (2 / (W - 1), 2 / (H - 1)),
        "srm": (1.0, 1.0),
        "flow alignment": (2 * W / (W - 1), 2 * H / (H - 1)),  # flow / size, of a grid whose step is 2 / (size - 1)
        "freqfusion": (0.5, 0.5),  # pixels of the map of half the size
    }[name]


def field(name, dx, dy):
    x, y = units_per_pixel(name)
    return torch.tensor([dx * x, dy * y], dtype=torch.float64).view(1, 2, 1, 1).expand(2, 2, H, W)


@pytest.mark.parametrize("name", ALL)
def test_no_displacement_is_the_identity(name):
    values = torch.randn(2, 3, H, W, dtype=torch.float64)
    torch.testing.assert_close(warp(values, torch.zeros(2, 2, H, W), ALL[name]), values, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (0, -1), (2, 1)])
def test_whole_pixels_shift_the_map(name, dx, dy):
    values = torch.randn(2, 3, H, W, dtype=torch.float64)
    moved = warp(values, field(name, dx, dy), ALL[name])
    for y in range(H):
        for x in range(W):
            if 0 <= y + dy < H and 0 <= x + dx < W:
                torch.testing.assert_close(moved[:, :, y, x], values[:, :, y + dy, x + dx], atol=1e-12, rtol=0)


def test_half_pixels_are_the_same_in_all_conventions_inside_the_border():
    values = torch.randn(2, 3, H, W, dtype=torch.float64)
    moved = [warp(values, field(name, 0.5, -0.25), convention) for name, convention in ALL.items()]
    inside = np.s_[..., 1:-1, 1:-1]
    for other in moved[1:]:
        torch.testing.assert_close(other[inside], moved[0][inside], atol=1e-12, rtol=0)


def test_outside_lies_the_border_or_nothing():
    values = torch.ones(2, 1, H, W, dtype=torch.float64)
    far = {name: warp(values, field(name, 3 * W, 0), convention) for name, convention in ALL.items()}
    assert (far.pop("flow alignment") == 0).all()
    assert all((moved == 1).all() for moved in far.values())


def test_seeds_are_fetched_by_it():
    scores, offset = torch.randn(2, 4, H, W), torch.empty(2, 2, H, W).uniform_(-1, 1)
    expected = sample_bilinear(scores, seed_position(offset))
    torch.testing.assert_close(warp(scores, offset, OVENET), expected, atol=0, rtol=0)


def test_srm_and_flow_alignment_by_their_formulas():
    """2 (j + 1/2 + dx) / W - 1 with edges at ±1; linspace(-1, 1) + flow / (W, H) with centres at ±1."""
    values, flow = torch.randn(1, 2, H, W), torch.randn(1, 2, H, W)
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    grid = torch.stack((2 * (x + 0.5 + flow[0, 0]) / W - 1, 2 * (y + 0.5 + flow[0, 1]) / H - 1), dim=-1)
    expected = F.grid_sample(values, grid[None], padding_mode="border", align_corners=False)
    torch.testing.assert_close(warp(values, flow, SRM), expected, atol=1e-5, rtol=1e-5)
    base = torch.stack((torch.linspace(-1, 1, W).expand(H, W), torch.linspace(-1, 1, H)[:, None].expand(H, W)), dim=-1)
    grid = base + flow[0].permute(1, 2, 0) / torch.tensor([W, H])
    low = torch.randn(1, 2, 4, 5)  # the map may be of another size than the field
    expected = F.grid_sample(low, grid[None], padding_mode="zeros", align_corners=True)
    torch.testing.assert_close(warp(low, flow, FLOW_ALIGNMENT), expected, atol=1e-5, rtol=1e-5)


def test_groups_have_fields_of_their_own():
    values, fields = torch.randn(2, 6, H, W), torch.randn(2, 4, H, W)
    moved = warp(values, fields, SRM, num_groups=2)
    torch.testing.assert_close(moved[:, :3], warp(values[:, :3], fields[:, :2], SRM))
    torch.testing.assert_close(moved[:, 3:], warp(values[:, 3:], fields[:, 2:], SRM))


def test_gradients_are_those_of_differences():
    values = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    flow = torch.empty(1, 2, 3, 4, dtype=torch.float64).uniform_(0.1, 0.4).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, f: warp(v, f, SRM), (values, flow))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("convention", [OVENET, SRM, FLOW_ALIGNMENT, FREQ_FUSION], ids=lambda c: c.units)
def test_a_traced_warp_takes_other_sizes(convention):
    """Files with a size that may change are made by tracing."""
    small, large = torch.randn(1, 2, 5, 7), torch.randn(1, 2, 8, 6)
    traced = torch.jit.trace(lambda x: warp(x, x, convention), small)
    torch.testing.assert_close(traced(large), warp(large, large, convention))
