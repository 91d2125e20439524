"""Plain vision transformers of timm as backbones: sizes, blocks, weights, and what they go with."""

import math
import re

import numpy as np
import pytest
import tests.models.small_timm as small_timm
import timm
import torch

import ovenet
from ovenet.errors import UserError
from ovenet.models import build_segmentor
from ovenet.models.backbones.timm import TimmBackbone
from ovenet.models.backbones.timm_traits import TimmTraits, choose_blocks
from ovenet.models.factory import initialize_backbone
from ovenet.utils.meta import meta_device

DYNAMIC = ["small_dinov2", "small_dinov2_registers", "small_dinov3", "small_eva02", "small_siglip"]


def images(size, batch=1):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def randomized(name, **options):
    """A network of timm with other positions and tokens than at initialisation, where they are almost zero."""
    torch.manual_seed(0)
    network = timm.create_model(name, **options)
    with torch.no_grad():
        for parameter, values in network.named_parameters():
            if "pos" in parameter or "token" in parameter or "gamma" in parameter:
                values.normal_(std=0.5)
    return network


def initialized(name, state, tmp_path, **args):
    """A model whose backbone is initialised from a file."""
    torch.save(state, tmp_path / "weights.pth")
    model = build_segmentor(name, num_classes=5, backbone_args=args)
    (report,) = initialize_backbone(model, str(tmp_path / "weights.pth"))
    return model, report


@pytest.mark.parametrize("final_norm", [False, True])
@pytest.mark.parametrize("name", DYNAMIC)
def test_maps_are_those_that_timm_gives_at_this_size(name, final_norm, tmp_path):
    network = randomized(name, dynamic_img_size=True).eval()
    model, report = initialized(name, network.state_dict(), tmp_path, blocks=[1, 3], final_norm=final_norm)
    backbone = model.backbone.eval()
    assert (report.matched_share, report.missing, report.mismatched, report.unexpected) == (1.0, (), (), ())
    stride = small_timm.SMALL[name][0].split("patch")[1][:2]
    assert backbone.strides == (int(stride),) * 2
    assert backbone.fixed_size is None
    with torch.no_grad():
        x = model.pad(images((63, 95)))
        expected = network.forward_intermediates(x, indices=[1, 3], norm=final_norm, intermediates_only=True)
        maps = backbone(x)
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))


def cubic(x):
    """Keys' kernel with a = -0.5, as antialiased bicubic resizing has it."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def resized_axis(values, length):
    """The first axis at another length, each position a mean of old ones, as many as the kernel covers."""
    scale = len(values) / length
    width = max(scale, 1.0)
    rows = []
    for i in range(length):
        center = (i + 0.5) * scale
        first, last = max(int(center - 2 * width + 0.5), 0), min(int(center + 2 * width + 0.5), len(values))
        weights = [cubic((j + 0.5 - center) / width) for j in range(first, last)]
        rows.append(sum(w * values[j] for w, j in zip(weights, range(first, last), strict=True)) / sum(weights))
    return np.stack(rows)


def test_positions_are_resampled_to_the_size(tmp_path):
    """As by a slow loop: a network of one size, given the resampled positions, has the same maps."""
    network = randomized("small_dinov2", img_size=8 * 14).eval()
    model, _ = initialized("small_dinov2", network.state_dict(), tmp_path)
    rows, columns = 5, 11  # one axis shrinks, the other grows
    grid = model.backbone.body.model.pos_embed[0, 1:].detach().double().numpy()  # 37x37, resampled when it was loaded
    grid = grid.reshape(37, 37, -1)
    other = resized_axis(resized_axis(grid, rows).transpose(1, 0, 2), columns).transpose(1, 0, 2)
    fixed = timm.create_model("small_dinov2", img_size=(rows * 14, columns * 14)).eval()
    state = dict(network.state_dict())
    positions = torch.from_numpy(other.reshape(1, rows * columns, -1)).float()
    state["pos_embed"] = torch.cat((state["pos_embed"][:, :1], positions), dim=1)
    fixed.load_state_dict(state)
    x = images((rows * 14, columns * 14))
    with torch.no_grad():
        expected = fixed.forward_intermediates(x, indices=[0, 1, 2, 4], intermediates_only=True)
        maps = model.backbone.eval()(x)
    assert model.backbone.channels == (48,) * 4
    for a, b in zip(maps, expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "stride"), [("small_beit", 16), ("small_hiera", None)])
def test_networks_of_one_size_say_which(name, stride):
    with meta_device():
        model = build_segmentor(name, num_classes=5)
        assert model.backbone.fixed_size == (224, 224)
        assert (model.backbone.strides == (stride,) * 4) == (stride is not None)
        with pytest.raises(UserError, match=r"224x224 .*got 256x64.*IMG_SIZE"):
            model(torch.zeros(1, 3, 64, 256))


@pytest.mark.parametrize("name", ["small_swin", "small_sam2_hiera", "convnext_atto"])
def test_hierarchical_networks_that_take_any_size(name):
    with meta_device():
        model = build_segmentor(name, num_classes=5)
        assert model.backbone.fixed_size is None
        assert model(torch.zeros(1, 3, 63, 320)).fused[-1].shape == (1, 5, 16, 80)


def test_an_image_size_ties_a_network_to_it_as_before():
    with meta_device():
        backbone = TimmBackbone("small_dinov2", img_size=(28, 42))
    assert backbone.fixed_size == (28, 42)
    assert backbone.body.model.pos_embed.shape == (1, 1 + 2 * 3, 48)


@pytest.mark.parametrize(
    ("num_blocks", "expected"),
    [(12, (2, 5, 8, 11)), (24, (5, 11, 17, 23)), (40, (9, 19, 29, 39)), (5, (0, 1, 2, 4)), (2, (0, 1))],
)
def test_four_blocks_at_equal_distances(num_blocks, expected):
    """Those that DINOv2's authors read of the networks of 12 and 40 blocks."""
    assert choose_blocks("vit", None, TimmTraits(14, num_blocks)) == expected


def test_blocks_behind_the_last_one_read_are_not_built():
    with meta_device():
        backbone = TimmBackbone("small_eva02", blocks=[0, 2])
    assert len(backbone.body.model.blocks) == 3


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("small_dinov3", {"blocks": [2, 5]}, ["MODEL.BACKBONE.BLOCKS is [2, 5]", "0 to 4"]),
        ("small_dinov3", {"blocks": [-1]}, ["MODEL.BACKBONE.BLOCKS is [-1]", "0 to 4"]),
        ("small_dinov3", {"blocks": []}, ["MODEL.BACKBONE.BLOCKS is []"]),
        ("small_dinov3", {"blocks": [3, 1]}, ["MODEL.BACKBONE.BLOCKS is [3, 1]", "ascending"]),
        ("small_swin", {"blocks": [1]}, ["MODEL.BACKBONE.BLOCKS", "stages"]),
        ("small_swin", {"final_norm": True}, ["MODEL.BACKBONE.FINAL_NORM", "stages"]),
        ("small_dinov2", {"output_stride": 16}, ["MODEL.BACKBONE.OUTPUT_STRIDE is 16", "14"]),
        ("small_dinov2", {"img_size": (64, 98)}, ["MODEL.BACKBONE.IMG_SIZE is [64, 98]", "14"]),
    ],
)
def test_settings_that_a_network_does_not_have(name, args, words):
    with meta_device(), pytest.raises(UserError) as caught:
        build_segmentor(name, num_classes=5, backbone_args=args)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("neck", "words"),
    [
        ({"neck": "freqfusion"}, ["freqfusion", "14, 14, 14, 14"]),
        ({"neck": "fpn", "neck_args": {"upsampler": "carafe"}}, ["carafe", "14, 14, 14, 14", "bilinear"]),
        ({"neck": "simple_fpn"}, ["MODEL.NECK.SCALE_FACTORS", "14", "[2, 1, 0.5]"]),
        ({"neck": "pixel_shuffle", "neck_args": {"upscale_factor": 4}}, ["MODEL.NECK.UPSCALE_FACTOR is 4", "14"]),
        ({"head": "light_ham", "backbone_args": {"blocks": [4]}}, ["3"]),
        ({"head": "mask2former", "backbone_args": {"blocks": [4]}}, ["4 maps"]),
        ({"seed": "fork"}, ["fork", "shared or neck"]),
    ],
)
def test_what_maps_of_one_stride_do_not_go_with(neck, words):
    with meta_device(), pytest.raises(UserError) as caught:
        build_segmentor("small_dinov2", num_classes=5, **neck)
    assert all(word in str(caught.value) for word in words)


HEAD_ARGS = {"mask2former": {"channels": 32, "num_queries": 6, "num_layers": 1, "num_pixel_layers": 1}}
NECKS = [
    {},
    {"neck": "none"},
    {"neck": "fpn"},
    {"neck": "concat", "neck_args": {"projection": 8}},
    {"neck": "simple_fpn", "neck_args": {"channels": 32, "scale_factors": [2, 1, 0.5]}},
    {"neck": "pixel_shuffle"},
]


@pytest.mark.parametrize("head", ovenet.list_heads())
def test_every_head_and_neck_runs_at_stride_14(head):
    """63x95 pixels are 5x7 patches; the scores belong to the pixels, without the padding."""
    for options in NECKS if head == "fcn" else NECKS[:1]:
        with torch.no_grad():
            torch.manual_seed(0)
            args = HEAD_ARGS.get(head, {})
            model = build_segmentor(
                "small_dinov2", num_classes=5, head=head, head_args=args, seed="neck", **options
            ).eval()
            output = model(images((63, 95)))
        stride = model.head.stride
        assert output.fused[-1].shape[-2:] == (math.ceil(63 / stride), math.ceil(95 / stride))
        assert torch.isfinite(output.fused[-1]).all()


@pytest.mark.parametrize("seed", sorted({*ovenet.list_seeds()} - {"fork"}))
@pytest.mark.parametrize("name", ["small_dinov2", "small_dinov3"])
def test_every_seed_runs(seed, name):
    torch.manual_seed(0)
    seed_args = {"shared": {"upsampling": 2}, "control": {"source": "own"}}.get(seed, {})
    model = build_segmentor(name, num_classes=5, seed=seed, seed_args=seed_args).train()
    output = model(images((63, 95), batch=2))
    assert torch.isfinite(output.fused[-1]).all()
    with torch.no_grad():
        assert model.eval()(images((63, 95))).fused[-1].shape[:2] == (1, 5)


def test_pyramids_of_heads_that_read_several_maps():
    for head, num_maps in (("segformer", 4), ("light_ham", 4), ("mask2former", 4)):
        with meta_device():
            args = HEAD_ARGS.get(head, {})
            model = build_segmentor("small_dinov3", num_classes=5, head=head, head_args=args, neck="simple_fpn")
            assert model.neck.strides == (4, 8, 16, 32)
            assert len(model.neck.channels) == num_maps
            output = model.eval()(torch.zeros(1, 3, 80, 112))
        assert output.fused[-1].shape[-2:] == tuple(n // model.head.stride for n in (80, 112))


def test_positions_and_tokens_are_not_decayed():
    with meta_device():
        model = build_segmentor("small_dinov2_registers", num_classes=5)
    names = [n for n, _ in model.backbone.named_parameters()]
    chosen = [n for n in names if any(re.fullmatch(p, n) for p in model.backbone.undecayed)]
    assert chosen == ["body.model.cls_token", "body.model.reg_token", "body.model.pos_embed"]


def test_activations_are_computed_twice():
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = build_segmentor("small_dinov3", num_classes=5, checkpoint_activations=checkpointed).train()
        model(images((32, 48), batch=2)).fused[-1].square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_positions_of_a_run_here_at_another_size(tmp_path):
    """A file of our own names: a square grid is resampled, another one cannot be."""
    square = build_segmentor("small_dinov2", num_classes=5, backbone_args={"img_size": (56, 56)})
    model, report = initialized("small_dinov2", square.state_dict(), tmp_path)
    assert report.mismatched == ()
    assert model.backbone.body.model.pos_embed.shape == (1, 1 + 37 * 37, 48)
    wide = build_segmentor("small_dinov2", num_classes=5, backbone_args={"img_size": (28, 70)})
    with pytest.raises(UserError, match=r"weights\.pth: pos_embed .*\(1, 11, 48\).*IMG_SIZE"):
        initialized("small_dinov2", wide.state_dict(), tmp_path)
    other, report = initialized("small_dinov2", wide.state_dict(), tmp_path, img_size=(28, 70))
    assert torch.equal(other.backbone.body.model.pos_embed, wide.backbone.body.model.pos_embed)


@pytest.mark.parametrize("other", ["small_dinov3", "small_swin", "resnet18"])
def test_weights_of_another_network(other, tmp_path):
    _, report = initialized("small_dinov2", timm.create_model(other).state_dict(), tmp_path)
    with pytest.raises(UserError, match="only") as caught:
        report.require(0.95)
    assert "\n" not in str(caught.value)


def test_weights_under_the_names_of_dinov2(tmp_path):
    """Meta's file has a position for the class token, which timm adds to the token."""
    network = randomized("small_dinov2_registers", dynamic_img_size=True)
    state = {name.replace("reg_token", "register_tokens"): tensor for name, tensor in network.state_dict().items()}
    first = torch.randn(1, 1, 48)
    state["pos_embed"] = torch.cat((first, state["pos_embed"]), dim=1)
    state |= {"cls_token": state["cls_token"] - first, "mask_token": torch.zeros(1, 48)}
    model, report = initialized("small_dinov2_registers", state, tmp_path)
    assert (report.matched_share, report.unexpected) == (1.0, ())
    own = model.backbone.body.model
    torch.testing.assert_close(own.cls_token, network.cls_token)
    assert torch.equal(own.pos_embed, network.pos_embed)
    assert torch.equal(own.reg_token, network.reg_token)


def test_weights_under_the_names_of_dinov3(tmp_path, capsys):
    network = randomized("small_dinov3", dynamic_img_size=True)
    names = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    state = {}
    for name, tensor in network.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        state[name] = tensor
    state |= {"rope_embed.periods": torch.zeros(4), "mask_token": torch.zeros(1, 48)}
    state |= {f"blocks.{i}.attn.qkv.bias": torch.zeros(3 * 48) for i in range(5)}
    model, report = initialized("small_dinov3", state, tmp_path)
    assert (report.matched_share, report.mismatched) == (1.0, ())
    assert torch.equal(model.backbone.body.model.blocks[4].gamma_2, network.blocks[4].gamma_2)
    assert capsys.readouterr().out == ""
