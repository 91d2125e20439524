"""``TRAIN.LR_LAYER_DECAY`` in the optimizer: which parameter learns at which rate."""

import pytest
from tests.four_convolutions import registered, small_settings

from ovenet.builders import build_model, build_optimizer
from ovenet.config import load_config
from ovenet.errors import UserError
from ovenet.utils.meta import meta_device


def factors(cfg):
    """Learning rate over ``TRAIN.LR`` of every trained parameter, and the optimizer's groups."""
    with meta_device():
        model = build_model(cfg)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optimizer(model, cfg).param_groups
    return {names[id(p)]: group["lr"] / cfg.TRAIN.LR for group in groups for p in group["params"]}, groups


def test_the_backbone_learns_slower_towards_the_image(tiny_cfg):
    """An HRNet of one bottleneck and three modules: the stem has five layers above it with the head."""
    decay = ("TRAIN.LR_LAYER_DECAY", 0.5, "TRAIN.LR_MULT.BACKBONE", 0.1, "TRAIN.LR_MULT.SEED", 3)
    found, groups = factors(tiny_cfg(*decay))
    layers = {"conv1": 5, "bn1": 5, "conv2": 5, "bn2": 5, "layer1": 4, "transition1": 4, "stage2": 3, "transition2": 3}
    layers |= {"stage3": 2, "transition3": 2, "stage4": 1}  # a transition counts with the stage before
    for name, factor in found.items():
        part, child = name.split(".")[:2]
        expected = 0.1 * 0.5 ** layers[child] if part == "backbone" else {"head": 1.0, "seed": 3.0}[part]
        assert factor == pytest.approx(expected), name
    rates = [group["lr"] for group in groups]
    assert rates == sorted(rates)
    assert len(rates) == 5 + 2


def test_without_decay_there_are_the_groups_of_before(tiny_cfg):
    _, groups = factors(tiny_cfg("TRAIN.LR_MULT.HEAD", 10))
    assert [group["lr"] for group in groups] == pytest.approx([0.01, 0.1])


def test_frozen_layers_are_left_out_and_still_counted(tiny_cfg):
    found, _ = factors(tiny_cfg("TRAIN.LR_LAYER_DECAY", 0.5, "MODEL.FROZEN", "backbone.conv1,backbone.stage4"))
    assert not [name for name in found if name.startswith(("backbone.conv1", "backbone.stage4"))]
    assert found["backbone.bn1.weight"] == pytest.approx(0.5**5)


@pytest.mark.parametrize("value", ["0", "1.5", "-0.5"])
def test_a_decay_outside_its_range_is_refused(tiny_cfg, value):
    with pytest.raises(UserError, match=r"TRAIN\.LR_LAYER_DECAY is .*more than 0 and at most 1"):
        tiny_cfg("TRAIN.LR_LAYER_DECAY", value)


def test_a_backbone_without_an_order_of_layers_is_refused(write_config):
    path = write_config(small_settings())
    with registered(), pytest.raises(UserError, match=r"TRAIN\.LR_LAYER_DECAY is 0\.9.*FourConvolutions.*1\.0") as e:
        factors(load_config(path, ["TRAIN.LR_LAYER_DECAY", "0.9"]))
    assert "\n" not in str(e.value)
