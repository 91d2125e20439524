"""The fusion formula, and the heads, against loops and closed forms."""

import math

import numpy as np
import torch

from ovenet.models import SeedFusion
from ovenet.models.heads.ocr import RegionAttention, gather_regions
from ovenet.models.seeds.offset_head import OffsetHead


def test_fusion_by_hand():
    """Three pixels in a row, one pixel apart is 1.0: the middle one has its seed at the right one, confidence 1/4."""
    scores = torch.tensor([[[[0.0, 4.0, 8.0]], [[1.0, 1.0, 5.0]]]])
    offset = torch.zeros(1, 2, 1, 3)
    offset[0, 0, 0, 1] = 1.0
    confidence = torch.full((1, 1, 1, 3), 0.25)
    output = SeedFusion()([scores], offset, confidence)
    np.testing.assert_allclose(output.seed[0][0, :, 0], [[0, 8, 8], [1, 5, 5]], atol=1e-6)
    np.testing.assert_allclose(output.fused[0][0, :, 0], [[0, 5, 8], [1, 2, 5]], atol=1e-6)
    np.testing.assert_allclose(output.initial[0], scores)


def test_confidence_selects_between_pixel_and_seed():
    scores = torch.randn(1, 4, 5, 6)
    offset = torch.empty(1, 2, 5, 6).uniform_(-0.5, 0.5)
    none = SeedFusion()([scores], offset, torch.zeros(1, 1, 5, 6))
    full = SeedFusion()([scores], offset, torch.ones(1, 1, 5, 6))
    torch.testing.assert_close(none.fused[0], scores)
    torch.testing.assert_close(full.fused[0], full.seed[0])


def test_probability_fusion_by_hand():
    """Logits (0, ln 3) are probabilities (1/4, 3/4), the seed's (0, 0) are (1/2, 1/2); half of each is (3/8, 5/8)."""
    scores = torch.tensor([[[[0.0, 0.0]], [[math.log(3), 0.0]]]])
    offset = torch.zeros(1, 2, 1, 2)
    offset[0, 0, 0, 0] = 2.0
    output = SeedFusion(fuse_logits=False)([scores], offset, torch.full((1, 1, 1, 2), 0.5))
    np.testing.assert_allclose(output.fused[0][0, :, 0, 0], [3 / 8, 5 / 8], atol=1e-6)
    assert output.score_kind == "probabilities"


def test_the_seeds_of_bfloat16_are_those_of_float32():
    """The last convolution rounds nothing: an offset in bfloat16 is off by a third of a pixel of a map 512 wide."""
    head = OffsetHead(16).eval()
    torch.nn.init.normal_(head.layers[-1].weight, std=0.3)
    features = torch.randn(1, 16, 8, 512)
    hidden = {}
    head.layers[-2].register_forward_hook(lambda module, inputs, output: hidden.update(it=output))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        offset, confidence, *_ = head(features)
    weight, bias = head.layers[-1].weight.double(), head.layers[-1].bias.double()
    raw = torch.nn.functional.conv2d(hidden["it"].double(), weight, bias)  # from the same hidden features
    pixels = (offset.double() - 0.5 * torch.tanh(raw[:, :2])).abs() * 511 / 2
    assert pixels.max() < 1e-3
    assert (confidence - torch.sigmoid(raw[:, 2:])).abs().max() < 1e-5
    assert offset.dtype == confidence.dtype == torch.float32


def test_region_features_equal_loops():
    features, logits = torch.randn(2, 3, 4, 5).double(), torch.randn(2, 6, 4, 5).double()
    regions = gather_regions(features, logits).numpy()
    for b in range(2):
        for k in range(6):
            weights = np.exp(logits[b, k].numpy())
            weights /= weights.sum()
            expected = [(weights * features[b, c].numpy()).sum() for c in range(3)]
            np.testing.assert_allclose(regions[b, :, k], expected, atol=1e-12)


def test_region_attention_equals_loops():
    attention = RegionAttention(channels=6, key_channels=4).double().eval()
    features, regions = torch.randn(1, 6, 2, 3).double(), torch.randn(1, 6, 5).double()
    with torch.no_grad():
        result = attention(features, regions)
        query = attention.query(features)[0].flatten(1).numpy()
        key = attention.key(regions[..., None])[0, ..., 0].numpy()
        value = attention.value(regions[..., None])[0, ..., 0].numpy()
        context = np.zeros((4, 6))
        for n in range(6):
            weights = np.array([np.exp(query[:, n] @ key[:, k] / math.sqrt(4)) for k in range(5)])
            context[:, n] = (weights / weights.sum()) @ value.T
        expected = attention.up(torch.from_numpy(context).view(1, 4, 2, 3))
    torch.testing.assert_close(result, expected)
