"""Resizing of score maps and features."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable


def resize_bilinear(values: Tensor, size: tuple[int, int], *, align_corners: bool) -> Tensor:
    """Bilinear resize, the identity where the size is right already.

    Args:
        values: ``(B, C, h, w)``.
        size: ``(H, W)`` in pixels.
        align_corners: True puts the centres of the corner pixels onto each other (networks published with OCR).

    Returns:
        ``(B, C, H, W)``, under autocast float32.
    """
    if tuple(values.shape[-2:]) == tuple(size):
        return values
    return F.interpolate(values, size=size, mode="bilinear", align_corners=align_corners)


def resize_features(values: Tensor, size: tuple[int, int], *, align_corners: bool) -> Tensor:
    """`resize_bilinear` for maps inside a network: under autocast they keep their 16 bits.

    Autocast makes float32 of what it resizes, and with it of everything that this is added to: without that a training
    step of OVeNet on HRNet-W48+OCR took 88 ms in place of 97 on an NVIDIA H200, in bf16. On CUDA the gradient of an
    enlargement is two matrix products, which add up in float32 and in the same order every time; torch's own adds up in
    the precision of the map with atomic operations. Products of float32 maps are TF32 where ``TRAIN.TF32`` says so.

    Args:
        values: ``(B, C, h, w)``.
        size, align_corners: see `resize_bilinear`.

    Returns:
        ``(B, C, H, W)`` of the type of `values`.
    """
    if tuple(values.shape[-2:]) == tuple(size):
        return values
    with _without_autocast(values):
        is_enlarged = all(out >= into for out, into in zip(size, values.shape[-2:], strict=True))
        if values.is_cuda and is_enlarged and values.requires_grad and not torch.compiler.is_compiling():
            return _Enlarged.apply(values, tuple(size), align_corners)
        return F.interpolate(values, size=size, mode="bilinear", align_corners=align_corners)


def average_pool(values: Tensor, size: tuple[int, int]) -> Tensor:
    """`torch.nn.functional.adaptive_avg_pool2d`; traced, as two products of matrices, which take any size.

    Args:
        values: ``(B, C, h, w)``.
        size: ``(H, W)`` in pixels.

    Returns:
        ``(B, C, H, W)``: means of the rows and columns from ``floor(i * h / H)`` to ``ceil((i + 1) * h / H)``.
    """
    if not torch.jit.is_tracing():
        return F.adaptive_avg_pool2d(values, size)
    rows, columns = (_shares(n, out, values) for n, out in zip(values.shape[-2:], size, strict=True))
    return rows @ values @ columns.transpose(0, 1)


def _shares(length: int, num_bins: int, like: Tensor) -> Tensor:
    """``(num_bins, length)``: how much each pixel counts in the mean of each bin, along one axis."""
    bins = torch.arange(num_bins, device=like.device)[:, None]
    pixels = torch.arange(length, device=like.device)
    first, end = bins * length // num_bins, ((bins + 1) * length + num_bins - 1) // num_bins
    return ((pixels >= first) & (pixels < end)).to(like.dtype) / (end - first).to(like.dtype)


def _without_autocast(values: Tensor) -> AbstractContextManager[Any]:
    """Autocast leaves float32 and float64 alone, and does not know every device, meta among them."""
    device = values.device.type
    is_cast = values.dtype in (torch.bfloat16, torch.float16) and torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if is_cast else nullcontext()


class _Enlarged(torch.autograd.Function):
    """torch's bilinear enlargement with a gradient made of matrix products."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
        ctx.in_size, ctx.align_corners = tuple(values.shape[-2:]), align_corners
        return F.interpolate(values, size=size, mode="bilinear", align_corners=align_corners)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """With ``V`` and ``H`` the weights of rows and columns, ``V^T gradient H`` for each channel."""
        make = _weights.__wrapped__ if isinstance(gradient, FakeTensor) else _weights  # nothing is kept of a dry run
        (height, width), (num_images, channels, out_height, out_width) = ctx.in_size, gradient.shape
        kind = (ctx.align_corners, gradient.dtype, gradient.device)
        with torch.autocast(gradient.device.type, enabled=False):
            rows, columns = make(height, out_height, *kind), make(width, out_width, *kind)
            x = gradient.permute(0, 2, 3, 1).reshape(num_images, out_height, out_width * channels)
            x = torch.bmm(rows.expand(num_images, -1, -1), x).view(num_images * height, out_width, channels)
            x = torch.bmm(columns.expand(num_images * height, -1, -1), x)
        return x.view(num_images, height, width, channels).permute(0, 3, 1, 2), None, None


# A CUDA graph keeps the place of these, not the tensor: they are first made in an eager warm-up step, before any
# capture, and have to stay. A network has about a dozen for a size of crops.
@cache
def _weights(in_size: int, out_size: int, align_corners: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``(in_size, out_size)``: how much each pixel that comes in gives to each that goes out, along one axis.

    Rounded to multiples of the type's step below 1, so that the two weights of a pixel that goes out are rounded by as
    much up as down and add up to 1.
    """
    identity = torch.eye(in_size, dtype=torch.float64, device=device)[None]
    weights = F.interpolate(identity, size=out_size, mode="linear", align_corners=align_corners)[0]
    steps = 2 / torch.finfo(dtype).eps
    return ((weights * steps).round() / steps).to(dtype)
