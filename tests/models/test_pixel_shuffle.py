"""The light neck of sub-pixel convolution."""

import pytest
import torch

from ovenet.errors import UserError
from ovenet.models.necks import PixelShuffleNeck


def test_each_pixel_says_what_its_parts_are():
    """Channel ``c`` of part ``(i, j)`` of a pixel is the product of a row of its own with the pixel's features."""
    torch.manual_seed(0)
    neck = PixelShuffleNeck([6, 5], [14, 14], channels=3, upscale_factor=2).eval()
    with torch.no_grad():
        neck.expand.weight.normal_()
        neck.expand.bias.normal_()
        maps = [torch.randn(2, 6, 3, 4), torch.randn(2, 5, 3, 4)]
        hidden = torch.cat([p(m) for p, m in zip(neck.projections, maps, strict=True)], dim=1)
        (fine,) = neck(maps)
    assert fine.shape == (2, 3, 6, 8)
    for c, i, j, y, x in ((0, 0, 0, 0, 0), (2, 1, 0, 2, 3), (1, 0, 1, 1, 2), (2, 1, 1, 0, 1)):
        row = 4 * c + 2 * i + j
        expected = hidden[:, :, y, x] @ neck.expand.weight[row, :, 0, 0] + neck.expand.bias[row]
        torch.testing.assert_close(fine[:, c, 2 * y + i, 2 * x + j], expected)


def test_parts_of_a_pixel_begin_equal():
    torch.manual_seed(0)
    neck = PixelShuffleNeck([6, 6], [16, 16]).eval()
    (fine,) = neck([torch.randn(1, 6, 2, 3), torch.randn(1, 6, 2, 3)])
    torch.testing.assert_close(fine, fine[..., ::4, ::4].repeat_interleave(4, dim=2).repeat_interleave(4, dim=3))
    assert fine.std() > 0


@pytest.mark.parametrize(("stride", "factor"), [(16, 4), (14, 2), (8, 2), (32, 8), (4, 1), (7, 1)])
def test_the_finest_stride_is_at_least_four(stride, factor):
    neck = PixelShuffleNeck([8], [stride])
    assert (neck.upscale_factor, neck.strides) == (factor, (stride // factor,))


def test_golden_size():
    """Four maps of ViT-S: 384 to 64 channels with BatchNorm, then 256 to 16 parts of 64 channels with a bias."""
    neck = PixelShuffleNeck([384] * 4, [16] * 4)
    assert sum(p.numel() for p in neck.parameters()) == 4 * (384 * 64 + 2 * 64) + (4 * 64 + 1) * 16 * 64


@pytest.mark.parametrize(
    ("strides", "settings", "words"),
    [
        ([4, 8], {}, ["pixel_shuffle", "4, 8", "concat"]),
        ([16, 16], {"channels": 0}, ["MODEL.NECK.CHANNELS is 0"]),
        ([14, 14], {"upscale_factor": 4}, ["MODEL.NECK.UPSCALE_FACTOR is 4", "14"]),
        ([14, 14], {"upscale_factor": 0}, ["MODEL.NECK.UPSCALE_FACTOR is 0", "14"]),
    ],
)
def test_bad_settings(strides, settings, words):
    with pytest.raises(UserError) as caught:
        PixelShuffleNeck([8, 8], strides, **settings)
    assert all(word in str(caught.value) for word in words)
