"""What the recipes for pretrained transformers (``experiments/*/dinov3_*.yaml``) set reaches the network."""

import re

import pytest
import tests.models.small_timm  # noqa: F401  (registers small networks)
import torch
from tests.shipped import shipped

from ovenet.builders import build_model, build_optimizer
from ovenet.config import load_config
from ovenet.models import build_segmentor
from ovenet.utils.meta import meta_device


def test_every_dataset_has_three_heads_with_and_without_a_seed():
    names = {"linear", "fpn", "segformer", "linear_seed", "fpn_seed", "segformer_seed"}
    for dataset in ("cityscapes", "acdc", "ade20k", "camvid"):
        assert {path.stem.removeprefix("dinov3_") for path in shipped(f"{dataset}/dinov3_*.yaml")} == names


def test_a_fine_tuned_backbone_has_decay_by_layer_and_stochastic_depth():
    cfg = load_config("camvid/dinov3_fpn_seed")
    with meta_device():
        model = build_model(cfg)
    drops = {
        int(match[1]): getattr(model.backbone.get_submodule(name), "drop_prob", 0.0)
        for name, _ in model.backbone.named_modules()
        if (match := re.fullmatch(r"body\.model\.blocks\.(\d+)\.drop_path1", name))
    }
    assert [drops[block] for block in range(12)] == pytest.approx([0.1 * block / 11 for block in range(12)])
    names = {id(p): name for name, p in model.named_parameters()}
    groups = build_optimizer(model, cfg).param_groups
    assert len(groups) == 2 * (1 + 12 + 1)  # with and without weight decay: patches, blocks, neck with head and seed
    rates = {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    of = "backbone.body.model."
    assert rates[f"{of}patch_embed.proj.weight"] == pytest.approx((1e-4 * 0.65**13, 0.05))
    assert rates[f"{of}reg_token"] == pytest.approx((1e-4 * 0.65**13, 0.0))
    assert rates[f"{of}blocks.11.mlp.fc1.weight"] == pytest.approx((1e-4 * 0.65, 0.05))
    assert {rates[name][0] for name in rates if not name.startswith(of)} == {1e-4}


@pytest.mark.parametrize(
    ("backbone", "head"), [("small_dinov3", "conv1x1"), ("efficientnet_lite0_imagenet", "fcn"), ("mit_b0", "segformer")]
)
def test_a_frozen_backbone_keeps_nothing_and_is_in_evaluation_mode(backbone, head):
    """Nothing of its forward pass is kept for the backward pass, and no gradient is computed."""
    args = {} if backbone == "mit_b0" else {"drop_path_rate": 0.5}
    model = build_segmentor(backbone, num_classes=3, head=head, seed="neck", backbone_args=args)
    model.freeze(["backbone"])
    model.train()
    kept, inside = {True: 0, False: 0}, []
    model.backbone.register_forward_pre_hook(lambda *_: inside.append(True))
    model.backbone.register_forward_hook(lambda *_: inside.clear())

    def count(tensor):
        kept[bool(inside)] += tensor.numel()
        return tensor

    images = torch.randn(2, 3, 64, 96)
    buffers = {name: b.clone() for name, b in model.backbone.named_buffers()}
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        maps = model.backbone(images)
        loss = model(images).fused[-1].square().mean()
    loss.backward()
    assert kept[True] == 0 < kept[False]
    assert not any(x.requires_grad for x in maps)
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(torch.equal(x, y) for x, y in zip(maps, model.backbone(images), strict=True))  # no random depth
    assert all(torch.equal(b, buffers[name]) for name, b in model.backbone.named_buffers())
    assert all(p.grad is not None for name, p in model.named_parameters() if not name.startswith("backbone."))
