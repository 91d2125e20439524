"""Folded models against the models they come from."""

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ovenet.builders import build_model
from ovenet.models.folding import folded


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
        fast, plain = folded(model)(images), model(images)
    for key, scores in plain.predictions().items():
        torch.testing.assert_close(fast.predictions()[key], scores, atol=1e-8, rtol=1e-8)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["seg_hrnet", "seg_hrnet_ocr"])
def test_no_norm_is_left(tiny_cfg, name):
    model = build_model(tiny_cfg(name=name, offset_branch=2))
    assert any(isinstance(module, _BatchNorm) for module in model.modules())
    assert not any(isinstance(module, _BatchNorm) for module in folded(model).modules())


def test_a_norm_without_a_convolution_stays():
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1))
    assert isinstance(folded(model)[1], nn.BatchNorm2d)
