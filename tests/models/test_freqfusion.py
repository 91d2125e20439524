"""FreqFusion: the published code's numbers, and what its parts do alone."""

import re

import pytest
import torch
from tests.models.waves import tensor, wave

from ovenet.errors import UserError
from ovenet.geometry import FREQ_FUSION, warp
from ovenet.models.necks.freqfusion import FreqFusion, FreqFusionNeck, OffsetSampler, similarity

CLOSE = {"atol": 1e-5, "rtol": 0}  # as many digits as are published


def test_published_numbers():
    fusion = FreqFusion(8, 16, 16).double()
    s = fusion.sampler
    layers = (fusion.compress_fine, fusion.compress_coarse, fusion.low_pass, fusion.high_pass)
    for number, layer in enumerate((*layers, s.offset, s.gate, s.fine_offset, s.fine_gate)):
        layer.weight.data = wave(layer.weight.shape, 0.37, number, 0.2)
        layer.bias.data.fill_(0.01 * number)
    fine, coarse = wave((1, 8, 8, 8), 0.11, 0.0), wave((1, 16, 4, 4), 0.23, 0.5)
    with torch.no_grad():
        sharp, raised = fusion(fine, coarse)
        low_pass, high_pass, _ = fusion.predict(fine, coarse)
    torch.testing.assert_close(sharp[0, :3, 0, 0], tensor(-0.451778, 0.775696, 1.579682), **CLOSE)
    torch.testing.assert_close(sharp.sum(), tensor(0.48545).sum(), **CLOSE)
    torch.testing.assert_close(raised[0, :3, 0, 0], tensor(0.742112, -0.618544, 0.319961), **CLOSE)
    torch.testing.assert_close(raised[0, :3, 3, 4], tensor(0.269192, -0.392146, 0.404144), **CLOSE)
    torch.testing.assert_close(raised.sum(), tensor(10.17856).sum(), **CLOSE)
    for weights in (low_pass, high_pass):
        torch.testing.assert_close(weights.sum(dim=1), torch.ones_like(weights[:, 0]))


@pytest.mark.parametrize(
    ("fine", "coarse", "channels", "expected"),
    [
        (64, 128, 48, 44_466), (32, 192, 56, 53_170), (32, 224, 64, 62_386),
        (128, 256, 96, 104_370), (64, 384, 112, 128_434), (32, 448, 120, 141_234),
    ],
)  # fmt: skip
def test_parameters(fine, coarse, channels, expected):
    assert sum(p.numel() for p in FreqFusion(fine, coarse, channels).parameters()) == expected


def test_widths_of_offseg():
    neck = FreqFusionNeck((32, 48, 120, 224), (4, 8, 16, 32), projections=(32, 32, 64, 128))
    assert [f.compress_fine.out_channels for f in neck.fusions] == [48, 56, 64]
    assert (neck.channels, neck.strides) == ((256,), (4,))


def test_a_sampler_without_weights_fetches_every_pixel_itself():
    sampler = OffsetSampler(16)
    for layer in (sampler.offset, sampler.gate, sampler.fine_offset, sampler.fine_gate):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    offset = sampler(torch.randn(2, 16, 8, 12), torch.randn(2, 16, 4, 6))
    assert offset.shape == (2, 8, 8, 12)
    values = torch.randn(2, 8, 8, 12)
    torch.testing.assert_close(warp(values, offset, FREQ_FUSION, num_groups=4), values, atol=1e-5, rtol=0)


def test_offsets_of_a_group_move_its_channels_alone():
    """The 32 channels are axis, group and place in the 2x2 pixels, in this order."""
    sampler = OffsetSampler(16)
    for layer in (sampler.offset, sampler.gate, sampler.fine_offset, sampler.fine_gate):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    sampler.offset.bias.data[1 * 16 + 2 * 4 : 1 * 16 + 3 * 4] = 1.0  # along y, of the third group
    offset = sampler(torch.randn(1, 16, 8, 8), torch.randn(1, 16, 4, 4))
    assert (offset[:, 5] == 0.5).all()  # x and y of each group in turn; the gate is one half
    assert (offset[:, [0, 1, 2, 3, 4, 6, 7]] == 0).all()
    values = torch.randn(1, 8, 8, 8)
    moved = warp(values, offset, FREQ_FUSION, num_groups=4)
    torch.testing.assert_close(moved[:, 4:6, :-1], values[:, 4:6, 1:], atol=1e-5, rtol=0)  # one fine pixel down
    torch.testing.assert_close(moved[:, [0, 1, 2, 3, 6, 7]], values[:, [0, 1, 2, 3, 6, 7]], atol=1e-5, rtol=0)


def test_similarity_of_a_constant_map():
    result = similarity(torch.full((1, 3, 6, 7), 2.0, dtype=torch.float64))[0]
    for number, (dy, dx) in enumerate((dy, dx) for dy in (-2, 0, 2) for dx in (-2, 0, 2) if (dy, dx) != (0, 0)):
        for y in range(6):
            for x in range(7):
                is_inside = 0 <= y + dy < 6 and 0 <= x + dx < 7
                assert result[number, y, x] == pytest.approx(float(is_inside), abs=1e-12)


def test_channels_are_joined_by_groups():
    """Four of the fine map and four of the coarse one in turn; one after the other, published weights would not fit."""
    neck = FreqFusionNeck((32, 64), (4, 8), projections=(32, 64)).eval()
    fusion = neck.fusions[0]
    fusion.forward = lambda fine, coarse: (torch.zeros_like(fine), torch.ones(1, 64, *fine.shape[-2:]))
    (joined,) = neck([torch.randn(1, 32, 8, 8), torch.randn(1, 64, 4, 4)])
    assert joined[0, :, 0, 0].tolist() == ([0.0] * 8 + [1.0] * 16) * 4


def test_the_start():
    torch.manual_seed(0)
    neck = FreqFusionNeck((32, 64), (4, 8), projections=(32, 64))
    fusion = neck.fusions[0]
    assert fusion.low_pass.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert fusion.sampler.offset.weight.abs().max() > 0.1  # Xavier's: offsets are not zero
    neck = FreqFusionNeck((32, 64), (4, 8), projections=(32, 64), zero_offset_init=True)
    assert all(not p.any() for p in (neck.fusions[0].sampler.offset.weight, neck.fusions[0].sampler.fine_offset.weight))


def test_what_does_not_fit_is_named():
    with pytest.raises(UserError, match=r"freqfusion.*4, 8, 8"):
        FreqFusionNeck((32, 64, 64), (4, 8, 8), projections=(32, 64, 64))
    for projections in ((32,), (32, 65), (0, 32)):
        shown = re.escape(str(list(projections)))
        with pytest.raises(UserError, match=rf"MODEL\.NECK\.PROJECTIONS is {shown}.* 2 .*32"):
            FreqFusionNeck((32, 64), (4, 8), projections=projections)


def test_gradients():
    fusion = FreqFusion(4, 4, 8).double()
    maps = (torch.randn(1, 4, 4, 4, dtype=torch.float64), torch.randn(1, 4, 2, 2, dtype=torch.float64))
    assert torch.autograd.gradcheck(fusion, tuple(x.requires_grad_() for x in maps), atol=1e-4)
