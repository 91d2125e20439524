"""Layers above each parameter of a backbone, against BEiT's rule and the learning rates that timm computes itself."""

import re

import pytest
import timm
from timm.optim import param_groups_layer_decay
from torch import nn

from ovenet.models.layer_order import count_above, number_timm_layers
from ovenet.models.registry import BACKBONES
from ovenet.utils.meta import meta_device


def backbone(name):
    with meta_device():
        return BACKBONES[name]()


def beit_scale(name, depth, decay):
    """BEiT's ``get_num_layer_for_vit`` and ``LayerDecayValueAssigner``, written out."""
    if name in ("cls_token", "mask_token", "pos_embed", "reg_token") or name.startswith("patch_embed"):
        layer = 0
    elif name.startswith("blocks"):
        layer = int(name.split(".")[1]) + 1
    else:
        layer = depth + 1
    return [decay ** (depth + 1 - i) for i in range(depth + 2)][layer]


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch16_dinov3"])
def test_a_vit_has_the_scales_of_beit(name):
    above = backbone(name).layers_above()
    scales = {key: 0.65**count for key, count in above.items()}
    named = {key: re.sub(r"^body\.model\.", "", key) for key in above}
    expected = {key: beit_scale(name, 12, 0.65) for key, name in named.items() if not name.startswith("norm")}
    assert {key: scales[key] for key in expected} == pytest.approx(expected)
    assert {above[key] for key, name in named.items() if name.startswith("norm")} <= {1}  # timm's choice
    patches = next(key for key in above if "patch_embed" in key)
    assert scales[patches] == pytest.approx(0.0036972, rel=1e-5)  # 0.65^13


@pytest.mark.parametrize(
    "name", ["vit_small_patch16_dinov3", "eva02_tiny_patch14_224", "convnext_tiny", "tf_efficientnet_lite0"]
)
def test_scales_are_those_that_timm_gives_the_whole_network(name):
    with meta_device():
        whole = timm.create_model(name, num_classes=3)
    names = {id(parameter): key.replace(".", "_") for key, parameter in whole.named_parameters()}
    groups = param_groups_layer_decay(whole, layer_decay=0.75)
    scales = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    above = backbone(name).layers_above()
    assert len(above) > 100
    for key, count in above.items():
        assert 0.75**count == pytest.approx(scales[re.sub(r"^body\.(model\.)?", "", key).replace(".", "_")]), key


@pytest.mark.parametrize(("ours", "theirs"), [("hrnet_w18", "hrnet_w18"), ("resnet50_v1c", "resnet50")])
def test_own_networks_have_timms_layers(ours, theirs):
    with meta_device():
        whole = timm.create_model(theirs, num_classes=3)
    groups = param_groups_layer_decay(whole, layer_decay=0.5)
    names = {id(parameter): key for key, parameter in whole.named_parameters()}
    scales = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    shared = {key: 0.5**count for key, count in backbone(ours).layers_above().items() if key in scales}
    assert len(shared) > 100
    assert shared == {key: scales[key] for key in shared}


# By hand: a stem, and the blocks of all stages; HRNet-W18-small-v2 has 2 bottlenecks, then 1, 3 and 2 modules.
DEPTHS = {
    "hrnet_w18_small_v2": 1 + 2 + 1 + 3 + 2,
    "resnet50_v1c": 1 + 3 + 4 + 6 + 3,
    "mit_b0": 1 + 2 + 2 + 2 + 2,
    "mscan_t": 1 + 3 + 3 + 5 + 2,
    "van_s": 1 + 2 + 2 + 4 + 2,
    "efficientformerv2_s0": 1 + 2 + 2 + 6 + 4,
}


@pytest.mark.parametrize("name", DEPTHS)
def test_layers_are_counted_towards_the_image(name):
    """In the order in which parameters are run, and without a parameter that no group names: it would be the last."""
    above = backbone(name).layers_above()
    assert sorted(set(above.values())) == list(range(1, DEPTHS[name] + 1))
    stages = {}  # layers by the first number in the name, which is the stage
    for key, count in above.items():
        stage = re.search(r"(?:layer|stage|block|stages\.|network\.)(\d)", key)
        if stage:
            stages.setdefault(int(stage[1]), set()).add(count)
    assert len(stages) >= 4
    for before, after in zip(sorted(stages), sorted(stages)[1:], strict=False):
        assert min(stages[before]) >= max(stages[after])


def test_blocks_that_do_not_exist_are_not_counted():
    assert count_above({"a": 0, "b": 4, "c": 9, "d": 9}) == {"a": 3, "b": 2, "c": 1, "d": 1}
    assert count_above({"a": 3, "b": 3}) == {}


def test_parameters_that_timm_does_not_know_have_no_order():
    assert number_timm_layers("vit_tiny_patch16_224", nn.Linear(2, 2), "body.") == {}
