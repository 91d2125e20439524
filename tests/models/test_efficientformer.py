"""EfficientFormerV2 against timm's, and its biases at other sizes."""

import re

import pytest
import timm
import torch
import torch.nn.functional as F

from ovenet.errors import UserError
from ovenet.models.backbones.efficientformer import EfficientFormerV2, RelativeBias
from ovenet.models.registry import BACKBONES

RULES = [  # of names, each applied to all; timm calls convolution and BatchNorm of a layer conv and bn
    (r"^stem_conv1\.conv", "patch_embed.0"),
    (r"^stem_conv1\.bn", "patch_embed.1"),
    (r"^stem_conv2\.conv", "patch_embed.3"),
    (r"^stem_conv2\.bn", "patch_embed.4"),
    *((rf"^stages_{stage}\.blocks", f"network.{2 * stage}") for stage in range(4)),
    *((rf"^stages_{stage}\.downsample\.conv\.conv", f"network.{2 * stage - 1}.proj") for stage in (1, 2)),
    *((rf"^stages_{stage}\.downsample\.conv\.bn", f"network.{2 * stage - 1}.norm") for stage in (1, 2)),
    (r"^stages_3\.downsample\.(conv\.)?", "network.5."),
    (r"mlp\.(fc1|mid|fc2)\.conv", r"mlp.\1"),
    (r"mlp\.fc1\.bn", "mlp.norm1"),
    (r"mlp\.mid\.bn", "mlp.mid_norm"),
    (r"mlp\.fc2\.bn", "mlp.norm2"),
    (r"\b(q\.proj|stride_conv|q|k|v|v_local)\.conv\.", r"\1.0."),
    (r"\b(q\.proj|stride_conv|q|k|v|v_local)\.bn\.", r"\1.1."),
    (r"\bproj\.conv\.", "proj.1."),
    (r"\bproj\.bn\.", "proj.2."),
    (r"attention_biases", "bias.table"),
    (r"ls(\d)\.gamma", r"layer_scale_\1"),
]


def from_timm(state):
    """timm's tensors by the names here."""
    translated = {}
    for name, value in state.items():
        for pattern, replacement in RULES:
            name = re.sub(pattern, replacement, name)
        translated[name] = value[:, None, None] if "layer_scale" in name else value
    return {name: value for name, value in translated.items() if not name.endswith("attention_bias_idxs")}


def randomized(model):
    """Weights of which every one counts: scales and biases that start at nearly zero among them."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            drawn = torch.rand(value.shape, generator=generator)
            value.copy_(0.2 * drawn - 0.1 if value.ndim == 4 else drawn + (0.2 if "var" in name else 0.0))
    return model.double().eval()


def test_it_is_the_network_of_timm():
    other = randomized(timm.create_model("efficientformerv2_s0", features_only=True, img_size=128, pretrained=False))
    ours = BACKBONES["efficientformerv2_s0"](resolution=128).double().eval()
    ours.load_state_dict(from_timm(other.state_dict()))
    images = torch.randn(2, 3, 128, 128, dtype=torch.float64)
    with torch.no_grad():
        for a, b in zip(ours(images), other(images), strict=True):
            torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def small(**options):
    torch.manual_seed(0)
    return randomized(EfficientFormerV2((8, 8, 16, 16), (1, 1, 2, 2), ("44", "44"), 1, resolution=128, **options))


@pytest.mark.parametrize("size", [(128, 128), (96, 160), (64, 256)])
def test_both_modes_differ_at_other_sizes_alone(size):
    images = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        spatial, official = (small(bias_mode=mode)(images) for mode in ("spatial", "official"))
    for index, (a, b) in enumerate(zip(spatial, official, strict=True)):
        assert torch.equal(a, b) == (size == (128, 128) or index < 2)


def looped(table, keys, step):
    """Biases by query and key, of a table that fits the keys' size."""
    queries = [(y, x) for y in range(0, keys[0], step) for x in range(0, keys[1], step)]
    places = [(y, x) for y in range(keys[0]) for x in range(keys[1])]
    rows = [[table[:, abs(y - v), abs(x - u)] for v, u in places] for y, x in queries]
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


@pytest.mark.parametrize("step", [1, 2])
def test_a_bias_belongs_to_a_distance(step):
    bias = RelativeBias(4, query_step=step, mode="spatial")
    torch.nn.init.normal_(bias.table)
    table = bias.table.detach().view(8, 4, 4)
    assert torch.equal(bias((4, 4)), looped(table, (4, 4), step))
    resized = F.interpolate(table[None], size=(2, 6), mode="bilinear", align_corners=True)[0]
    torch.testing.assert_close(bias((2, 6)), looped(resized, (2, 6), step))
    assert bias((2, 6))[:, 0, 0].equal(table[:, 0, 0])  # no distance is no distance at any size


@pytest.mark.parametrize("step", [1, 2])
def test_the_official_mode_resizes_the_matrix(step):
    bias = RelativeBias(4, query_step=step, mode="official")
    torch.nn.init.normal_(bias.table)
    matrix = looped(bias.table.detach().view(8, 4, 4), (4, 4), step)
    assert torch.equal(bias((4, 4)), matrix)
    num_queries = (2 // step) * (6 // step)
    expected = F.interpolate(matrix[None], size=(num_queries, 12), mode="bicubic", align_corners=False)[0]
    torch.testing.assert_close(bias((2, 6)), expected)


def test_a_resolution_that_cannot_be_is_named():
    for resolution in (0, 100):
        with pytest.raises(UserError, match=rf"MODEL\.BACKBONE\.RESOLUTION is {resolution}.*multiple of 32"):
            BACKBONES["efficientformerv2_s0"](resolution=resolution)
