"""Networks on the meta device beside those on the CPU, whose weights are drawn."""

import torch
from torch import nn

from ovenet.utils.meta import meta_device


def layers():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2), nn.Embedding(5, 2))


def test_a_network_has_the_same_names_shapes_and_types():
    with meta_device():
        found = layers()
    expected = layers()
    assert {n: (v.shape, v.dtype) for n, v in found.state_dict().items()} == {
        n: (v.shape, v.dtype) for n, v in expected.state_dict().items()
    }
    assert all(v.is_meta for v in found.state_dict().values())


def test_tensors_on_other_devices_are_still_drawn_and_initialised():
    with meta_device():
        values = torch.zeros(4, device="cpu").normal_()
        ones = nn.init.ones_(torch.zeros(4, device="cpu"))
    assert values.any()
    assert ones.sum() == 4
    assert torch.zeros(1).normal_().any()


def test_no_random_number_is_used():
    before = torch.get_rng_state()
    with meta_device():
        layers()
    assert torch.equal(torch.get_rng_state(), before)
