"""Fusion of BatchNorm into the preceding convolution: the same function for inference, with fewer operations."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ovenet.models.segmentor import Segmentor
from ovenet.structures import OVeNetOutput
from ovenet.utils.seeding import random_states, set_random_states

PROBE_SIZE = (64, 64)
TOLERANCE = 1e-3  # relative to the largest score


@torch.no_grad()
def fuse_conv_bn(model: Segmentor) -> Segmentor:
    """A copy for inference with BatchNorm fused into its convolutions; scores differ only by rounding.

    A forward pass over a small random image shows which BatchNorm follows which convolution, and the scores of the copy
    are compared with the model's. If they differ, as when the network also uses a convolution's output without its
    BatchNorm, an unfused copy is returned with a warning.

    Args:
        model: stays unchanged; the copy has other parameter names and cannot be trained.
    """
    plain = copy.deepcopy(model).eval()
    device = next(model.parameters()).device
    dtype = next(model.parameters()).dtype
    size = model.backbone.fixed_size or PROBE_SIZE
    probe = torch.rand((1, model.backbone.in_channels, *size), generator=torch.Generator().manual_seed(0)).to(
        device, dtype
    )
    fast = copy.deepcopy(plain)
    with same_draws(device):
        pairs, expected = _pairs(fast, probe)
    for conv_name, norm_name in pairs:
        conv, norm = fast.get_submodule(conv_name), fast.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, _BatchNorm)
        _replace(fast, conv_name, fuse_conv_bn_eval(conv, norm))
        _replace(fast, norm_name, _activation(norm))
    with same_draws(device):
        difference = _largest_difference(expected, fast(probe))
    if difference <= TOLERANCE:
        return fast
    warnings.warn(
        f"BatchNorm is not fused into convolutions: scores would change by {difference:.1g} of the largest score",
        stacklevel=2,
    )
    return plain


@contextmanager
def same_draws(device: torch.device) -> Iterator[None]:
    """Makes networks that draw random numbers in a prediction (`MatrixFactorization`) draw the same numbers every time.

    Args:
        device: device of the network. Its generator and the CPU's are restored afterwards.
    """
    before = random_states(device)
    set_random_states({kind: torch.Generator(kind).manual_seed(0).get_state() for kind in before}, device)
    try:
        yield
    finally:
        set_random_states(before, device)


def _pairs(model: nn.Module, probe: Tensor) -> tuple[list[tuple[str, str]], OVeNetOutput]:
    """Pairs of names of a convolution and the BatchNorm that reads its output, and the model's output for the probe."""
    made: list[tuple[Tensor, str]] = []  # keeps the tensors alive, so that their ids stay unique
    pairs: list[tuple[str, str]] = []

    def on_conv(name: str) -> Any:
        return lambda module, inputs, output: made.append((output, name))

    def on_norm(name: str) -> Any:
        def find(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            pairs.extend((conv, name) for output, conv in made if output is inputs[0])

        return find

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(on_conv(name)))
        elif isinstance(module, _BatchNorm):
            handles.append(module.register_forward_pre_hook(on_norm(name)))
    output = model(probe)
    for handle in handles:
        handle.remove()
    num_runs = Counter(name for _, name in made) + Counter(norm for _, norm in pairs)
    return [(conv, norm) for conv, norm in pairs if num_runs[conv] == num_runs[norm] == 1], output


def _activation(norm: nn.Module) -> nn.Module:
    """The activation that timm's norms contain, or the identity."""
    activation = getattr(norm, "act", None)
    return activation if isinstance(activation, nn.Module) else nn.Identity()


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _largest_difference(expected: OVeNetOutput, output: OVeNetOutput) -> float:
    """Largest difference of all score maps, relative to the largest score; NaN counts as 0."""
    worst = 0.0
    for name, scores in expected.predictions().items():
        difference = (output.predictions()[name] - scores).abs().amax() / scores.abs().amax().clamp_min(1e-12)
        worst = max(worst, float(difference.nan_to_num(0.0)))
    return worst
