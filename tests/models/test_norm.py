"""BatchNorm against torch's."""

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ovenet.builders import build_model
from ovenet.errors import UserError
from ovenet.models.cost import count_operations
from ovenet.models.norm import BatchNorm2d
from ovenet.models.segmentor import to_sync_batchnorm


def test_it_is_torchs_but_for_the_counter():
    torch.manual_seed(0)
    own, theirs = BatchNorm2d(5), nn.BatchNorm2d(5)
    nn.init.uniform_(theirs.weight)
    own.load_state_dict(theirs.state_dict())
    for training in (True, False):
        x = torch.randn(3, 5, 4, 7)
        for norm in (own.train(training), theirs.train(training)):
            norm.zero_grad()
            norm(x).square().sum().backward()
        assert torch.equal(own(x), theirs(x))
        assert torch.equal(own.weight.grad, theirs.weight.grad)
    assert torch.equal(own.running_mean, theirs.running_mean)
    assert torch.equal(own.running_var, theirs.running_var)
    assert list(own.state_dict()) == list(theirs.state_dict())


def test_a_training_step_launches_nothing_but_the_norm():
    with torch.device("meta"):
        norm, x = BatchNorm2d(5).train(), torch.empty(3, 5, 4, 7)
    assert count_operations(lambda: norm(x)).total() == 1


@pytest.mark.parametrize("name", ["branched_seg_hrnet", "seg_hrnet_ocr"])
def test_a_momentum_holds_for_every_norm_of_the_network(tiny_cfg, name):
    """One batch of the stem: m times its mean, and (1 - m) + m times its variance over n - 1."""
    model = build_model(tiny_cfg("MODEL.BN_MOMENTUM", 0.25, name=name)).train()
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        pixels = model.backbone.conv1(images).movedim(1, 0).flatten(1)
        model(images)
    torch.testing.assert_close(model.backbone.bn1.running_mean, 0.25 * pixels.mean(1))
    torch.testing.assert_close(model.backbone.bn1.running_var, 0.75 + 0.25 * pixels.var(1))
    for whole in (model, to_sync_batchnorm(model)):
        norms = {n: m.momentum for n, m in whole.named_modules() if isinstance(m, _BatchNorm)}
        assert set(norms.values()) == {0.25}
        assert {n.split(".")[0] for n in norms} == {"backbone", "head", "seed"}


def test_without_a_momentum_the_parts_keep_their_own(tiny_cfg):
    model = build_model(tiny_cfg(name="seg_hrnet_ocr"))
    assert {m.momentum for m in model.modules() if isinstance(m, _BatchNorm)} == {0.1}
    with pytest.raises(UserError, match=r"MODEL\.BN_MOMENTUM.*1\.5.*at least 0.*at most 1"):
        tiny_cfg("MODEL.BN_MOMENTUM", 1.5)
