"""Cost of a network: parameters, multiply-adds, and operations sent to the device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

# Allocations without a kernel, and a view that its schema does not mark as one.
_ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"}


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, without buffers."""
    return sum(p.numel() for p in model.parameters())


def count_multiply_adds(model: nn.Module, height: int, width: int) -> int:
    """Multiply-adds of a forward pass over one image, for convolutions and matrix products, as papers count them.

    Half of the FLOPs that torch's counter gives. On the meta device nothing is computed.

    Args:
        model: a network of 3-channel images, in evaluation mode.
        height: image height in pixels.
        width: image width in pixels.
    """
    device = next(model.parameters()).device
    with FlopCounterMode(display=False) as counter, _FastShapes(), torch.no_grad():
        model(torch.empty(1, 3, height, width, device=device))
    return counter.get_total_flops() // 2


class _FastShapes(TorchDispatchMode):
    """Gives the results of operations that are not counted, and whose shapes PyTorch takes long to find on meta."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if args and isinstance(args[0], torch.Tensor) and args[0].is_meta:
            if func is torch.ops.aten.native_batch_norm.default:
                return torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0)
            if func is torch.ops.aten.upsample_bilinear2d.default:
                return args[0].new_empty((*args[0].shape[:2], *args[1]))
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class PassesCost:
    """Cost of a forward and a backward pass of a network, without the loss.

    Attributes:
        flops: FLOPs of both passes; a multiply-add is two FLOPs, the backward pass counts as two forward passes.
        num_operations: operations sent to the device, see `count_operations`.
    """

    flops: int
    num_operations: int


def count_passes(model: nn.Module, batch_size: int, height: int, width: int) -> PassesCost:
    """Cost of a network's passes over one batch; frozen parts are counted too.

    Args:
        model: on the meta device, in training mode; predicts an `OVeNetOutput`.
        batch_size: number of images.
        height: image height in pixels.
        width: image width in pixels.
    """
    flops = 0
    model.zero_grad()  # accumulating gradients would add operations

    def run() -> None:
        nonlocal flops
        with FlopCounterMode(display=False) as counter:
            output = model(torch.empty(batch_size, 3, height, width, device="meta"))
        flops = 3 * counter.get_total_flops()
        maps = [x for x in (*output.initial, *output.seed, *output.fused, output.confidence) if x is not None]
        if output.queries is not None:
            maps += [*output.queries.classes, *output.queries.masks]
        if output.directions is not None:
            maps += [output.directions.boundary, output.directions.direction]
        if output.points is not None:
            maps.append(output.points.logits)
        learned = list({id(x): x for x in maps if x.requires_grad}.values())
        torch.autograd.backward(learned, [torch.empty_like(x) for x in learned])

    return PassesCost(num_operations=count_operations(run).total(), flops=flops)


def count_operations(run: Callable[[], object]) -> Counter[str]:
    """Operations of a function that launch at least one kernel on a GPU, counted by name.

    Views (slice, transpose, ...) and allocations launch nothing and are not counted. Every other operation counts once,
    even if it launches several kernels, as the backward pass of a convolution does (two or three). Backward passes
    inside the function are counted too. On the meta device nothing is computed, so that counting takes seconds for any
    network; copies due to memory formats are not seen there.

    Args:
        run: function that is called once; its result is discarded.

    Returns:
        Counts by operation name such as ``aten.convolution``; ``.total()`` is their sum.
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
