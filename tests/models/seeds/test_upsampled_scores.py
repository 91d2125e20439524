"""Upsamplers of scores, against loops over the published formulas in numpy."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ovenet.builders import prediction_names
from ovenet.config import default_config
from ovenet.errors import UserError
from ovenet.losses import SegmentationCriterion
from ovenet.models import build_segmentor
from ovenet.models.interfaces import SegOutput
from ovenet.models.necks.upsamplers import CARAFE, DySample
from ovenet.models.seeds.upsampled import CARAFEScores, DySampleScores, FreqFusionScores

NAMES = ("dysample", "carafe", "freqfusion")
PARTS = {"dysample": DySampleScores, "carafe": CARAFEScores, "freqfusion": FreqFusionScores}
CLOSE = {"atol": 1e-9, "rtol": 0}


class AnyHead(nn.Module):
    """What an upsampler reads of a head."""

    feature_channels, stride, has_queries = 6, 4, False


def build(seed, head="fcn", **seed_args):
    torch.manual_seed(0)
    return build_segmentor("hrnet_w18_small_v1", num_classes=5, head=head, seed=seed, seed_args=seed_args)


def awaken(module):
    """Gives every weight a size that matters: some are zero or nearly so at initialisation."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) / 2
    return module


def projected(layer, x):
    """A 1x1 convolution of one image ``(C, h, w)``."""
    weight = layer.weight.detach().numpy()[:, :, 0, 0]
    bias = 0 if layer.bias is None else layer.bias.detach().numpy()[:, None, None]
    return np.einsum("oc,chw->ohw", weight, x) + bias


def bilinear(x, row, column):
    """The channels of ``(C, h, w)`` at a position in pixels, which is brought to the map first."""
    height, width = x.shape[1:]
    row, column = min(max(row, 0.0), height - 1.0), min(max(column, 0.0), width - 1.0)
    top, left = min(int(row), max(height - 2, 0)), min(int(column), max(width - 2, 0))
    total = np.zeros(len(x))
    for y in (top, min(top + 1, height - 1)):
        for k in (left, min(left + 1, width - 1)):
            total += max(0.0, 1 - abs(row - y)) * max(0.0, 1 - abs(column - k)) * x[:, y, k]
    return total


def place(index, length, align_corners):
    """Position, in coarse pixels, of pixel `index` of a map twice as long as the coarse one, and of one unit there."""
    if align_corners:
        scale = (length - 1) / (2 * length - 1)
        return index * scale, 2 * scale
    return index / 2 - 0.25, 1.0


def sampled(x, offsets, *, align_corners):
    """DySample's sampling: ``offsets`` are ``(2, G, 4, h, w)``, ``(x, y)`` in coarse pixels, by quarter of a pixel."""
    channels, height, width = x.shape
    groups = np.array_split(np.arange(channels), offsets.shape[1])
    out = np.zeros((channels, 2 * height, 2 * width))
    for row, column in np.ndindex(2 * height, 2 * width):
        for number, group in enumerate(groups):
            dx, dy = offsets[:, number, 2 * (row % 2) + column % 2, row // 2, column // 2]
            (y, per_y), (k, per_x) = place(row, height, align_corners), place(column, width, align_corners)
            out[group, row, column] = bilinear(x, y + dy * per_y, k + dx * per_x)[group]
    return out


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dynamic_scope", [False, True])
def test_dysample_is_the_published_formula(dynamic_scope, align_corners):
    """Seven channels: groups of 2, 2, 2 and 1."""
    module = awaken(DySample(7, dynamic_scope=dynamic_scope, align_corners=align_corners).double())
    x = torch.randn(2, 7, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        result = module.upsample(x, x)
    for image, out in zip(x.numpy(), result, strict=True):
        scope = 0.5 / (1 + np.exp(-projected(module.scope, image))) if dynamic_scope else 0.25
        offsets = (scope * projected(module.offset, image)).reshape(2, 4, 4, 4, 5)
        np.testing.assert_allclose(out, sampled(image, offsets, align_corners=align_corners), **CLOSE)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(4, 8), (5, 7), (1, 3)])
def test_dysample_without_offsets_is_bilinear(size, align_corners):
    module = DySample(6, align_corners=align_corners)
    nn.init.zeros_(module.offset.weight)
    x = torch.randn(2, 6, *size)
    expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(module.upsample(x, x), expected, atol=1e-5, rtol=0)


def averaged(x, weights):
    """CARAFE's reassembly: ``weights`` are ``(k * k, 2h, 2w)``; pixels outside the map are 0."""
    channels, height, width = x.shape
    side = math.isqrt(len(weights))
    out = np.zeros((channels, 2 * height, 2 * width))
    for row, column, u, v in np.ndindex(2 * height, 2 * width, side, side):
        y, k = row // 2 + u - side // 2, column // 2 + v - side // 2
        if 0 <= y < height and 0 <= k < width:
            out[:, row, column] += weights[u * side + v, row, column] * x[:, y, k]
    return out


def test_carafe_is_the_published_formula():
    module = awaken(CARAFE(6, compressed_channels=3, kernel_size=5).double())
    values = torch.randn(1, 2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    guide = torch.randn(1, 6, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (result,) = module.upsample(values, guide).numpy()
    compressed = np.pad(projected(module.compress, guide[0].numpy()), ((0, 0), (1, 1), (1, 1)))
    kernel, bias = (p.detach().numpy() for p in (module.encode.weight, module.encode.bias))
    logits = np.zeros((25, 8, 10))
    for tap, row, column in np.ndindex(logits.shape):
        y, k, channel = row // 2, column // 2, 4 * tap + 2 * (row % 2) + column % 2
        logits[tap, row, column] = (kernel[channel] * compressed[:, y : y + 3, k : k + 3]).sum() + bias[channel]
    weights = np.exp(logits) / np.exp(logits).sum(axis=0)
    np.testing.assert_allclose(result, averaged(values[0].numpy(), weights), **CLOSE)


@pytest.mark.parametrize("align_corners", [False, True])
def test_freqfusion_averages_the_scores_and_samples_the_result(align_corners):
    part = awaken(FreqFusionScores(AnyHead(), compressed_channels=8, align_corners=align_corners).double()).eval()
    (step,) = part.steps
    generator = torch.Generator().manual_seed(0)
    shapes = (1, 5, 4, 6), (1, 6, 4, 6), (1, 3, 16, 24)
    scores, features, images = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)
    with torch.no_grad():
        (result,) = part.upsample(step, scores, features, images).numpy()
        low_pass, _, field = (x[0].numpy() for x in step.fusion.predict(step.stem(images), features))
    upsampled = averaged(scores[0].numpy(), low_pass)
    expected = np.zeros_like(upsampled)
    for row, column in np.ndindex(8, 12):
        for number, group in enumerate(np.array_split(np.arange(5), 4)):
            dx, dy = field[2 * number : 2 * number + 2, row, column]
            y, k = (place(i, n, align_corners)[0] for i, n in ((row, 4), (column, 6)))
            expected[group, row, column] = bilinear(upsampled, 2 * (y + dy) + 0.5, 2 * (k + dx) + 0.5)[group]
    np.testing.assert_allclose(result, expected, **CLOSE)


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_ramp_stays_where_the_convention_has_it(align_corners):
    """CARAFE's pixels are the quarters of coarse ones, whatever the model's convention is."""
    part = CARAFEScores(AnyHead(), align_corners=align_corners)
    quarters = (torch.arange(14, dtype=torch.float64) + 0.5) / 2 - 0.5
    x = quarters.expand(1, 1, 10, 14)
    expected = np.tile([place(k, 7, align_corners)[0] for k in range(14)], (10, 1))
    np.testing.assert_allclose(part.placed(x)[0, 0], expected, **CLOSE)
    np.testing.assert_allclose(part.placed(x.mT)[0, 0].T, expected, **CLOSE)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("head", ["fcn", "ocr"])
@pytest.mark.parametrize("scale", [2, 4])
def test_the_final_scores_alone_are_finer(name, head, scale):
    model = build(name, head, scale=scale).eval()
    images = torch.randn(1, 3, 63, 95)
    with torch.no_grad():
        output = model(images)
        baseline = model.decode(model.backbone(model.pad(images)), images).scores
    assert not output.has_seed
    assert [tuple(x.shape) for x in output.initial] == [(1, 5, 16, 24)] * len(baseline)
    assert output.fused[-1].shape == (1, 5, 16 * scale, 24 * scale)
    for kept, initial, expected in zip(output.fused[:-1], output.initial[:-1], baseline[:-1], strict=True):
        assert torch.equal(kept, expected)
        assert torch.equal(initial, expected)


@pytest.mark.parametrize("scale", [2, 4])
def test_a_frozen_network_starts_with_its_scores_resized(scale):
    model, images = build("dysample", scale=scale).train(), torch.randn(2, 3, 63, 95)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model(images)  # features of a usual size, from the statistics of these images
    model.freeze(["backbone", "neck", "head"])
    output = model(images)
    expected = output.initial[-1]
    for _ in range(scale // 2):
        expected = F.interpolate(expected, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(output.fused[-1], expected, atol=0.05 * float(expected.std()), rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns_from_the_loss_of_the_fused_scores(name):
    model = build(name, "ocr", scale=4).train()
    awaken(model.seed)
    model.freeze(["backbone", "neck", "head"])
    labels = torch.randint(0, 5, (2, 63, 95))
    terms = SegmentationCriterion(output_weights=(0.4, 1.0), ignore_label=255)(model(torch.randn(2, 3, 63, 95)), labels)
    assert set(terms.terms) == {"fused"}
    terms.total.backward()
    for parameter_name, parameter in model.seed.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize("name", NAMES)
def test_mixed_precision_is_close(name):
    model, images = build(name).eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        exact = model(images).fused[-1]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(images).fused[-1]
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("name", [*NAMES, "neck"])
def test_the_fused_scores_alone_are_tested(name):
    cfg = default_config()
    cfg.MODEL.SEED.NAME = name
    assert prediction_names(cfg) == (("initial", "seed", "fused") if name == "neck" else ("fused",))


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameters():
    """With 6 channels of features and 5 classes."""
    assert count(DySampleScores(AnyHead(), 5)) == (6 + 5) * 32 + 32
    assert count(DySampleScores(AnyHead(), 5, scale=4, dynamic_scope=True)) == 2 * (2 * (6 + 5) * 32 + 32)
    assert count(CARAFEScores(AnyHead())) == (6 * 64 + 64) + (9 * 64 * 100 + 100)
    stem = (27 + 2) * 16
    fusion = (16 + 6 + 2) * 64 + (9 * 64 + 1) * (25 + 9) + 4 * 64 + (9 * 8 + 1 + 9 * 64 + 1) * (32 + 8)
    assert count(FreqFusionScores(AnyHead())) == stem + fusion


def test_the_stem_has_the_stride_of_the_finer_map():
    part = FreqFusionScores(AnyHead(), scale=4)
    images = torch.randn(2, 3, 16, 24)
    assert [tuple(step.stem(images).shape[-2:]) for step in part.steps] == [(8, 12), (16, 24)]


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("dysample", {"scale": 3}, r"scale is 3; expected one of 2, 4"),
        ("dysample", {"num_groups": 0}, r"NUM_GROUPS is 0; expected at least 1"),
        ("carafe", {"compressed_channels": 0}, r"COMPRESSED_CHANNELS is 0; expected at least 1"),
        ("carafe", {"kernel_size": 4}, r"kernel_size is 4; expected"),
        ("freqfusion", {"compressed_channels": 12}, r"COMPRESSED_CHANNELS is 12; expected a multiple of 8"),
    ],
)
def test_a_setting_out_of_its_range_is_named(name, setting, message):
    with pytest.raises(UserError, match=message):
        build(name, **setting)


@pytest.mark.parametrize("name", NAMES)
def test_heads_that_it_cannot_refine_are_named(name):
    class QueryHead(AnyHead):
        has_queries = True

    args = (5,) if name == "dysample" else ()
    with pytest.raises(UserError, match=rf"MODEL\.SEED\.NAME is {name}.*another head"):
        PARTS[name](QueryHead(), *args)
    part, scores, features = PARTS[name](AnyHead(), *args), torch.zeros(1, 5, 4, 4), torch.zeros(1, 6, 4, 4)
    with pytest.raises(UserError, match=r"MODEL\.HEAD\.EMBEDDING"):
        part(features, SegOutput((scores,), features, embedding=features), torch.zeros(1, 3, 16, 16))
