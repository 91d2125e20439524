"""Resizing of score maps and feature maps."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from ovenet.structures import Size


def spatial_size(x: Tensor) -> Size:
    """``(H, W)`` of a map ``(..., H, W)``."""
    height, width = x.shape[-2:]
    return height, width


def resize_bilinear(values: Tensor, size: Size, *, align_corners: bool) -> Tensor:
    """Bilinear resize; returns `values` themselves if they have the size already.

    Args:
        values: ``(B, C, h, w)``.
        size: ``(H, W)`` in pixels.
        align_corners: whether the centres (True) or the outer edges (False) of the corner pixels coincide.

    Returns:
        ``(B, C, H, W)``, float32 under autocast.
    """
    if tuple(values.shape[-2:]) == tuple(size):
        return values
    return F.interpolate(values, size=size, mode="bilinear", align_corners=align_corners)


def resize_features(values: Tensor, size: Size, *, align_corners: bool) -> Tensor:
    """`resize_bilinear` for maps inside a network, which keep their 16 bits under autocast.

    Autocast would resize in float32, and everything added to the result would become float32 too: in bf16 a training
    step of OVeNet on HRNet-W48+OCR took 97 ms that way and takes 88 ms this way, on an NVIDIA H200. On CUDA the
    gradient of an upsampling is two matrix products, which accumulate in float32 and in a fixed order; torch's own
    gradient accumulates in the precision of the map with atomic operations. Products of float32 maps use TF32 if
    ``TRAIN.TF32`` is set.

    Args:
        values: ``(B, C, h, w)``.
        size, align_corners: see `resize_bilinear`.

    Returns:
        ``(B, C, H, W)`` in the dtype of `values`.
    """
    if tuple(values.shape[-2:]) == tuple(size):
        return values
    with _without_autocast(values):
        is_upsampled = all(out >= into for out, into in zip(size, values.shape[-2:], strict=True))
        if values.is_cuda and is_upsampled and values.requires_grad and not torch.compiler.is_compiling():
            return _Upsampled.apply(values, tuple(size), align_corners)
        return F.interpolate(values, size=size, mode="bilinear", align_corners=align_corners)


def average_pool(values: Tensor, size: Size) -> Tensor:
    """`torch.nn.functional.adaptive_avg_pool2d`; in a trace two matrix products, which work for any input size.

    Args:
        values: ``(B, C, h, w)``.
        size: ``(H, W)`` in pixels.

    Returns:
        ``(B, C, H, W)``; output row ``i`` is the mean of rows ``floor(i * h / H)`` to ``ceil((i + 1) * h / H) - 1``.
    """
    if not torch.jit.is_tracing():
        return F.adaptive_avg_pool2d(values, size)
    rows, columns = (_shares(n, out, values) for n, out in zip(values.shape[-2:], size, strict=True))
    return rows @ values @ columns.transpose(0, 1)


def _shares(length: int, num_bins: int, like: Tensor) -> Tensor:
    """Weights ``(num_bins, length)`` of the pixels in the mean of each bin, along one axis."""
    bins = torch.arange(num_bins, device=like.device)[:, None]
    pixels = torch.arange(length, device=like.device)
    first, end = bins * length // num_bins, ((bins + 1) * length + num_bins - 1) // num_bins
    return ((pixels >= first) & (pixels < end)).to(like.dtype) / (end - first).to(like.dtype)


def _without_autocast(values: Tensor) -> AbstractContextManager[Any]:
    """Turns autocast off for 16-bit values; it leaves float32 and float64 alone, and some devices have none."""
    device = values.device.type
    is_cast = values.dtype in (torch.bfloat16, torch.float16) and torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if is_cast else nullcontext()


class _Upsampled(torch.autograd.Function):
    """torch's bilinear upsampling with a gradient made of matrix products."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, size: Size, align_corners: bool) -> Tensor:
        ctx.in_size, ctx.align_corners = tuple(values.shape[-2:]), align_corners
        return F.interpolate(values, size=size, mode="bilinear", align_corners=align_corners)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """``V^T gradient H`` for each channel, with ``V`` and ``H`` the weights of rows and columns."""
        make = _weights.__wrapped__ if isinstance(gradient, FakeTensor) else _weights  # fake tensors are not cached
        (height, width), (num_images, channels, out_height, out_width) = ctx.in_size, gradient.shape
        kind = (ctx.align_corners, gradient.dtype, gradient.device)
        with torch.autocast(gradient.device.type, enabled=False):
            rows, columns = make(height, out_height, *kind), make(width, out_width, *kind)
            x = gradient.permute(0, 2, 3, 1).reshape(num_images, out_height, out_width * channels)
            x = torch.bmm(rows.expand(num_images, -1, -1), x).view(num_images * height, out_width, channels)
            x = torch.bmm(columns.expand(num_images * height, -1, -1), x)
        return x.view(num_images, height, width, channels).permute(0, 3, 1, 2), None, None


# Cached forever: a CUDA graph keeps the address of these weights, not the tensor. They are created in an eager warm-up
# step, before any capture. A network has about a dozen per crop size.
@cache
def _weights(in_size: int, out_size: int, align_corners: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Weights ``(in_size, out_size)`` of the input pixels in each output pixel, along one axis.

    Rounded to multiples of the dtype's spacing below 1: the two weights of an output pixel are rounded by the same
    amount in opposite directions, and add up to 1.
    """
    identity = torch.eye(in_size, dtype=torch.float64, device=device)[None]
    weights = F.interpolate(identity, size=out_size, mode="linear", align_corners=align_corners)[0]
    steps = 2 / torch.finfo(dtype).eps
    return ((weights * steps).round() / steps).to(dtype)
