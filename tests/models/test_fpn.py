"""The pyramid with its upsamplers and contexts: the facts that the SRM/CRM network is known by, and loops."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.models.waves import wave
from torch.utils.flop_counter import FlopCounterMode

from ovenet.errors import UserError
from ovenet.geometry import SRM, resize_bilinear, warp
from ovenet.models import build_segmentor
from ovenet.models.necks.contexts import (
    CONTEXTS,
    ChannelAttention,
    ContextualRefinement,
    CrissCrossAttention,
    DisentangledNonLocal,
    PositionAttention,
)
from ovenet.models.necks.fpn import FPNNeck
from ovenet.models.necks.upsamplers import UPSAMPLERS, FlowAlignment, SemanticRefinement
from ovenet.utils.meta import meta_device

LIGHT, RESNET = (64, 128, 320, 512), (256, 512, 1024, 2048)


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("channels", "hidden", "expected"), [(128, 64, 22_859), (128, 128, 45_707), (256, 128, 78_475)]
)
def test_parameters_of_srm(channels, hidden, expected):
    assert count(SemanticRefinement(channels, hidden)) == expected


@pytest.mark.parametrize(("channels", "expected"), [(128, 18_688), (256, 70_144)])
def test_parameters_of_fam(channels, expected):
    assert count(FlowAlignment(channels)) == expected


@pytest.mark.parametrize(
    ("widths", "channels", "expected"), [(LIGHT, 128, 312_386), (LIGHT, 256, 985_218), (RESNET, 256, 1_706_114)]
)
def test_parameters_of_crm(widths, channels, expected):
    assert count(ContextualRefinement(widths, channels)) == expected


def test_the_decoder_on_mscan_s():
    neck = {"upsampler": "srm", "context": "crm"}
    with meta_device():
        model = build_segmentor("mscan_s", num_classes=19, neck="fpn", neck_args=neck, head="conv1x1").eval()
        assert count(model.neck) + count(model.head) == 892_854
        assert model(torch.zeros(1, 3, 1024, 2048)).fused[-1].shape == (1, 19, 256, 512)


@pytest.mark.parametrize(
    ("upsampler", "context", "expected", "products"),
    [
        ("bilinear", "none", 134.8, 0), ("srm", "none", 138.7, 0), ("bilinear", "crm", 135.3, 4.8),
        ("srm", "crm", 139.2, 4.8), ("fam", "crm", 137.4, 4.8), ("align_fa", "crm", 147.3, 4.8),
        ("srm", "ppm", 141.0, 0), ("srm", "dappm", 140.2, 0), ("srm", "ccam", 140.1, 0.1), ("srm", "dam", 141.6, 0.7),
    ],
)  # fmt: skip
def test_cost_of_the_network_on_mscan_s(upsampler, context, expected, products):
    """Giga multiply-adds of convolutions and of matrix products at 1024x2048; 137.9 are published."""
    neck = {"upsampler": upsampler, "context": context}
    with meta_device(), FlopCounterMode(display=False) as counter, torch.no_grad():
        model = build_segmentor("mscan_s", num_classes=19, neck="fpn", neck_args=neck, head="conv1x1").eval()
        model(torch.zeros(1, 3, 1024, 2048))
    convolutions = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    assert convolutions / 2e9 == pytest.approx(expected, abs=0.05)
    assert (counter.get_total_flops() - convolutions) / 2e9 == pytest.approx(products, abs=0.05)


@pytest.mark.parametrize(
    ("name", "parameters", "of_fine", "of_coarse"),
    [
        ("bilinear", 0, 0, 0),
        ("srm", 2 * 128 * 64 + 2 * 64 + (9 * 64 + 1) * (2 + 9), 2 * 128 * 64 + 9 * 64 * (2 + 9), 0),
        ("fam", 2 * 128 * 64 + 9 * 128 * 2, 128 * 64 + 9 * 128 * 2, 128 * 64),
        ("align_fa", 2 * (2 * 128 * 128 + 2 * 128 + 9 * 128 * 2), 2 * (2 * 128 * 128 + 9 * 128 * 2), 0),
        ("dysample", 128 * 32 + 32, 0, 128 * 32),
        ("carafe", 128 * 64 + 64 + 9 * 64 * 100 + 100, 0, 128 * 64 + 9 * 64 * 100),
    ],
)
def test_cost_of_what_brings_a_map_to_the_next_size(name, parameters, of_fine, of_coarse):
    """Multiply-adds per pixel of the fine map and of the coarse one; resizing and fetching are counted by no table."""
    with meta_device(), FlopCounterMode(display=False) as counter, torch.no_grad():
        module = UPSAMPLERS[name](128).eval()
        module(torch.zeros(1, 128, 16, 32), torch.zeros(1, 128, 8, 16))
    assert count(module) == parameters
    assert counter.get_total_flops() == 2 * (of_fine * 16 * 32 + of_coarse * 8 * 16)


@pytest.mark.parametrize("size", [(16, 32), (13, 21)])
def test_srm_starts_as_bilinear_upsampling(size):
    """To the bit where the sides are powers of two, as positions have exact numbers there."""
    torch.manual_seed(0)
    fine, coarse = torch.randn(2, 8, *size), torch.randn(2, 8, size[0] // 2, size[1] // 2)
    same, raised = SemanticRefinement(8)(fine, coarse)
    expected = F.interpolate(coarse, size, mode="bilinear", align_corners=False)
    assert torch.equal(same, fine)
    assert torch.equal(raised, expected) or size == (13, 21)
    torch.testing.assert_close(raised, expected, atol=1e-5, rtol=0)


def test_srm_moves_by_pixels_of_the_fine_map():
    """Offsets of (1, 0) everywhere stay (1, 0) whatever the 3x3 means weigh, at the borders too."""
    torch.manual_seed(0)
    module = SemanticRefinement(8)
    module.offset.bias.data[0] = 1.0
    torch.nn.init.normal_(module.mask.weight)
    fine, coarse = torch.randn(2, 8, 8, 16), torch.randn(2, 8, 4, 8)
    upsampled = resize_bilinear(coarse, (8, 16), align_corners=False)
    offset = module.predict(fine, upsampled)
    torch.testing.assert_close(offset, torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(2, 2, 8, 16))
    _, raised = module(fine, coarse)
    torch.testing.assert_close(raised[..., :-1], upsampled[..., 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(raised[..., -1], upsampled[..., -1], atol=1e-5, rtol=0)  # the border


def test_the_mask_is_a_mean_over_neighbouring_offsets():
    torch.manual_seed(0)
    module = SemanticRefinement(4).double()
    for layer in (module.offset, module.mask):
        torch.nn.init.normal_(layer.weight)
    fine, upsampled = torch.randn(2, 1, 4, 5, 6, dtype=torch.float64)
    mixed = module.mix(torch.cat((fine, upsampled), dim=1))
    offset, weights = module.offset(mixed), module.mask(mixed).softmax(dim=1)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(1, 5, 6, dtype=torch.float64))
    expected = torch.zeros(1, 2, 5, 6, dtype=torch.float64)
    for y, x in np.ndindex(5, 6):
        for tap, (dy, dx) in enumerate((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
            row, column = min(max(y + dy, 0), 4), min(max(x + dx, 0), 5)
            expected[..., y, x] += weights[:, tap, y, x] * offset[..., row, column]
    torch.testing.assert_close(module.predict(fine, upsampled), expected)


def test_gradients_of_the_first_steps_of_srm():
    """First to the coarse map and the offsets alone; after a small step to everything."""
    torch.manual_seed(0)
    module = SemanticRefinement(8)
    maps = [torch.randn(2, 8, 8, 8, requires_grad=True), torch.randn(2, 8, 4, 4, requires_grad=True)]
    weights = torch.randn(2, 8, 8, 8)

    def gradients():
        module.zero_grad()
        for x in maps:
            x.grad = None
        (module(*maps)[1] * weights).sum().backward()
        return {
            "fine": maps[0].grad,
            "coarse": maps[1].grad,
            "mix": module.mix[0].weight.grad,
            "offset": module.offset.weight.grad,
            "mask": module.mask.weight.grad,
        }

    first = {name: bool(value.any()) for name, value in gradients().items()}
    assert first == {"fine": False, "coarse": True, "mix": False, "offset": True, "mask": False}
    with torch.no_grad():
        module.offset.weight -= 1e-3 * module.offset.weight.grad / module.offset.weight.grad.norm()
    assert all(value.any() for value in gradients().values())


def test_flow_alignment_is_the_published_formula():
    torch.manual_seed(0)
    module = FlowAlignment(4)
    fine, coarse = torch.randn(1, 4, 8, 10), torch.randn(1, 4, 4, 5)
    upsampled = F.interpolate(module.reduce_coarse(coarse), (8, 10), mode="bilinear", align_corners=True)
    flow = module.flow(torch.cat((upsampled, module.reduce_fine(fine)), dim=1))
    y, x = torch.meshgrid(torch.linspace(-1, 1, 8), torch.linspace(-1, 1, 10), indexing="ij")
    grid = torch.stack((x + flow[0, 0] / 10, y + flow[0, 1] / 8), dim=-1)[None]
    expected = F.grid_sample(coarse, grid, align_corners=True)
    torch.testing.assert_close(module(fine, coarse)[1], expected, atol=1e-5, rtol=1e-5)


def test_feature_alignment_starts_where_the_maps_are():
    module = UPSAMPLERS["align_fa"](8)
    fine, coarse = torch.randn(2, 8, 9, 9), torch.randn(2, 8, 5, 5)
    for moved, expected in zip(
        module(fine, coarse), (fine, F.interpolate(coarse, (9, 9), mode="bilinear", align_corners=True)), strict=True
    ):
        torch.testing.assert_close(moved, expected, atol=1e-5, rtol=1e-5)


def test_published_numbers_of_the_disentangled_non_local_block():
    block = DisentangledNonLocal(8).double().eval()
    assert count(block) == 165
    layers = (block.value, block.query, block.key, block.unary, block.project[0])
    for layer, (step, start) in zip(layers, ((0.3, 0), (0.5, 1), (0.7, 2), (0.9, 3), (1.1, 4)), strict=True):
        layer.weight.data = wave(layer.weight.shape, step, start, 0.3)
        if layer.bias is not None:
            layer.bias.data.fill_(0.05)
    images = wave((1, 8, 3, 3), 0.41, 0.2)
    assert torch.equal(block(images), images)  # at its start
    block.project[1].weight.data.fill_(1.0)
    result = block(images)
    expected = torch.tensor([0.17797, -0.696223, 0.993082, -0.965505], dtype=torch.float64)
    torch.testing.assert_close(result[0, :4, 0, 0], expected, atol=2e-6, rtol=0)
    assert result.sum().item() == pytest.approx(2.966902, abs=2e-6)


def test_channel_attention_is_the_formula():
    torch.manual_seed(0)
    module, x = ChannelAttention(), torch.randn(1, 3, 2, 4)
    assert torch.equal(module(x), x)
    module.scale.data.fill_(0.7)
    flat = x[0].flatten(1)
    energy = flat @ flat.T
    weights = torch.stack([(row.max() - row).softmax(0) for row in energy])
    torch.testing.assert_close(module(x)[0].flatten(1), flat + 0.7 * weights @ flat)


def test_position_attention_is_the_formula():
    torch.manual_seed(0)
    module, x = PositionAttention(16), torch.randn(1, 16, 3, 4)
    assert torch.equal(module(x), x)
    module.scale.data.fill_(0.7)
    query, key, value = (layer(x)[0].flatten(1) for layer in (module.query, module.key, module.value))
    expected = x[0].flatten(1) + 0.7 * value @ (query.T @ key).softmax(dim=1).T
    torch.testing.assert_close(module(x)[0].flatten(1), expected, atol=1e-5, rtol=1e-5)


def test_criss_cross_attention_sees_its_row_and_its_column():
    torch.manual_seed(0)
    module, x = CrissCrossAttention(16), torch.randn(1, 16, 3, 4)
    module.scale.data.fill_(0.7)
    query, key, value = (layer(x)[0] for layer in (module.query, module.key, module.value))
    expected = x[0].clone()
    for i, j in np.ndindex(3, 4):
        places = [(i, u) for u in range(4)] + [(v, j) for v in range(3) if v != i]
        scores = torch.stack([query[:, i, j] @ key[:, v, u] for v, u in places]).softmax(0)
        expected[:, i, j] += 0.7 * sum(s * value[:, v, u] for s, (v, u) in zip(scores, places, strict=True))
    torch.testing.assert_close(module(x)[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("upsampler", UPSAMPLERS)
def test_every_pair_of_upsampler_and_context_trains(context, upsampler):
    torch.manual_seed(0)
    neck = FPNNeck((8, 16, 24, 32), (4, 8, 16, 32), channels=16, upsampler=upsampler, context=context)
    maps = [torch.randn(2, c, -(-65 // s), -(-97 // s)) for c, s in zip((8, 16, 24, 32), (4, 8, 16, 32), strict=True)]
    (joined,) = neck(maps)
    assert joined.shape == (2, 16, 17, 25)
    joined.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in neck.parameters())


@pytest.mark.parametrize("channels", [0, 7, 6])
def test_a_width_that_cannot_be_is_named(channels):
    with pytest.raises(UserError, match=rf"MODEL\.NECK\.CHANNELS is {channels}.*even.*8"):
        FPNNeck((8, 16), (4, 8), channels=channels)


@pytest.mark.parametrize("upsampler", ["dysample", "carafe"])
def test_strides_that_do_not_double_are_named(upsampler):
    with pytest.raises(UserError, match=rf"UPSAMPLER is {upsampler}.*strides are 4, 8, 8; use bilinear"):
        FPNNeck((8, 16, 16), (4, 8, 8), channels=16, upsampler=upsampler)


@pytest.mark.parametrize("upsampler", ["dysample", "carafe"])
def test_a_fine_map_short_of_twice_the_coarse_one(upsampler):
    """It has the pixels of the whole map, but for the last row and column."""
    module = UPSAMPLERS[upsampler](8)
    coarse = torch.randn(2, 8, 5, 7)
    _, whole = module(torch.randn(2, 8, 10, 14), coarse)
    fine = torch.randn(2, 8, 9, 13)
    same, part = module(fine, coarse)
    assert torch.equal(same, fine)
    assert torch.equal(part, whole[..., :9, :13])


def test_srm_warps_in_the_one_primitive():
    values, field = torch.randn(1, 3, 4, 8), torch.zeros(1, 2, 4, 8)
    assert torch.equal(warp(values, field, SRM), values)
