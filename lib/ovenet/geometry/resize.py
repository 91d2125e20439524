"""Resizing of score maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_bilinear(values: Tensor, size: tuple[int, int], *, align_corners: bool) -> Tensor:
    """Bilinear resize, the identity where the size is right already.

    Args:
        values: ``(B, C, h, w)``.
        size: ``(H, W)`` in pixels.
        align_corners: True puts the centres of the corner pixels onto each other (published HRNet models).

    Returns:
        ``(B, C, H, W)``.
    """
    if tuple(values.shape[-2:]) == tuple(size):
        return values
    return F.interpolate(values, size=size, mode="bilinear", align_corners=align_corners)


def resize_rows(
    values: Tensor,
    size: tuple[int, int],
    rows: range,
    *,
    align_corners: bool,
    in_height: int | None = None,
    first_row: int = 0,
) -> Tensor:
    """Some rows of `resize_bilinear`, without the memory of the others.

    Args:
        values: ``(B, C, h, w)`` floating-point.
        size: ``(H, W)`` of the whole result, in pixels.
        rows: which rows of it, consecutive.
        align_corners: see `resize_bilinear`.
        in_height: rows of the whole map, where `values` holds some alone: at least those that `source_rows` names.
        first_row: of the whole map, the first one in `values`.

    Returns:
        ``(B, C, len(rows), W)``; differs from `resize_bilinear` by rounding alone.
    """
    height, width = size
    in_height = values.shape[-2] if in_height is None else in_height
    first, last = source_rows(in_height, height, rows, align_corners=align_corners)
    part = values[..., first - first_row : last + 1 - first_row, :]
    if in_height != height:
        position = _row_positions(in_height, height, rows, align_corners).to(values.device)
        above = position.long()
        below = (above + 1).clamp_(max=last)
        weight = (position - above).to(values.dtype).view(-1, 1)
        part = torch.lerp(part[..., above - first, :], part[..., below - first, :], weight)
    return resize_bilinear(part, (len(rows), width), align_corners=align_corners)


def interpolation_weights(in_size: int, out_size: int, *, align_corners: bool) -> tuple[Tensor, Tensor]:
    """Bilinear interpolation along one axis: which pixels are mixed, and how.

    Args:
        in_size: pixels that come in.
        out_size: pixels that go out.
        align_corners: see `resize_bilinear`.

    Returns:
        ``(out_size,)`` int64, the pixel before each position, and ``(out_size,)`` float64, the weight in ``[0, 1)`` of
        the pixel after that one; 0 at the last pixel, which has none after it.
    """
    if in_size == out_size:
        return torch.arange(in_size), torch.zeros(in_size, dtype=torch.float64)
    position = _row_positions(in_size, out_size, range(out_size), align_corners)
    before = position.long().clamp_(max=in_size - 1)
    return before, torch.where(before == in_size - 1, 0.0, position - before)


def interpolation_matrix(
    in_size: int,
    out_size: int,
    *,
    align_corners: bool,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """`interpolation_weights` as a matrix: `resize_bilinear` is its product with rows and columns.

    Returns:
        ``(out_size, in_size)``; each row has at most two weights, side by side, that sum to 1.
    """
    before, weight = interpolation_weights(in_size, out_size, align_corners=align_corners)
    after = (before + 1).clamp_(max=in_size - 1)
    matrix = torch.zeros(out_size, in_size, dtype=torch.float64)
    matrix.scatter_add_(1, before[:, None], (1 - weight)[:, None])
    matrix.scatter_add_(1, after[:, None], weight[:, None])
    return matrix.to(device, dtype)


def source_rows(in_height: int, out_height: int, rows: range, *, align_corners: bool) -> tuple[int, int]:
    """First and last row that `resize_rows` reads."""
    if in_height == out_height:
        return rows.start, rows.stop - 1
    first, last = (_row_positions(in_height, out_height, range(r, r + 1), align_corners) for r in (rows[0], rows[-1]))
    return int(first), min(int(last) + 1, in_height - 1)


def _row_positions(in_height: int, out_height: int, rows: range, align_corners: bool) -> Tensor:
    """Where the centres of output rows lie among the input's, float64."""
    index = torch.arange(rows.start, rows.stop, dtype=torch.float64)
    if align_corners:
        return index * ((in_height - 1) / max(1, out_height - 1))
    return ((index + 0.5) * (in_height / out_height) - 0.5).clamp_(0, in_height - 1)
