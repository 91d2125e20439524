"""BatchNorm fused into the convolutions before it: the same function for inference, with less to do."""

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

PROBE_SIZE = (64, 64)
TOLERANCE = 1e-3  # of the largest score


@torch.no_grad()
def fuse_conv_bn(model: Segmentor) -> Segmentor:
    """A copy for inference with BatchNorm fused into its convolutions; scores differ by rounding alone.

    What follows what is seen in a run on a small random image, not guessed from names, and the copy's scores are
    compared with the model's. Where they differ, since the network uses a convolution's output beside its BatchNorm
    too, the copy is left as the model is, with a warning.

    Args:
        model: stays as it is; the copy no longer has its parameter names, and cannot be trained.
    """
    plain = copy.deepcopy(model).eval()
    device = next(model.parameters()).device
    dtype = next(model.parameters()).dtype
    size = model.backbone.fixed_size or PROBE_SIZE
    probe = torch.rand((1, 3, *size), generator=torch.Generator().manual_seed(0)).to(device, dtype)
    fast = copy.deepcopy(plain)
    with same_draws(device):
        pairs, expected = _pairs(fast, probe)
    for conv, norm in pairs:
        # fuse_conv_bn_eval takes every kind of BatchNorm by its statistics
        _replace(fast, conv, fuse_conv_bn_eval(fast.get_submodule(conv), fast.get_submodule(norm)))
        _replace(fast, norm, _rest(fast.get_submodule(norm)))
    with same_draws(device):
        difference = _largest_difference(expected, fast(probe))
    if difference <= TOLERANCE:
        return fast
    warnings.warn(
        f"BatchNorm is not fused into convolutions: scores would change by {difference:.1g} of the largest",
        stacklevel=2,
    )
    return plain


@contextmanager
def same_draws(device: torch.device) -> Iterator[None]:
    """Draws the same random numbers every time, for networks that draw some in a prediction (`MatrixFactorization`).

    Args:
        device: of the network. Its generator and the CPU's are as before afterwards.
    """
    is_cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if is_cuda else []):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed other cards too
        if is_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(0)
        yield


def _pairs(model: nn.Module, probe: Tensor) -> tuple[list[tuple[str, str]], OVeNetOutput]:
    """Names of convolutions, each with the BatchNorm that its output goes to, and the model's output for the probe."""
    made: list[tuple[Tensor, str]] = []  # keeps the tensors alive, so that no other one gets their place
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


def _rest(norm: nn.Module) -> nn.Module:
    """What a norm does beside normalising: timm's have the activation in them."""
    return norm.act if isinstance(getattr(norm, "act", None), nn.Module) else nn.Identity()


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _largest_difference(expected: OVeNetOutput, output: OVeNetOutput) -> float:
    """Between all score maps, as a share of the largest score; NaN counts as none."""
    worst = 0.0
    for name, scores in expected.predictions().items():
        difference = (output.predictions()[name] - scores).abs().amax() / scores.abs().amax().clamp_min(1e-12)
        worst = max(worst, float(difference.nan_to_num(0.0)))
    return worst
