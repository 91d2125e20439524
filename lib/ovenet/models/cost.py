"""What a network costs: its parameters, its multiply-adds, and the operations that a device is sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

# Memory without contents, and a view that the schema does not call one.
_ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"}


def count_parameters(model: nn.Module) -> int:
    """Learned values, buffers not counted."""
    return sum(p.numel() for p in model.parameters())


def count_multiply_adds(model: nn.Module, height: int, width: int) -> int:
    """Multiply-adds of a forward pass over one image: convolutions and matrix products, as published tables count.

    Half of what torch's FLOP counter says. The image is made on the parameters' device; on the meta device nothing
    is computed.

    Args:
        model: takes images of 3 channels; run as it is, so set it to eval first.
        height: of the image in pixels.
        width: of the image in pixels.
    """
    device = next(model.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, height, width, device=device))
    return counter.get_total_flops() // 2


@dataclass(frozen=True)
class PassesCost:
    """What a forward and a backward pass of a network cost; the loss is not counted.

    Attributes:
        flops: of both, a multiply-add counted twice and the backward pass as two forward passes.
        num_operations: sent to the device, see `count_operations`.
    """

    flops: int
    num_operations: int


def count_passes(model: nn.Module, batch_size: int, height: int, width: int) -> PassesCost:
    """The cost of a network's passes over one batch, in which frozen parts count too.

    Args:
        model: on the meta device, where nothing is computed; in training mode. What it predicts is an `OVeNetOutput`.
        batch_size: images.
        height: of the images in pixels.
        width: of the images in pixels.
    """
    flops = 0
    model.zero_grad()  # else gradients would be added up

    def run() -> None:
        nonlocal flops
        with FlopCounterMode(display=False) as counter:
            output = model(torch.empty(batch_size, 3, height, width, device="meta"))
        flops = 3 * counter.get_total_flops()
        maps = [x for x in (*output.initial, *output.seed, *output.fused, output.confidence) if x is not None]
        if output.queries is not None:
            maps += [*output.queries.classes, *output.queries.masks]
        learned = list({id(x): x for x in maps if x.requires_grad}.values())
        torch.autograd.backward(learned, [torch.empty_like(x) for x in learned])

    return PassesCost(num_operations=count_operations(run).total(), flops=flops)


def count_operations(run: Callable[[], object]) -> Counter[str]:
    """The operations that a function sends to its device, by name: what launches at least one kernel on a GPU.

    An operation whose results alias its inputs and that writes nothing (view, slice, transpose, ...) launches nothing,
    nor does one that allocates memory. Whatever else there is counts once, though some launch several kernels: the
    backward pass of a convolution two or three. Backward passes within the function are counted too. On the meta device
    nothing is computed, so that it takes seconds for any network; memory formats, which may add copies, are not seen.

    Args:
        run: called once; its result is dropped.

    Returns:
        Counts by names such as ``aten.convolution``; ``.total()`` is their sum.
    """
    with _OperationCounter() as counter:
        run()
    return counter.counts


class _OperationCounter(TorchDispatchMode):
    """See `count_operations`."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if _launches(func):
            self.counts[str(func.overloadpacket)] += 1
        return func(*args, **(kwargs or {}))


def _launches(func: torch._ops.OpOverload) -> bool:
    if torch.Tag.inplace_view in func.tags or func.overloadpacket.__name__ in _ALLOCATIONS:
        return False
    writes = any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)
    makes = any("Tensor" in str(r.type) and r.alias_info is None for r in func._schema.returns)
    return writes or makes
