"""torch.compile for the blocks that a network repeats: seconds to begin, where the whole network takes minutes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

# Residual blocks, here and in timm, by the names of their classes.
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
_NUM_VARIANTS = 256  # of all blocks together: shapes in training and in evaluation


def compile_blocks(model: nn.Module, *, backend: str = "inductor") -> int:
    """Compiles the blocks in place; those of one kind and one size share what is compiled.

    Names of parameters stay, and copies of the model (`copy.deepcopy`, pickle) are as they were before.

    Args:
        model: whose blocks.
        backend: of `torch.compile`.

    Returns:
        Number of blocks that are compiled; 0 where none is repeated.
    """
    dynamo = torch._dynamo.config
    dynamo.suppress_errors = True  # what cannot be compiled after all runs as it is, said by torch
    limit = "recompile_limit" if hasattr(dynamo, "recompile_limit") else "cache_size_limit"  # before torch 2.7
    setattr(dynamo, limit, max(getattr(dynamo, limit), _NUM_VARIANTS))  # 8 is for each function, not each module
    blocks = repeated_blocks(model)
    for block in blocks:
        block.compile(dynamic=False, backend=backend)
    return len(blocks)


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """Residual blocks, and rows of convolution, BatchNorm and perhaps an activation, that another is like.

    Left out are those whose BatchNorm counts the batches of all processes: it asks the others in the middle.
    """
    blocks = list(_blocks(model))
    numbers = Counter(map(_kind, blocks))
    return [block for block in blocks if numbers[_kind(block)] > 1]


def compiler_problem(device: torch.device) -> str:
    """Why `torch.compile` does not work here, in one line; "" if it does."""
    try:
        torch.compile(lambda x: (x + 1).relu(), dynamic=False)(torch.ones(8, device=device))
    except Exception as error:  # a compiler that is missing or does not fit raises anything
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ""


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost ones."""
    if type(module).__name__ in BLOCKS or _is_unit(module):
        if not any(isinstance(part, nn.SyncBatchNorm) for part in module.modules()):
            yield module
        return
    for child in module.children():
        yield from _blocks(child)


def _is_unit(module: nn.Module) -> bool:
    """Whether it is a convolution and BatchNorm in a row, and perhaps an activation."""
    if type(module) is not nn.Sequential or len(module) not in (2, 3):
        return False
    conv, norm, *activation = module
    has_weights = any(list(part.parameters()) for part in activation)
    return isinstance(conv, nn.Conv2d) and isinstance(norm, _BatchNorm) and not has_weights


def _kind(block: nn.Module) -> Hashable:
    """The same for blocks that do the same with other weights, as far as their parameters say."""
    return type(block), *((name, parameter.shape) for name, parameter in block.named_parameters())
