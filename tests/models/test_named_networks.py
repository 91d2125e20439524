"""OCRNet, SegFormer and SegNeXt by their papers, from tensors under mmsegmentation's names, against the networks here.

Wang et al., "HRNet", 2019; Yuan et al., "OCR", 2020; Xie et al., "SegFormer", 2021; Guo et al., "SegNeXt", 2022; with
what is mmsegmentation's own: HRNet's coarse maps are upsampled by their factor and then to the size of the fine one,
pixels are read by 1x1 convolutions, and SegNeXt has one Hamburger. Everything is written out with functions of torch.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.models.test_weights import published
from torch import Tensor

from ovenet.builders import build_model
from ovenet.config import load_config
from ovenet.models.pretrained import pretrained_models
from ovenet.models.weights import load_weights

Tensors = dict[str, Tensor]
NUM_CLASSES = 150


def random_tensors(keys: str) -> Tensors:
    """Random numbers under the published names of a network without offset learning."""
    random = torch.Generator().manual_seed(0)
    tensors = {}
    for name, like in published(keys).items():
        if "offset_learning" in name:
            continue
        shape = (NUM_CLASSES, *like.shape[1:]) if ".conv_seg." in name else like.shape
        noise = torch.randn(shape, generator=random)
        if noise.ndim > 1:
            tensors[name] = noise / noise[0].numel() ** 0.5
        elif name.endswith(("weight", "var")) or "layer_scale" in name:
            tensors[name] = 1 + 0.1 * noise.abs()
        else:
            tensors[name] = 0.1 * noise
    return tensors


def conv(x: Tensor, t: Tensors, name: str, **options) -> Tensor:
    return F.conv2d(x, t[f"{name}.weight"], t.get(f"{name}.bias"), **options)


def depthwise(x: Tensor, t: Tensors, name: str) -> Tensor:
    height, width = t[f"{name}.weight"].shape[2:]
    return conv(x, t, name, padding=(height // 2, width // 2), groups=x.shape[1])


def batch_norm(x: Tensor, t: Tensors, name: str) -> Tensor:
    mean, var, weight, bias = (
        t[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def layer_norm(x: Tensor, t: Tensors, name: str, eps: float) -> Tensor:
    """Over the channels of a map."""
    mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
    return (x - mean) / (var + eps).sqrt() * t[f"{name}.weight"][:, None, None] + t[f"{name}.bias"][:, None, None]


def resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def self_attention(x: Tensor, t: Tensors, name: str, num_heads: int, reduction: int) -> Tensor:
    """Of the pixels of a map, to those of the map reduced."""
    batch, channels, height, width = x.shape
    others = x
    if reduction > 1:
        others = layer_norm(conv(x, t, f"{name}.sr", stride=reduction), t, f"{name}.norm", 1e-6)
    weights = t[f"{name}.attn.in_proj_weight"].chunk(3)
    biases = t[f"{name}.attn.in_proj_bias"].chunk(3)
    q, k, v = (
        torch.einsum("oc,bcn->bon", w, pixels.flatten(2)).add(b[:, None]).unflatten(1, (num_heads, -1))
        for w, b, pixels in zip(weights, biases, (x, others, others), strict=True)
    )
    likeness = torch.einsum("bhcn,bhcm->bhnm", q, k) / (channels // num_heads) ** 0.5
    mixed = torch.einsum("bhnm,bhcm->bhcn", likeness.softmax(-1), v).reshape(batch, channels, height, width)
    out = t[f"{name}.attn.out_proj.weight"], t[f"{name}.attn.out_proj.bias"]
    return torch.einsum("oc,bchw->bohw", out[0], mixed) + out[1][:, None, None]


def segformer_b0(t: Tensors, images: Tensor) -> Tensor:
    x, maps = images, []
    for stage, (num_heads, reduction) in enumerate(((1, 8), (2, 4), (5, 2), (8, 1))):
        name = f"backbone.layers.{stage}"
        kernel, stride = (7, 4) if stage == 0 else (3, 2)
        x = layer_norm(
            conv(x, t, f"{name}.0.projection", stride=stride, padding=kernel // 2), t, f"{name}.0.norm", 1e-6
        )
        for block in (f"{name}.1.0", f"{name}.1.1"):
            x = x + self_attention(layer_norm(x, t, f"{block}.norm1", 1e-6), t, f"{block}.attn", num_heads, reduction)
            y = conv(layer_norm(x, t, f"{block}.norm2", 1e-6), t, f"{block}.ffn.layers.0")
            x = x + conv(F.gelu(depthwise(y, t, f"{block}.ffn.layers.1")), t, f"{block}.ffn.layers.4")
        x = layer_norm(x, t, f"{name}.2", 1e-6)
        maps.append(x)
    read = [
        resized(batch_norm(conv(x, t, f"decode_head.convs.{i}.conv"), t, f"decode_head.convs.{i}.bn").relu(), maps[0])
        for i, x in enumerate(maps)
    ]
    mixed = batch_norm(conv(torch.cat(read, 1), t, "decode_head.fusion_conv.conv"), t, "decode_head.fusion_conv.bn")
    return conv(mixed.relu(), t, "decode_head.conv_seg")


def conv_bn(x: Tensor, t: Tensors, conv_name: str, norm_name: str, **options) -> Tensor:
    return batch_norm(conv(x, t, conv_name, **options), t, norm_name)


def residual(x: Tensor, t: Tensors, name: str) -> Tensor:
    """A block of two 3x3 convolutions, or of a 3x3 between two 1x1 convolutions."""
    y = x
    numbers = [n for n in (1, 2, 3) if f"{name}.conv{n}.weight" in t]
    for n in numbers:
        padding = t[f"{name}.conv{n}.weight"].shape[-1] // 2
        y = conv_bn(y, t, f"{name}.conv{n}", f"{name}.bn{n}", padding=padding)
        y = y if n == numbers[-1] else y.relu()
    if f"{name}.downsample.0.weight" in t:
        x = conv_bn(x, t, f"{name}.downsample.0", f"{name}.downsample.1")
    return (x + y).relu()


def fused(maps: list[Tensor], t: Tensors, name: str) -> list[Tensor]:
    """Every resolution with the sum of all."""
    results = []
    for i, fine in enumerate(maps):
        total = torch.zeros_like(fine)
        for j, x in enumerate(maps):
            layer = f"{name}.fuse_layers.{i}.{j}"
            if j > i:
                x = conv_bn(x, t, f"{layer}.0", f"{layer}.1")
                x = F.interpolate(x, scale_factor=2 ** (j - i), mode="bilinear", align_corners=False)
                x = resized(x, fine)
            for step in range(i - j):
                x = conv_bn(x, t, f"{layer}.{step}.0", f"{layer}.{step}.1", stride=2, padding=1)
                x = x.relu() if step < i - j - 1 else x
            total = total + x
        results.append(total.relu())
    return results


def ocrnet_hr18s(t: Tensors, images: Tensor) -> Tensor:
    net = "backbone"
    x = conv_bn(images, t, f"{net}.conv1", f"{net}.bn1", stride=2, padding=1).relu()
    x = conv_bn(x, t, f"{net}.conv2", f"{net}.bn2", stride=2, padding=1).relu()
    for block in range(2):
        x = residual(x, t, f"{net}.layer1.{block}")
    maps = [x]
    for stage, num_modules in ((2, 1), (3, 3), (4, 2)):
        start = f"{net}.transition{stage - 1}"
        coarse = conv_bn(
            maps[-1], t, f"{start}.{stage - 1}.0.0", f"{start}.{stage - 1}.0.1", stride=2, padding=1
        ).relu()
        if stage == 2:
            maps = [conv_bn(x, t, f"{start}.0.0", f"{start}.0.1", padding=1).relu()]
        maps = [*maps, coarse]
        for module in range(num_modules):
            name = f"{net}.stage{stage}.{module}"
            for branch in range(stage):
                for block in range(2):
                    maps[branch] = residual(maps[branch], t, f"{name}.branches.{branch}.{block}")
            maps = fused(maps, t, name)
    x = torch.cat([resized(one, maps[0]) for one in maps], 1)
    first = conv_bn(x, t, "decode_head.0.convs.0.conv", "decode_head.0.convs.0.bn").relu()
    regions = conv(first, t, "decode_head.0.conv_seg").flatten(2).softmax(2)

    def read(y: Tensor, name: str, padding: int = 0) -> Tensor:
        name = f"decode_head.1.{name}"
        return conv_bn(y, t, f"{name}.conv", f"{name}.bn", padding=padding).relu()

    block = "object_context_block"
    pixels = read(x, "bottleneck", padding=1)
    objects = (regions @ pixels.flatten(2).mT).mT[..., None]  # (B, C, K, 1)
    query = read(read(pixels, f"{block}.query_project.0"), f"{block}.query_project.1").flatten(2)
    key = read(read(objects, f"{block}.key_project.0"), f"{block}.key_project.1").flatten(2)
    value = read(objects, f"{block}.value_project").flatten(2)
    share = (query.mT @ key / 256**0.5).softmax(2)
    context = read((value @ share.mT).reshape(*value.shape[:2], *pixels.shape[2:]), f"{block}.out_project")
    return conv(read(torch.cat((context, pixels), 1), f"{block}.bottleneck"), t, "decode_head.1.conv_seg")


def gate(x: Tensor, t: Tensors, name: str) -> Tensor:
    near = depthwise(x, t, f"{name}.conv0")
    wide = [depthwise(depthwise(near, t, f"{name}.conv{i}_1"), t, f"{name}.conv{i}_2") for i in range(3)]
    return x * conv(near + sum(wide), t, f"{name}.conv3")


def hamburger(x: Tensor) -> Tensor:
    """Seven updates of a factorisation of rank 16 from bases drawn by torch's generator."""
    pixels = x.flatten(2)
    bases = torch.rand(*pixels.shape[:2], 16)
    bases = bases / bases.square().sum(1, keepdim=True).sqrt()
    codes = (pixels.mT @ bases).softmax(2)
    for _ in range(7):
        codes = codes * (pixels.mT @ bases) / (codes @ (bases.mT @ bases) + 1e-6)
        bases = bases * (pixels @ codes) / (bases @ (codes.mT @ codes) + 1e-6)
    codes = codes * (pixels.mT @ bases) / (codes @ (bases.mT @ bases) + 1e-6)
    return (bases @ codes.mT).reshape(x.shape)


def group_norm(x: Tensor, t: Tensors, name: str) -> Tensor:
    return F.group_norm(x, 32, t[f"{name}.weight"], t[f"{name}.bias"])


def segnext_t(t: Tensors, images: Tensor) -> Tensor:
    x, maps = images, []
    for stage, depth in enumerate((3, 3, 5, 2), start=1):
        embed = f"backbone.patch_embed{stage}"
        if stage == 1:
            x = F.gelu(batch_norm(conv(x, t, f"{embed}.proj.0", stride=2, padding=1), t, f"{embed}.proj.1"))
            x = batch_norm(conv(x, t, f"{embed}.proj.3", stride=2, padding=1), t, f"{embed}.proj.4")
        else:
            x = batch_norm(conv(x, t, f"{embed}.proj", stride=2, padding=1), t, f"{embed}.norm")
        for number in range(depth):
            block = f"backbone.block{stage}.{number}"
            y = batch_norm(x, t, f"{block}.norm1")
            z = gate(F.gelu(conv(y, t, f"{block}.attn.proj_1")), t, f"{block}.attn.spatial_gating_unit")
            x = x + t[f"{block}.layer_scale_1"][:, None, None] * (y + conv(z, t, f"{block}.attn.proj_2"))
            y = conv(batch_norm(x, t, f"{block}.norm2"), t, f"{block}.mlp.fc1")
            y = conv(F.gelu(depthwise(y, t, f"{block}.mlp.dwconv")), t, f"{block}.mlp.fc2")
            x = x + t[f"{block}.layer_scale_2"][:, None, None] * y
        x = layer_norm(x, t, f"backbone.norm{stage}", 1e-5)
        maps.append(x)
    head = "decode_head"
    x = torch.cat([resized(x, maps[1]) for x in maps[1:]], 1)
    x = group_norm(conv(x, t, f"{head}.squeeze.conv"), t, f"{head}.squeeze.gn").relu()
    y = hamburger(conv(x, t, f"{head}.hamburger.ham_in.conv").relu())
    y = group_norm(conv(y, t, f"{head}.hamburger.ham_out.conv"), t, f"{head}.hamburger.ham_out.gn")
    y = group_norm(conv((x + y).relu(), t, f"{head}.align.conv"), t, f"{head}.align.gn")
    return conv(y.relu(), t, f"{head}.conv_seg")


@pytest.mark.parametrize(
    ("name", "keys", "theirs", "layer"),
    [
        ("ocrnet_hr18s_4xb4-160k_ade20k-512x512", "mmseg_ocrnet_hr18s_cityscapes", ocrnet_hr18s, "dwconv"),
        ("segformer_mit-b0_8xb2-160k_ade20k-512x512", "segformer_b0_ol_ade20k", segformer_b0, "dwconv"),
        ("segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512", "segnext_t_ol_ade20k", segnext_t, "dwconv"),
        ("segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512", "segnext_t_ol_ade20k", segnext_t, "dwconv.dwconv"),
    ],
)
@torch.no_grad()
def test_the_same_scores_from_the_published_tensors(name, keys, theirs, layer):
    model = pretrained_models()[name]
    network = build_model(load_config(model.experiment)).eval()
    tensors = random_tensors(keys)
    # version 0 of mmsegmentation has one level more in SegNeXt's names
    saved = {key.replace(".mlp.dwconv.", f".mlp.{layer}."): tensor for key, tensor in tensors.items()}
    load_weights(network, saved, name, whole=True).require(1.0)
    images = torch.randn(2, 3, 63, 95)
    torch.manual_seed(1)
    expected = theirs(tensors, images)
    torch.manual_seed(1)
    ours = network(images).fused[-1]
    assert ours.shape[1] == NUM_CLASSES
    assert expected.std() > 0.1
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))
