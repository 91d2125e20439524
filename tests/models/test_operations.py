"""What a training step sends to its device: a budget of operations per network, and nothing from the host.

A step of 130 ms whose arithmetic takes 12 waits for launches. ``python -m tests.models.test_operations`` prints what
`BUDGETS` should hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ovenet.models import Segmentor, build_segmentor
from ovenet.models.cost import count_operations
from ovenet.structures import OVeNetOutput
from ovenet.utils.meta import meta_device

pytestmark = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14),
    reason="budgets are those of torch 2.14: an older one takes an operation apart into others",
)

SIZE = (64, 128)
SRM_CRM = {"neck": "fpn", "neck_args": {"CHANNELS": 128, "UPSAMPLER": "srm", "CONTEXT": "crm"}}
NETWORKS: dict[str, dict[str, Any]] = {
    "OVeNet, HRNet-W48 and OCR": {"backbone": "hrnet_w48", "head": "ocr", "seed": "fork"},
    "OVeNet, HRNet-W48": {"backbone": "hrnet_w48", "seed": "fork"},
    "HRNet-W48 and OCR": {"backbone": "hrnet_w48", "head": "ocr"},
    "HRNet-W18-small-v2": {"backbone": "hrnet_w18_small_v2"},
    "OVeNet with a neck, ConvNeXt-T": {"backbone": "convnext_tiny", "seed": "neck"},
    "OffSeg-T": {"backbone": "efficientformerv2_s0", "head": "offset_learning", "neck": "freqfusion"},
    "SRM and CRM, MSCAN-S": {"backbone": "mscan_s", "head": "conv1x1", **SRM_CRM},
}
BUDGETS = {  # forward, backward
    "OVeNet, HRNet-W48 and OCR": (1487, 1542),
    "OVeNet, HRNet-W48": (1449, 1481),
    "HRNet-W48 and OCR": (1122, 1134),
    "HRNet-W18-small-v2": (520, 526),
    "OVeNet with a neck, ConvNeXt-T": (173, 316),
    "OffSeg-T": (953, 2300),
    "SRM and CRM, MSCAN-S": (505, 596),
}
PARTS_OF_OTHERS = ("OVeNet, HRNet-W48", "HRNet-W48 and OCR")


def build(options: Mapping[str, Any]) -> tuple[Segmentor, torch.Tensor]:
    with meta_device():
        return build_segmentor(num_classes=19, **options).train(), torch.empty(2, 3, *SIZE)


def total(output: OVeNetOutput) -> torch.Tensor:
    """A loss of as few operations as there are."""
    maps = [*output.seed, *output.fused]
    if output.seed:
        maps += [*output.initial, output.offset, output.confidence]
    return torch.stack([x.sum() for x in maps]).sum()


def count(name: str) -> tuple[Counter[str], Counter[str]]:
    """Operations of the forward pass, and of a plain loss and the backward pass."""
    model, images = build(NETWORKS[name])
    outputs: list[OVeNetOutput] = []
    forward = count_operations(lambda: outputs.append(model(images)))
    return forward, count_operations(lambda: total(outputs[0]).backward())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in PARTS_OF_OTHERS else ()) for name in NETWORKS]
)
def test_no_network_sends_more_operations_than_it_did(name):
    forward, backward = count(name)
    number, budget = (forward.total(), backward.total()), BUDGETS[name]
    assert all(n <= limit for n, limit in zip(number, budget, strict=True)), (
        f"{name} sends {number} operations forward and backward to its device, {budget} are its budget. Each is a "
        f"launch, which an uncaptured step waits for: do with fewer, or raise BUDGETS and say in the commit what they "
        f"are good for. By name: {forward}, {backward}"
    )


class _HostReads(TorchDispatchMode):
    """Notes operations that touch a tensor of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, results)) if isinstance(x, torch.Tensor)]
        if any(x.device.type == "cpu" for x in tensors):
            self.found.append(str(func))
        return results


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in PARTS_OF_OTHERS])
def test_a_forward_pass_copies_nothing_from_the_host_and_waits_for_nothing(name):
    """On a made-up CUDA device; what depends on values raises. So does the backward pass above, on the meta device."""
    options = dict(NETWORKS[name])
    if options["backbone"] == "hrnet_w48":
        options["backbone"] = "hrnet_w18_small_v2"  # the same parts
    model, _ = build(options)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with FakeTensorMode(), torch.device("cuda:0"):
        state = {n: torch.empty(t.shape, dtype=t.dtype, requires_grad=t.requires_grad) for n, t in tensors.items()}
        images = torch.empty(2, 3, *SIZE)
        with _HostReads() as reads:
            functional_call(model, state, (images,))
            assert reads.found == []
            torch.ones(2, device="cpu").to("cuda:0")
        assert reads.found  # copies are seen


if __name__ == "__main__":
    for network in NETWORKS:
        print(f'    "{network}": {tuple(counts.total() for counts in count(network))},')
