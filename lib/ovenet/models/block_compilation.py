"""torch.compile for the repeated blocks of a network: compiles in seconds, where the whole network takes minutes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ovenet.errors import one_line

# Class names of the residual blocks here and in timm.
BLOCKS = frozenset(
    {
        "BasicBlock",
        "Block",
        "Bottle2neck",
        "Bottleneck",
        "ConvNeXtBlock",
        "DepthwiseSeparableConv",
        "EdgeResidual",
        "InvertedResidual",
        "RepVggBlock",
        "ResNestBottleneck",
        "SwinTransformerBlock",
    }
)
_NUM_VARIANTS = 256  # compiled variants of all blocks together, for the shapes of training and evaluation


def compile_blocks(model: nn.Module, *, backend: str = "inductor") -> int:
    """Compiles the repeated blocks in place; blocks of the same kind and size share the compiled code.

    Parameter names stay. Copies of the model (`copy.deepcopy`, pickle) are not compiled.

    Args:
        model: the model, changed in place.
        backend: backend of `torch.compile`.

    Returns:
        Number of compiled blocks; 0 if no block is repeated.
    """
    dynamo = torch._dynamo.config
    dynamo.suppress_errors = True  # a block that fails to compile runs eagerly, and torch logs it
    limit = "recompile_limit" if hasattr(dynamo, "recompile_limit") else "cache_size_limit"  # before torch 2.7
    setattr(dynamo, limit, max(getattr(dynamo, limit), _NUM_VARIANTS))  # torch's 8 is per function, not per module
    blocks = repeated_blocks(model)
    for block in blocks:
        block.compile(dynamic=False, backend=backend)
    return len(blocks)


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """Blocks that occur more than once: residual blocks, and convolution-BatchNorm(-activation) sequences.

    Blocks with synchronised BatchNorm, which communicates between ranks, are left out.
    """
    blocks = list(_blocks(model))
    numbers = Counter(map(_kind, blocks))
    return [block for block in blocks if numbers[_kind(block)] > 1]


def compiler_problem(device: torch.device) -> str:
    """Why `torch.compile` does not work on a device, in one line; "" if it works."""
    try:
        torch.compile(lambda x: (x + 1).relu(), dynamic=False)(torch.ones(8, device=device))
    except Exception as error:  # a missing or incompatible compiler may raise anything
        return f"{type(error).__name__}: {one_line(error)}"
    return ""


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost blocks of a module."""
    if type(module).__name__ in BLOCKS or _is_conv_bn(module):
        if not any(isinstance(part, nn.SyncBatchNorm) for part in module.modules()):
            yield module
        return
    for child in module.children():
        yield from _blocks(child)


def _is_conv_bn(module: nn.Module) -> bool:
    """Whether a module is a sequence of a convolution, BatchNorm and possibly an activation."""
    if type(module) is not nn.Sequential or len(module) not in (2, 3):
        return False
    conv, norm, *activation = module
    has_weights = any(list(part.parameters()) for part in activation)
    return isinstance(conv, nn.Conv2d) and isinstance(norm, _BatchNorm) and not has_weights


def _kind(block: nn.Module) -> Hashable:
    """Key that is equal for blocks of the same class with the same parameter names and shapes."""
    return type(block), *((name, parameter.shape) for name, parameter in block.named_parameters())
