"""Bilinear resizing of a few rows at a time, as matrix products.

Bilinear resizing is separable, and each output pixel reads two input pixels per axis. Blocks of rows and chunks of
columns read few input pixels, so that both halves are small dense products.

Maps lie rows first here, ``(n, C, w)``: a block of rows is then one piece of memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

_MIN_ENLARGEMENT = 2  # products pay where blocks read few input pixels; below it, two are read for each output pixel
_CHUNK_COLUMNS = 32  # minimum block width: below this the overhead of a matrix product outweighs the zeros it skips


def resize_rows(
    values: Tensor,
    size: tuple[int, int],
    rows: range,
    *,
    align_corners: bool,
    in_height: int | None = None,
    first_row: int = 0,
) -> Tensor:
    """Some rows of a resized map, without the memory of the others.

    Args:
        values: ``(n, C, w)`` float32 or float64, rows of a map.
        size: ``(H, W)`` of the whole result, in pixels.
        rows: which rows of it, consecutive.
        align_corners: see `ovenet.geometry.resize_bilinear`.
        in_height: rows of the whole map, where `values` holds some alone: at least those that `source_rows` names.
        first_row: of the whole map, the first one in `values`.

    Returns:
        ``(len(rows), C, W)``; differs from `resize_bilinear` by rounding alone.
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
        gradient: ``(len(rows), C, W)`` of some rows of the resized map.
        total: ``(h, C, w)``, of the whole map; grows.
        height: of the whole resized map, ``H``.
        rows: which rows `gradient` has.
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
    """First and last row that `resize_rows` reads."""
    if in_height == out_height:
        return rows.start, rows.stop - 1
    first, last = (_pixel_before(n, in_height, out_height, align_corners) for n in (rows.start, rows.stop - 1))
    return first, min(last + 1, in_height - 1)


def _pixel_before(index: int, in_size: int, out_size: int, align_corners: bool) -> int:
    """What `interpolation_weights` says of one output pixel, by the same arithmetic without a tensor."""
    if align_corners:
        position = index * ((in_size - 1) / max(1, out_size - 1))
    else:
        position = min(max((index + 0.5) * (in_size / out_size) - 0.5, 0), in_size - 1)
    return min(int(position), in_size - 1)


def interpolation_weights(
    in_size: int, out_size: int, *, align_corners: bool, out: range | None = None
) -> tuple[Tensor, Tensor]:
    """Bilinear interpolation along one axis: which pixels are mixed, and how.

    Args:
        in_size: pixels that come in.
        out_size: pixels that go out.
        align_corners: see `resize_rows`.
        out: which of the latter, consecutive; None for all.

    Returns:
        Per output pixel int64, the pixel before its position, and float64, the weight in ``[0, 1)`` of the pixel after
        that one; 0 at the last pixel, which has none after it.
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
    """The first input pixel that output pixels read, and the weights ``(len(out), n)`` of the pixels from there on."""
    before, weight = interpolation_weights(in_size, out_size, align_corners=align_corners, out=out)
    first = int(before[0])
    last = min(int(before[-1]) + 1, in_size - 1) if in_size != out_size else out.stop - 1
    column = before[:, None] - first
    matrix = torch.zeros(len(out), last + 1 - first, dtype=torch.float64)
    matrix.scatter_(1, column, 1 - weight[:, None])
    matrix.scatter_add_(1, (column + 1).clamp_(max=last - first), weight[:, None])
    return first, matrix.to(device, dtype)


@lru_cache(maxsize=64)
def _chunks(
    in_width: int, out_width: int, align_corners: bool, dtype: torch.dtype, device: torch.device
) -> list[tuple[slice, slice, Tensor]]:
    """Input columns, the output columns that read them, and the weights ``(out, in)``."""
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
    """``(len(rows), C, w)``; see `resize_rows`."""
    if in_height == out_height:
        return values[rows.start - first_row : rows.stop - first_row]
    if out_height >= _MIN_ENLARGEMENT * in_height:
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
    if out_width < _MIN_ENLARGEMENT * in_width:
        return F.interpolate(values, size=out_width, mode="linear", align_corners=align_corners)
    wide = values.new_empty(*values.shape[:2], out_width)
    for source, target, weights in _chunks(in_width, out_width, align_corners, values.dtype, values.device):
        torch.mm(values.flatten(0, 1)[:, source], weights.t(), out=wide.view(-1, out_width)[:, target])
    return wide


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Full float32 products: TF32 has a 10-bit mantissa, which would shift positions visibly."""
    if device.type != "cuda":  # several threads may be here at once
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
