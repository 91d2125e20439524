"""A convolution of maps before they are upsampled, against the convolution of the stack."""

import pytest
import torch
from torch import nn

from ovenet.models import build_segmentor
from ovenet.models.conv_bn import fuse_conv_bn
from ovenet.models.cost import count_multiply_adds
from ovenet.models.stacked import MIN_CHANNELS_APART, StackedConv2d, StackedMaps

WIDTHS = (3, 5, MIN_CHANNELS_APART, MIN_CHANNELS_APART + 8)
STAGES = [{"NUM_MODULES": 1, "NUM_BLOCKS": [1] * n, "NUM_CHANNELS": [8, 8, 8, 256][:n]} for n in range(1, 5)]
SIZES = ((17, 25), (9, 13), (5, 7), (3, 4))


def random_maps(dtype=torch.float64):
    return [torch.randn(2, c, *size, dtype=dtype) for c, size in zip(WIDTHS, SIZES, strict=True)]


def of_the_stack(conv: nn.Conv2d, maps, *, align_corners):
    parts = [
        nn.functional.interpolate(x, size=SIZES[0], mode="bilinear", align_corners=align_corners) for x in maps[1:]
    ]
    return nn.functional.conv2d(torch.cat((maps[0], *parts), dim=1), conv.weight, conv.bias)


@pytest.mark.parametrize("align_corners", [True, False])
def test_values_and_gradients_are_those_of_the_stack(align_corners):
    torch.manual_seed(0)
    conv, maps = StackedConv2d(sum(WIDTHS), 6).double(), random_maps()
    nn.init.normal_(conv.bias)
    grown = torch.randn(2, 6, *SIZES[0], dtype=torch.float64)
    results = []
    for way in (
        lambda xs: conv(StackedMaps(xs, align_corners=align_corners)),
        lambda xs: of_the_stack(conv, xs, align_corners=align_corners),
    ):
        leaves = [x.clone().requires_grad_() for x in maps]
        conv.zero_grad()
        y = way(leaves)
        (y * grown).sum().backward()
        results.append([y.detach(), conv.weight.grad, conv.bias.grad, *(x.grad for x in leaves)])
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= 1e-10 * b.abs().max()


def test_the_wide_coarse_maps_cost_less_but_networks_are_counted_as_published():
    conv = StackedConv2d(sum(WIDTHS), 6)

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv

        def forward(self, images):
            maps = [images.new_empty(1, c, *size) for c, size in zip(WIDTHS, SIZES, strict=True)]
            return self.conv(StackedMaps(maps, align_corners=True))

    pixels = [h * w for h, w in SIZES]
    expected = 6 * (pixels[0] * (WIDTHS[0] + WIDTHS[1]) + pixels[2] * WIDTHS[2] + pixels[3] * WIDTHS[3])
    assert count_multiply_adds(Reader(), 8, 8) == expected
    assert count_multiply_adds(Reader().to("meta"), 8, 8) == 6 * pixels[0] * sum(WIDTHS)


def test_narrow_maps_are_stacked():
    conv = StackedConv2d(8, 6)
    maps = random_maps(torch.float32)[:2]
    stack = StackedMaps(maps, align_corners=True)
    assert torch.equal(conv(stack), conv(stack.stack()))


def test_in_16_bits_the_stack_is_convolved():
    conv, maps = StackedConv2d(sum(WIDTHS), 6), random_maps(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stack = StackedMaps(maps, align_corners=True)
        assert torch.equal(conv(stack), conv(stack.stack()))
    stack, conv = StackedMaps([x.bfloat16() for x in maps], align_corners=True), conv.bfloat16()
    assert torch.equal(conv(stack), conv(stack.stack()))


@pytest.mark.parametrize("seed", [None, "fork", "neck"])
def test_a_network_gives_what_it_gives_with_stacks(seed):
    torch.manual_seed(0)
    args = {"projection": None} if seed == "neck" else {}
    model = build_segmentor("hrnet", num_classes=5, seed=seed, backbone_args={"stages": STAGES}, seed_args=args)
    model = model.double().train()
    necks = [model.neck] if seed is None else [model.neck, model.seed.neck]
    images = torch.randn(2, 3, 65, 97, dtype=torch.float64)
    results = []
    for stacks in (False, True):
        for neck in necks:
            assert not neck.stacks or stacks
            neck.stacks = stacks
        model.zero_grad()
        scores = model(images).fused[-1]
        scores.square().mean().backward()
        results.append({"scores": scores.detach(), **{n: p.grad for n, p in model.named_parameters()}})
    largest = max(float(g.abs().max()) for g in results[1].values())
    for name, value in results[1].items():
        assert (results[0][name] - value).abs().max() <= 1e-10 * largest, name


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
def test_batchnorm_is_fused_into_it_and_a_trace_takes_other_sizes():
    torch.manual_seed(0)
    model = build_segmentor("hrnet", num_classes=5, backbone_args={"stages": STAGES}).eval()
    small, large = torch.randn(1, 3, 64, 96), torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        fast = fuse_conv_bn(model)
        assert isinstance(fast.head.layers[1], nn.Identity)
        fast.requires_grad_(False)  # a function's trace takes constants alone
        traced = torch.jit.trace(lambda x: fast(x).fused[-1], small)
        for images in (small, large):
            torch.testing.assert_close(traced(images), model(images).fused[-1], atol=1e-5, rtol=1e-4)
