"""Networks with weights that were cast beforehand, against autocast alone."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ovenet.builders import build_model
from ovenet.models import build_segmentor
from ovenet.models.cast_weights import cast_weights
from ovenet.models.seeds.offset_head import OffsetHead


class Casts(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._to_copy.default
        return function(*args, **(kwargs or {}))


def run(model, images, dtype):
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype), Casts() as casts:
        output = model(images)
    return output, casts.count


@pytest.mark.parametrize("name", ["seg_hrnet", "seg_hrnet_ocr"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_results_are_the_same_to_the_bit(tiny_cfg, name, dtype):
    model = build_model(tiny_cfg(name=name, offset_branch=2)).eval()
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    expected, before = run(model, images, dtype)
    cast_weights(model, dtype)
    output, after = run(model, images, dtype)
    for key, scores in expected.predictions().items():
        assert torch.equal(output.predictions()[key], scores)
    assert torch.equal(output.offset, expected.offset)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert before - after >= 0.9 * len(convolutions)


def test_random_bases_are_no_difference():
    """SegNeXt's published head draws new ones for every prediction."""
    model = build_segmentor("hrnet_w18_small_v1", head="light_ham", num_classes=3, head_args={"bases": "official"})
    cast_weights(model.eval(), torch.bfloat16)
    assert model.backbone.conv1.weight.dtype == torch.bfloat16


def test_positions_keep_their_precision(tiny_cfg):
    """The last convolution of the offset head runs outside autocast."""
    model = build_model(tiny_cfg(offset_branch=2)).eval()
    cast_weights(model, torch.bfloat16)
    layers = next(module for module in model.modules() if isinstance(module, OffsetHead)).layers
    assert layers[0].weight.dtype == torch.bfloat16
    assert layers[-1].weight.dtype == layers[-1].bias.dtype == torch.float32


def test_a_weight_that_is_used_elsewhere_is_left(tiny_cfg):
    model = build_model(tiny_cfg(offset_branch=0)).eval()
    forward, first = model.forward, next(m for m in model.modules() if isinstance(m, nn.Conv2d))

    def also(images):
        with torch.autocast("cpu", enabled=False):
            nn.functional.conv2d(images, first.weight)
        return forward(images)

    model.forward = also
    cast_weights(model, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
