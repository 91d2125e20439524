"""ViTDet's simple feature pyramid, against its formulas."""

import pytest
import torch
from torch import nn

from ovenet.errors import UserError
from ovenet.models.necks import SimpleFPNNeck
from ovenet.models.stacked import StackedMaps


def normalized(x, norm):
    """Layer normalisation of the channels of each pixel, by its formula."""
    mean = x.mean(dim=1, keepdim=True)
    variance = (x - mean).square().mean(dim=1, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt() * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)


def doubled(x, conv):
    """A transposed convolution of 2x2 with stride 2: each pixel becomes four, each by a matrix of its own."""
    result = x.new_zeros(x.shape[0], conv.out_channels, 2 * x.shape[2], 2 * x.shape[3])
    for i in range(2):
        for j in range(2):
            result[..., i::2, j::2] = torch.einsum("bchw,cd->bdhw", x, conv.weight[:, :, i, j])
    return result + conv.bias.view(1, -1, 1, 1)


def convolved(x, weight):
    """A convolution without bias that keeps the size, one shift of the map at a time."""
    radius = weight.shape[2] // 2
    height, width = x.shape[-2:]
    padded = nn.functional.pad(x, (radius,) * 4)
    result = 0
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            shifted = padded[..., i : i + height, j : j + width]
            result = result + torch.einsum("bchw,dc->bdhw", shifted, weight[:, :, i, j])
    return result


def pooled(x):
    """The maximum of each 2x2, of fewer at an odd border."""
    height, width = x.shape[-2:]
    rows = [
        torch.stack([x[..., i : i + 2, j : j + 2].amax(dim=(2, 3)) for j in range(0, width, 2)], dim=-1)
        for i in range(0, height, 2)
    ]
    return torch.stack(rows, dim=-2)


def test_numbers_are_those_of_the_formulas():
    torch.manual_seed(0)
    neck = SimpleFPNNeck([8, 8], [16, 16], channels=6).double()
    with torch.no_grad():
        for parameter in neck.parameters():
            parameter.normal_()
        unread, x = torch.randn(2, 2, 8, 3, 5, dtype=torch.float64)
        maps = neck([unread, x])
        four, two, one, half = neck.pyramid
        quarter = doubled(nn.functional.gelu(normalized(doubled(x, four[0]), four[1])), four[3])
        sources = [(quarter, four[4:]), (doubled(x, two[0]), two[1:]), (x, one), (pooled(x), half[1:])]
        for found, (source, (reduce, norm, mix, last)) in zip(maps, sources, strict=True):
            expected = normalized(convolved(normalized(convolved(source, reduce.weight), norm), mix.weight), last)
            torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    assert [tuple(m.shape) for m in maps] == [(2, 6, 12, 20), (2, 6, 6, 10), (2, 6, 3, 5), (2, 6, 2, 3)]


def test_golden_size():
    """Of ViT-S, by arithmetic: C = 384, D = 256, and 2 (2 D) of the normalisations."""
    neck = SimpleFPNNeck([384], [16])
    convolutions = 9 * 256 * 256 + 2 * 2 * 256
    four = 384 * 192 * 4 + 192 + 2 * 192 + 192 * 96 * 4 + 96 + 96 * 256
    two = 384 * 192 * 4 + 192 + 192 * 256
    assert sum(p.numel() for p in neck.parameters()) == 4 * convolutions + four + two + 2 * 384 * 256
    assert (neck.channels, neck.strides) == ((256,) * 4, (4, 8, 16, 32))


def test_one_map_for_heads_that_read_one():
    torch.manual_seed(0)
    neck = SimpleFPNNeck([8], [14], channels=6, scale_factors=[2, 1], joined=True).eval()
    assert (neck.channels, neck.strides) == ((12,), (7,))
    x = [torch.randn(1, 8, 3, 5)]
    (joined,) = neck(x)
    fine, coarse = (level(x[0]) for level in neck.pyramid)
    raised = nn.functional.interpolate(coarse, size=(6, 10), mode="bilinear", align_corners=True)
    torch.testing.assert_close(joined, torch.cat((fine, raised), dim=1))
    neck.stacks = False
    (stack,) = neck(x)
    assert isinstance(stack, StackedMaps)
    torch.testing.assert_close(stack.stack(), joined)


@pytest.mark.parametrize(
    ("strides", "settings", "words"),
    [
        ([4, 8], {}, ["simple_fpn", "4, 8", "fpn"]),
        ([16, 16], {"channels": 0}, ["MODEL.NECK.CHANNELS is 0"]),
        ([16, 16], {"scale_factors": []}, ["MODEL.NECK.SCALE_FACTORS is []"]),
        ([16, 16], {"scale_factors": [1, 2]}, ["MODEL.NECK.SCALE_FACTORS is [1, 2]", "order"]),
        ([16, 16], {"scale_factors": [8, 4]}, ["MODEL.NECK.SCALE_FACTORS is [8, 4]"]),
        ([14, 14], {}, ["MODEL.NECK.SCALE_FACTORS", "14", "[2, 1, 0.5]"]),
    ],
)
def test_bad_settings(strides, settings, words):
    with pytest.raises(UserError) as caught:
        SimpleFPNNeck([8, 8], strides, **settings)
    assert all(word in str(caught.value) for word in words)
