"""The cost of networks small enough to count by hand."""

import torch
from torch import nn

from ovenet.models.cost import count_multiply_adds, count_parameters


def test_convolutions_are_counted():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1))
    assert count_parameters(model) == 3 * 8 * 9 + 2 * 8 + 8 * 5 + 5
    assert count_multiply_adds(model.eval(), 32, 64) == 16 * 32 * (3 * 8 * 9 + 8 * 5)


def test_nothing_is_computed_on_the_meta_device():
    with torch.device("meta"):
        model = nn.Conv2d(3, 7, 5, padding=2, groups=1)
    assert count_multiply_adds(model, 1024, 2048) == 1024 * 2048 * 3 * 7 * 25
