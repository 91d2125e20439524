"""Fused models against the models they come from."""

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ovenet.builders import build_model
from ovenet.models import Segmentor, build_segmentor
from ovenet.models.conv_bn import fuse_conv_bn, same_draws
from ovenet.models.heads import ConvHead
from ovenet.models.interfaces import Backbone
from ovenet.models.necks import IdentityNeck


def with_statistics(model):
    """BatchNorm as after training: no scale is 1, no shift is 0."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for values, low, high in (
                (module.running_mean, -0.5, 0.5), (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5), (module.bias, -0.5, 0.5),
            ):  # fmt: skip
                nn.init.uniform_(values, low, high)
    return model.eval()


@pytest.mark.parametrize("name", ["seg_hrnet", "seg_hrnet_ocr"])
@pytest.mark.parametrize("offset_branch", [0, 2, 4])
def test_the_function_stays_the_same(tiny_cfg, name, offset_branch):
    model = with_statistics(build_model(tiny_cfg(name=name, offset_branch=offset_branch)).double())
    images = torch.randn(2, 3, 33, 47, dtype=torch.float64)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        fast, plain = fuse_conv_bn(model)(images), model(images)
    for key, scores in plain.predictions().items():
        torch.testing.assert_close(fast.predictions()[key], scores, atol=1e-8, rtol=1e-8)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["seg_hrnet", "seg_hrnet_ocr"])
def test_no_norm_is_left(tiny_cfg, name):
    model = build_model(tiny_cfg(name=name, offset_branch=2))
    assert any(isinstance(module, _BatchNorm) for module in model.modules())
    assert not any(isinstance(module, _BatchNorm) for module in fuse_conv_bn(model).modules())


class PreActivation(Backbone):
    """BatchNorm, ReLU, convolution, as in ResNetV2: here ``bn1`` comes before ``conv1``, not after it."""

    channels, strides = (6,), (1,)

    def __init__(self):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3, padding=1)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv3, self.bn3 = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)

    def forward(self, images):
        x = self.conv1(self.bn1(images).relu())
        x = self.bn2(self.conv2(x)).relu()
        y = self.conv3(x)
        return [self.bn3(y) + self.use_of_the_convolution(y)]

    def use_of_the_convolution(self, y):
        return 0.0


def test_a_norm_before_a_convolution_is_not_taken_for_the_one_after_it():
    model = with_statistics(Segmentor(PreActivation(), IdentityNeck((6,), (1,)), ConvHead((6,), (1,), 4)))
    images = torch.randn(2, 3, 20, 30)
    fast = fuse_conv_bn(model)
    torch.testing.assert_close(fast(images).fused[-1], model(images).fused[-1], atol=1e-5, rtol=1e-5)
    assert isinstance(fast.backbone.bn1, nn.BatchNorm2d)
    assert isinstance(fast.backbone.bn2, nn.Identity)


def test_a_convolution_that_is_read_twice_leaves_the_model_as_it_is(monkeypatch):
    """Its output would change for the other reader."""
    monkeypatch.setattr(PreActivation, "use_of_the_convolution", lambda self, y: y)
    model = with_statistics(Segmentor(PreActivation(), IdentityNeck((6,), (1,)), ConvHead((6,), (1,), 4)))
    with pytest.warns(UserWarning, match="BatchNorm"):
        same = fuse_conv_bn(model)
    images = torch.randn(1, 3, 20, 30)
    torch.testing.assert_close(same(images).fused[-1], model(images).fused[-1])


def test_the_activation_in_a_norm_of_timm_stays():
    model = with_statistics(build_segmentor("tf_efficientnet_lite0", num_classes=4, head="conv1x1"))
    images = torch.randn(1, 3, 64, 96)
    fast = fuse_conv_bn(model)
    torch.testing.assert_close(fast(images).fused[-1], model(images).fused[-1], atol=1e-4, rtol=1e-4)
    assert sum(isinstance(m, _BatchNorm) for m in fast.modules()) == 0


def test_random_bases_are_no_difference():
    """SegNeXt's published head draws new ones for every prediction."""
    with torch.random.fork_rng():
        model = build_segmentor("hrnet_w18_small_v1", head="light_ham", num_classes=3, head_args={"bases": "official"})
        state = torch.get_rng_state()
        fast = fuse_conv_bn(model.eval())
        assert torch.equal(torch.get_rng_state(), state)
        assert not any(isinstance(module, _BatchNorm) for module in fast.backbone.modules())


def test_only_generators_that_are_restored_are_seeded(monkeypatch):
    """torch.manual_seed seeds every card, and one that is not in use yet as soon as it is."""
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    state = torch.get_rng_state()
    draws = []
    for _ in range(2):
        with same_draws(torch.device("cpu")):
            draws.append(torch.rand(3))
    assert torch.equal(*draws)
    assert torch.equal(torch.get_rng_state(), state)
    assert not seeded


@pytest.mark.gpu
def test_draws_of_a_network_on_the_cpu_leave_the_card_alone():
    state = torch.cuda.get_rng_state()
    with same_draws(torch.device("cpu")):
        torch.rand(1)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    draws = []
    for _ in range(2):
        with same_draws(torch.device("cuda")):
            draws.append(torch.rand(3, device="cuda"))
    assert torch.equal(*draws)
    assert torch.equal(torch.cuda.get_rng_state(), state)
