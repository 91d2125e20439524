"""Swin as mmsegmentation publishes it: neighbours that are merged, windows, and what is skipped in training."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ovenet.errors import UserError
from ovenet.models.backbones.swin import SwinBackbone, unfolded_to_stacked


@pytest.fixture
def small():
    torch.manual_seed(0)
    backbone = SwinBackbone(32, (2, 2), window=3).eval()
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.3)
    return backbone


def test_merged_neighbours_are_read_in_the_published_order():
    """mmsegmentation reads them from nn.Unfold, transformers from four maps side by side."""
    torch.manual_seed(0)
    x = torch.randn(1, 5, 6, 8, dtype=torch.float64)
    weight = torch.randn(7, 20, dtype=torch.float64)
    published = weight @ F.unfold(x, 2, stride=2)[0]
    stacked = torch.cat([x[:, :, row::2, column::2] for column in range(2) for row in range(2)], dim=1)
    ours = unfolded_to_stacked(weight) @ stacked.flatten(2)[0]
    torch.testing.assert_close(ours, published)


def looped_attention(attention, tokens, size, window, shift):
    """Windowed attention of `tokens` ``(H, W, C)``, pixel by pixel: zeros are added first, then all is shifted.

    Each pixel sees those of its window that came there from the same side of the image.
    """
    height, width = (-(-n // window) * window for n in size)
    padded = F.pad(tokens, (0, 0, 0, width - size[1], 0, height - size[0]))
    heads = attention.num_attention_heads
    q, k, v = (
        layer(padded).unflatten(2, (heads, -1)) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    table = attention.relative_position_bias.relative_position_bias_table
    result = torch.zeros_like(padded)

    def place(row, column):
        """Window, side of the seam, and place within the window, of a pixel before the shift."""
        shifted = ((row - shift) % height, (column - shift) % width)
        seam = tuple(n >= limit - shift for n, limit in zip(shifted, (height, width), strict=True))
        return [n // window for n in shifted], seam, [n % window for n in shifted]

    for row in range(height):
        for column in range(width):
            window_here, side, (y, x) = place(row, column)
            seen = []
            for other_row in range(height):
                for other_column in range(width):
                    other_window, other_side, (y2, x2) = place(other_row, other_column)
                    if (other_window, other_side) == (window_here, side):
                        bias = table[(y - y2 + window - 1) * (2 * window - 1) + x - x2 + window - 1]
                        affinity = (q[row, column] * k[other_row, other_column]).sum(1) * attention.scaling + bias
                        seen.append((affinity, v[other_row, other_column]))
            shares = torch.stack([affinity for affinity, _ in seen]).softmax(dim=0)
            result[row, column] = (shares[..., None] * torch.stack([value for _, value in seen])).sum(0).flatten()
    return attention.o_proj(result)[: size[0], : size[1]]


@pytest.mark.parametrize("index", [0, 1])
def test_windows_lie_as_published(small, index):
    size = (5, 7)
    stage = small.body.swin.encoder.layers[0]
    block = stage.blocks[index]
    tokens = torch.randn(1, size[0] * size[1], 32)
    with torch.no_grad():
        ours = block(tokens, size, always_partition=True)
        ours = ours[0] if isinstance(ours, tuple) else ours
        normed = block.layernorm_before(tokens).unflatten(1, size)[0]
        expected = tokens[0].unflatten(0, size) + looped_attention(block.attention, normed, size, 3, index)
        expected = expected + block.mlp(block.layernorm_after(expected))
    torch.testing.assert_close(ours[0].unflatten(0, size), expected, atol=1e-5, rtol=1e-5)


def test_both_halves_of_a_block_are_skipped(small):
    block = SwinBackbone(32, (1, 2), window=3, drop_path_rate=1 - 1e-7).body.swin.encoder.layers[1].blocks[1].train()
    tokens = torch.randn(2, 30, 64)
    result = block(tokens, (5, 6), always_partition=True)
    assert torch.equal(result[0] if isinstance(result, tuple) else result, tokens)


def test_a_small_image_leaves_the_windows_as_they_are(small):
    large, tiny = torch.randn(1, 3, 40, 48), torch.randn(1, 3, 4, 4)
    with torch.no_grad():
        before = small(large)
        small(tiny)
        after = small(large)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"window": 0}, r"MODEL\.BACKBONE\.WINDOW is 0.*at least 1"),
        ({"drop_path_rate": 1.0}, r"MODEL\.BACKBONE\.DROP_PATH_RATE is 1\.0.*at least 0 and below 1"),
    ],
)
def test_settings_that_cannot_be(setting, message):
    with pytest.raises(UserError, match=message):
        SwinBackbone(32, (2, 2), **setting)


def test_layers_are_counted_towards_the_image(small):
    """Two stages of two blocks: what merges neighbours counts with the first block after it, as in timm."""
    above = small.layers_above()
    expected = {
        "body.swin.embeddings.patch_embeddings.projection.weight": 5,
        "body.swin.encoder.layers.0.blocks.0.layernorm_before.weight": 4,
        "body.swin.encoder.layers.0.blocks.1.mlp.fc1.bias": 3,
        "body.hidden_states_norms.stage1.weight": 3,
        "body.swin.encoder.layers.0.downsample.reduction.weight": 2,
        "body.swin.encoder.layers.1.blocks.0.mlp.fc1.bias": 2,
        "body.swin.encoder.layers.1.blocks.1.mlp.fc2.weight": 1,
        "body.hidden_states_norms.stage2.bias": 1,
    }
    assert {name: above[name] for name in expected} == expected
    assert above.keys() == {name for name, _ in small.named_parameters()}
