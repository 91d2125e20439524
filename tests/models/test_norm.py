"""BatchNorm against torch's."""

import torch
from torch import nn

from ovenet.models.cost import count_operations
from ovenet.models.norm import BatchNorm2d


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
