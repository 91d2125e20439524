"""Bilinear sampling as four gathers and a blend, for exported networks.

Runtimes disagree on ONNX's ``GridSample``, and some have none; gathers and products they all compute alike. In torch
`torch.nn.functional.grid_sample` is the faster form, so this one is used in exports alone.

Shapes: ``B`` batch, ``C`` channels, ``h w`` size of the map, ``H W`` size of the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ovenet.geometry.resize import spatial_size

PaddingMode = Literal["border", "zeros"]


class GatherSampling(TorchFunctionMode):
    """A context in which `torch.nn.functional.grid_sample` gathers, whoever calls it, libraries included.

    It holds for this thread alone, and for the bilinear samples of maps; other modes and volumes stay as they are.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.grid_sample:
            return _grid_sample(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _grid_sample(
    input: Tensor, grid: Tensor, mode: str = "bilinear", padding_mode: str = "zeros", align_corners: bool | None = None
) -> Tensor:
    """`torch.nn.functional.grid_sample`, whose arguments these are."""
    if mode == "bilinear" and input.ndim == 4 and padding_mode in ("border", "zeros"):
        return gather_bilinear(input, grid, padding_mode=padding_mode, align_corners=bool(align_corners))  # type: ignore[arg-type]
    return F.grid_sample(input, grid, mode, padding_mode, align_corners)


def gather_bilinear(values: Tensor, grid: Tensor, *, padding_mode: PaddingMode, align_corners: bool) -> Tensor:
    """`torch.nn.functional.grid_sample` as four gathers of whole pixels, and their weighted sum.

    Args:
        values: ``(B, C, h, w)``.
        grid: positions ``(B, H, W, 2)``, normalised ``(x, y)``, float32 or float64.
        padding_mode: values outside the map.
        align_corners: whether the centres (True) or the outer edges (False) of the corner pixels are at ±1.

    Returns:
        ``(B, C, H, W)``.
    """
    height, width = spatial_size(values)
    batch, channels, out_height, out_width = values.shape[0], values.shape[1], grid.shape[1], grid.shape[2]
    columns = _neighbours(grid[..., 0].flatten(), width, padding_mode, align_corners)
    rows = _neighbours(grid[..., 1].flatten(), height, padding_mode, align_corners)
    # Pixels of all images in one list: a gather then copies the channels of a pixel, which lie side by side.
    pixels = values.permute(0, 2, 3, 1).reshape(-1, channels)
    image = torch.arange(batch, device=values.device)[:, None].expand(-1, out_height * out_width).flatten()
    total: Any = 0.0
    for row, row_weight in rows:
        start = (image * height + row) * width
        for column, column_weight in columns:
            total = total + pixels.index_select(0, start + column) * (row_weight * column_weight).unsqueeze(1)
    return total.view(batch, out_height, out_width, channels).permute(0, 3, 1, 2)


def _neighbours(
    position: Tensor, length: int, padding_mode: PaddingMode, align_corners: bool
) -> list[tuple[Tensor, Tensor]]:
    """Index and weight of the two pixels beside each position, along an axis of `length` pixels."""
    scale = (length - 1) / 2 if align_corners else length / 2  # of torch's own formula, for its rounding
    place = (position + 1) * scale - (0.0 if align_corners else 0.5)
    # With zeros outside, one pixel beyond either end is as zero as any further one; the integers must not overflow.
    place = place.clamp(0, length - 1) if padding_mode == "border" else place.clamp(-1, length)
    before = place.floor()
    share = place - before
    found = []
    for corner, weight in ((before, 1 - share), (before + 1, share)):
        inside = corner.clamp(0, length - 1)
        found.append((inside.long(), weight if padding_mode == "border" else weight * (corner == inside)))
    return found
