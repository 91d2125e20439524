"""Bilinear resizing of a few rows at a time, as matrix products.

Bilinear resizing is separable, and each output pixel reads two input pixels per axis. Blocks of rows and chunks of
columns read few input pixels, so that both passes are small dense products.

Maps are ``(n, C, w)`` here, rows first, so that a block of rows is contiguous in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ovenet.structures import Size

_MIN_UPSAMPLING = 2  # factor from which matrix products are faster than reading two input pixels per output pixel
_CHUNK_COLUMNS = 32  # minimum block width: below this the overhead of a matrix product outweighs the zeros it skips


def resize_rows(
    values: Tensor,
    size: Size,
    rows: range,
    *,
    align_corners: bool,
    in_height: int | None = None,
    first_row: int = 0,
) -> Tensor:
    """Some rows of a resized map, computed without the others.

    Args:
        values: ``(n, C, w)`` float32 or float64, all rows of a map, or at least those that `source_rows` names.
        size: ``(H, W)`` of the whole resized map, in pixels.
        rows: consecutive row indices of the resized map.
        align_corners: see `ovenet.geometry.resize_bilinear`.
        in_height: height of the whole map; None if `values` holds all rows.
        first_row: index in the whole map of the first row of `values`.

    Returns:
        ``(len(rows), C, W)``; differs from `resize_bilinear` only by rounding.
    """
    height, width = size
    in_height = len(values) if in_height is None else in_height
    first, last = source_rows(in_height, height, rows, align_corners=align_corners)
    part = values[first - first_row : last + 1 - first_row]
    vertical = (in_height, height, rows, first, align_corners)
    with _full_precision(values.device):
        if len(rows) < len(part):
            return _resize_columns(_resize_height(part, *vertical), width, align_corners)
        return _resize_height(_resize_columns(part, width, align_corners), *vertical)


def add_resized_rows_gradient(
    gradient: Tensor, total: Tensor, height: int, rows: range, *, align_corners: bool
) -> None:
    """The gradient of `resize_rows` with respect to the map.

    Args:
        gradient: ``(len(rows), C, W)``, gradient with respect to some rows of the resized map.
        total: ``(h, C, w)``, gradient with respect to the whole map; the result is added to it.
        height: ``H``, height of the whole resized map.
        rows: row indices of `gradient`.
        align_corners: see `resize_rows`.
    """
    in_height, _, in_width = total.shape
    first, vertical = _block(in_height, height, rows, align_corners, total.dtype, total.device)
    with _full_precision(total.device):
        narrow = gradient  # (n, C, W)
        if in_height != height:
            narrow = (vertical.t() @ gradient.flatten(1)).view(-1, *gradient.shape[1:])
        part = total[first : first + len(narrow)]
        if in_width == gradient.shape[2]:
            part += narrow
            return
        for source, target, weights in _chunks(in_width, gradient.shape[2], align_corners, total.dtype, total.device):
            part.view(-1, in_width)[:, source].addmm_(narrow.flatten(0, 1)[:, target], weights)


def source_rows(in_height: int, out_height: int, rows: range, *, align_corners: bool) -> tuple[int, int]:
    """Indices of the first and the last row that `resize_rows` reads."""
    if in_height == out_height:
        return rows.start, rows.stop - 1
    first, last = (_pixel_before(n, in_height, out_height, align_corners) for n in (rows.start, rows.stop - 1))
    return first, min(last + 1, in_height - 1)


def _pixel_before(index: int, in_size: int, out_size: int, align_corners: bool) -> int:
    """First result of `interpolation_weights` for one output pixel, by the same arithmetic without a tensor."""
    if align_corners:
        position = index * ((in_size - 1) / max(1, out_size - 1))
    else:
        position = min(max((index + 0.5) * (in_size / out_size) - 0.5, 0), in_size - 1)
    return min(int(position), in_size - 1)


def interpolation_weights(
    in_size: int, out_size: int, *, align_corners: bool, out: range | None = None
) -> tuple[Tensor, Tensor]:
    """Indices and weights of bilinear interpolation along one axis.

    Args:
        in_size: number of input pixels.
        out_size: number of output pixels.
        align_corners: see `resize_rows`.
        out: consecutive indices of output pixels; None for all.

    Returns:
        For each output pixel the int64 index of the input pixel before its position, and the float64 weight in
        ``[0, 1)`` of the next input pixel; the weight is 0 where there is no next one.
    """
    out = range(out_size) if out is None else out
    index = torch.arange(out.start, out.stop, dtype=torch.float64)
    if in_size == out_size:
        return index.long(), torch.zeros_like(index)
    if align_corners:
        position = index * ((in_size - 1) / max(1, out_size - 1))
    else:
        position = ((index + 0.5) * (in_size / out_size) - 0.5).clamp_(0, in_size - 1)
    before = position.long().clamp_(max=in_size - 1)
    return before, torch.where(before == in_size - 1, 0.0, position - before)


@lru_cache(maxsize=1024)
def _block(
    in_size: int, out_size: int, out: range, align_corners: bool, dtype: torch.dtype, device: torch.device
) -> tuple[int, Tensor]:
    """Index of the first input pixel that is read, and the weights ``(len(out), n)`` of the pixels from there on."""
    before, weight = interpolation_weights(in_size, out_size, align_corners=align_corners, out=out)
    first = int(before[0])
    last = min(int(before[-1]) + 1, in_size - 1) if in_size != out_size else out.stop - 1
    column = before[:, None] - first
    matrix = torch.zeros(len(out), last + 1 - first, dtype=torch.float64)
    matrix.scatter_(1, column, 1 - weight[:, None])
    matrix.scatter_add_(1, (column + 1).clamp_(max=last - first), weight[:, None])
    return first, matrix.to(dtype).to(device)


@lru_cache(maxsize=64)
def _chunks(
    in_width: int, out_width: int, align_corners: bool, dtype: torch.dtype, device: torch.device
) -> list[tuple[slice, slice, Tensor]]:
    """For each chunk: its input columns, its output columns, and the weights ``(out, in)``."""
    size = max(_CHUNK_COLUMNS, out_width * _CHUNK_COLUMNS // in_width)
    chunks = []
    for start in range(0, out_width, size):
        out = range(start, min(start + size, out_width))
        first, weights = _block(in_width, out_width, out, align_corners, dtype, device)
        chunks.append((slice(first, first + weights.shape[1]), slice(out.start, out.stop), weights))
    return chunks


def _resize_height(
    values: Tensor, in_height: int, out_height: int, rows: range, first_row: int, align_corners: bool
) -> Tensor:
    """The vertical pass of `resize_rows`: ``(len(rows), C, w)``."""
    if in_height == out_height:
        return values[rows.start - first_row : rows.stop - first_row]
    if out_height >= _MIN_UPSAMPLING * in_height:
        first, weights = _block(in_height, out_height, rows, align_corners, values.dtype, values.device)
        part = values[first - first_row : first - first_row + weights.shape[1]]
        return (weights @ part.flatten(1)).view(len(rows), *values.shape[1:])
    low, share = interpolation_weights(in_height, out_height, align_corners=align_corners, out=rows)
    mixed = values.new_empty(len(rows), *values.shape[1:])
    for target, above, weight in zip(mixed, (low - first_row).tolist(), share.tolist(), strict=True):
        torch.lerp(values[above], values[min(above + 1, len(values) - 1)], weight, out=target)
    return mixed


def _resize_columns(values: Tensor, out_width: int, align_corners: bool) -> Tensor:
    in_width = values.shape[2]
    if in_width == out_width:
        return values
    if out_width < _MIN_UPSAMPLING * in_width:
        return F.interpolate(values, size=out_width, mode="linear", align_corners=align_corners)
    wide = values.new_empty(*values.shape[:2], out_width)
    for source, target, weights in _chunks(in_width, out_width, align_corners, values.dtype, values.device):
        torch.mm(values.flatten(0, 1)[:, source], weights.t(), out=wide.view(-1, out_width)[:, target])
    return wide


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Full float32 products: TF32 has a 10-bit mantissa, too few for exact interpolation."""
    if device.type != "cuda":  # threads on the CPU share the global setting below, which only CUDA reads
        with torch.autocast(device.type, enabled=False):
            yield
        return
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
