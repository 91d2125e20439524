"""BatchNorm folded into the convolutions before it: the same function for inference, with less to do."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

M = TypeVar("M", bound=nn.Module)


def folded(model: M) -> M:
    """A copy for inference, whose convolutions scale and shift by themselves; scores differ by rounding alone.

    Args:
        model: stays as it is; the copy no longer has its parameter names, and cannot be trained.
    """
    model = copy.deepcopy(model).eval()
    for parent in list(model.modules()):
        for conv, norm in _pairs(parent):
            # fuse_conv_bn_eval takes every kind of BatchNorm by its statistics
            setattr(parent, conv, fuse_conv_bn_eval(getattr(parent, conv), getattr(parent, norm)))
            setattr(parent, norm, nn.Identity())
    return model


def _pairs(parent: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of children that follow each other: in a sequence, or as ``conv<n>`` and ``bn<n>``."""
    children = dict(parent.named_children())
    names = list(children)
    if isinstance(parent, nn.Sequential):
        candidates = itertools.pairwise(names)
    else:
        candidates = ((name, name.replace("conv", "bn", 1)) for name in names)
    for first, second in candidates:
        if isinstance(children[first], nn.Conv2d) and isinstance(children.get(second), _BatchNorm):
            yield first, second
