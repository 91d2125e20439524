"""The cost of networks small enough to count by hand."""

import torch
from torch import nn

from ovenet.models import build_segmentor
from ovenet.models.cost import count_multiply_adds, count_operations, count_parameters, count_passes


def test_convolutions_are_counted():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1))
    assert count_parameters(model) == 3 * 8 * 9 + 2 * 8 + 8 * 5 + 5
    assert count_multiply_adds(model.eval(), 32, 64) == 16 * 32 * (3 * 8 * 9 + 8 * 5)


def test_nothing_is_computed_on_the_meta_device():
    with torch.device("meta"):
        model = nn.Conv2d(3, 7, 5, padding=2, groups=1)
    assert count_multiply_adds(model, 1024, 2048) == 1024 * 2048 * 3 * 7 * 25


def test_operations_that_launch_something_are_counted():
    images = torch.empty(2, 3, 8, 8, device="meta")
    weight = torch.empty(5, 3, 1, 1, device="meta", requires_grad=True)

    def run() -> None:
        hidden = torch.conv2d(images.transpose(2, 3), weight).relu_()  # two, and a view
        hidden = hidden[:, 1:].flatten(2)  # views
        first, second = hidden.chunk(2, dim=1)  # views
        torch.empty_like(first).copy_(second)  # one, and memory
        hidden.sum().backward()  # one; then ones, the gradients of ReLU, slice and convolution

    counts = count_operations(run)
    assert counts == {
        "aten.convolution": 1,
        "aten.relu_": 1,
        "aten.copy_": 1,
        "aten.sum": 1,
        "aten.ones_like": 1,
        "aten.threshold_backward": 1,
        "aten.slice_backward": 1,
        "aten.convolution_backward": 1,
    }


def test_writing_to_many_tensors_at_once_is_one_operation():
    counters = [torch.zeros((), dtype=torch.int64, device="meta") for _ in range(3)]
    assert count_operations(lambda: torch._foreach_add_(counters, 1)) == {"aten._foreach_add_": 1}


def test_both_passes_of_a_network_are_counted():
    with torch.device("meta"):
        model = build_segmentor("hrnet_w18_small_v1", num_classes=5, head="ocr", seed="fork").train()
    cost = count_passes(model, 2, 64, 96)
    assert cost.flops == 2 * 3 * 2 * count_multiply_adds(model, 64, 96)  # images, passes, FLOPs
    convolutions = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert cost.num_operations > 4 * convolutions  # each with its BatchNorm, forward and backward
    assert cost.num_operations == count_passes(model, 3, 64, 96).num_operations


def test_the_meta_device_counts_as_much_as_the_cpu():
    """On odd sizes, with BatchNorm, bilinear upsampling and sampling along offset vectors."""
    model = build_segmentor("hrnet_w18_small_v1", num_classes=5, head="ocr", seed="fork").eval()
    with torch.device("meta"):
        same = build_segmentor("hrnet_w18_small_v1", num_classes=5, head="ocr", seed="fork").eval()
    assert count_multiply_adds(same, 63, 95) == count_multiply_adds(model, 63, 95) > 0
