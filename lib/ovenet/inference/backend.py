"""Scores and classes at image size from the network's maps, on the CPU and on a card.

Shapes: ``n`` rows of a band, ``C`` channels, ``K`` classes; bands are ``(n, C, W)``, whatever their memory format.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ovenet.geometry import interpolation_weights, resize_rows


@dataclass(frozen=True)
class CpuBackend:
    """On the CPU: bands that stay in the processor's cache, rows first in memory, some at a time in threads.

    Attributes:
        band_elements: number of scores of one prediction in a band.
        bands_at_once: number of bands finished before windows are checked again.
        auto_pixels: pixels in a batch of windows if no batch size is set; 0 for one window and view at a time.
        images_ahead: number of predictions launched before the host reads the first.
    """

    band_elements: int = 2**19  # 2 MB
    bands_at_once: int = 32
    auto_pixels: int = 0
    images_ahead: int = 0

    def batch_size(self, wanted: int, window: tuple[int, int], *, flip: bool) -> int:
        """Number of views in a batch; a window's flipped view counts as one more.

        Args:
            wanted: batch size that was set; 0 derives it from the window.
            window: ``(H, W)`` in pixels.
            flip: whether there are flipped views.
        """
        return wanted or max(2 if flip and self.auto_pixels else 1, self.auto_pixels // math.prod(window))

    def keep(self, maps: Tensor) -> list[Tensor]:
        """Copies maps ``(B, C, h, w)`` of windows to bands ``(h, C, w)``."""
        return [window.permute(1, 0, 2).contiguous() for window in maps]

    def zeros(self, like: Tensor, num_rows: int, width: int) -> Tensor:
        """A band of zeros with the channels of another."""
        return like.new_zeros(num_rows, like.shape[1], width)

    def resize_rows(
        self,
        values: Tensor,
        size: tuple[int, int],
        rows: range,
        *,
        align_corners: bool,
        in_height: int | None = None,
        first_row: int = 0,
    ) -> Tensor:
        """See `ovenet.geometry.resize_rows`."""
        return resize_rows(values, size, rows, align_corners=align_corners, in_height=in_height, first_row=first_row)

    def softmax(self, logits: Tensor) -> Tensor:
        """Over the classes of ``(n, K, w)``; twice as fast as torch's on the CPU for this layout."""
        exponentials = (logits - logits.amax(dim=1, keepdim=True)).mul_(math.log2(math.e)).exp2_()
        return exponentials.div_(exponentials.sum(dim=1, keepdim=True))

    def best_class(self, scores: Tensor, largest: Tensor | None = None) -> Tensor:
        """See `best_class`; uint8 for up to 256 classes, else int16."""
        return best_class(scores, largest).to(_label_type(scores.shape[1]))


@dataclass(frozen=True)
class CudaBackend(CpuBackend):
    """On a card, where every launch costs: bands as large as memory allows, channels first, torch's kernels."""

    band_elements: int = 2**26  # 256 MB: an image of 1024x2048 and 19 classes at once
    bands_at_once: int = 1
    auto_pixels: int = 2**22  # two views of 1024x2048, or eight of 512x1024
    images_ahead: int = 1

    def keep(self, maps: Tensor) -> list[Tensor]:
        """See `CpuBackend.keep`."""
        return [window.permute(1, 0, 2) for window in maps.clone(memory_format=torch.contiguous_format)]

    def zeros(self, like: Tensor, num_rows: int, width: int) -> Tensor:
        """See `CpuBackend.zeros`."""
        return like.new_zeros(like.shape[1], num_rows, width).permute(1, 0, 2)

    def resize_rows(
        self,
        values: Tensor,
        size: tuple[int, int],
        rows: range,
        *,
        align_corners: bool,
        in_height: int | None = None,
        first_row: int = 0,
    ) -> Tensor:
        """See `ovenet.geometry.resize_rows`; one launch for all rows, some more for a part of them."""
        maps = values.permute(1, 0, 2).unsqueeze(0)  # (1, C, h, w)
        in_height = len(values) if in_height is None else in_height
        if len(rows) < size[0] or len(values) < in_height:
            maps = _some_rows(maps, in_height, size[0], rows, first_row, align_corners)
        if maps.shape[2:] != (len(rows), size[1]):
            maps = F.interpolate(maps, size=(len(rows), size[1]), mode="bilinear", align_corners=align_corners)
        return maps[0].permute(1, 0, 2)

    def softmax(self, logits: Tensor) -> Tensor:
        """Over the classes of ``(n, K, w)``, which are the first axis in memory."""
        return logits.permute(1, 0, 2).softmax(dim=0).permute(1, 0, 2)

    def best_class(self, scores: Tensor, largest: Tensor | None = None) -> Tensor:
        """See `CpuBackend.best_class`."""
        return scores.permute(1, 0, 2).argmax(dim=0).to(_label_type(scores.shape[1]))


def _some_rows(
    maps: Tensor, in_height: int, out_height: int, rows: range, first_row: int, align_corners: bool
) -> Tensor:
    """Resizes some rows of maps ``(1, C, h, w)`` along the height; on CUDA without a copy from the host."""
    if in_height == out_height:
        return maps[:, :, rows.start - first_row : rows.stop - first_row]
    with maps.device if maps.is_cuda else nullcontext():  # others may have no float64
        low, share = interpolation_weights(in_height, out_height, align_corners=align_corners, out=rows)
    low -= first_row
    low, share = low.to(maps.device), share.to(maps.dtype).to(maps.device)
    above, below = (maps.index_select(2, i) for i in (low, (low + 1).clamp_(max=maps.shape[2] - 1)))
    return above.lerp_(below, share[:, None])


def best_class(scores: Tensor, largest: Tensor | None = None) -> Tensor:
    """The first class with the highest score: five times as fast as argmax on the CPU, which is not vectorised.

    Args:
        scores: ``(n, K, w)``.
        largest: ``(n, w)`` the highest scores, if already computed.

    Returns:
        ``(n, w)`` train ids, uint8 for up to 255 classes, else int16; any class where a score is NaN.
    """
    num_classes = scores.shape[1]
    dtype = torch.uint8 if num_classes < 256 else torch.int16
    codes = torch.arange(num_classes, 0, -1, dtype=dtype, device=scores.device).view(-1, 1)
    is_best = scores == (scores.amax(dim=1) if largest is None else largest).unsqueeze(1)
    return (num_classes - (is_best * codes).amax(dim=1)).clamp_(max=num_classes - 1)


def _label_type(num_classes: int) -> torch.dtype:
    return torch.uint8 if num_classes <= 256 else torch.int16
