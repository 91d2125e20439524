"""Stochastic depth beside torchvision's."""

import pytest
import torch
import torchvision

from ovenet.models.stochastic_depth import StochasticDepth


@pytest.mark.parametrize("shape", [(6, 3, 4, 5), (6, 7, 2)])
@pytest.mark.parametrize("p", [0.0, 0.3, 0.9])
def test_the_same_numbers_as_torchvision(shape, p):
    own, other = StochasticDepth(p), torchvision.ops.StochasticDepth(p, mode="row")
    for training in (True, False):
        results = []
        for module in (own, other):
            torch.manual_seed(3)
            x = torch.linspace(-1, 1, torch.Size(shape).numel()).view(shape).requires_grad_()
            y = module.train(training)(x)
            results.append((y, torch.autograd.grad(y.square().sum(), x)[0], torch.rand(1)))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_some_are_dropped():
    torch.manual_seed(0)
    y = StochasticDepth(0.4).train()(torch.ones(1000, 2))
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.6).item()}
    assert (y[:, 0] == y[:, 1]).all()
    assert 0.55 < (y[:, 0] > 0).float().mean() < 0.65
