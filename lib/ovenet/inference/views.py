"""One scale of an image: its windows, and the network's maps of them.

Shapes: ``K`` classes, ``C`` channels, ``n`` rows of a band. Bands are ``(n, C, W)``; sizes are ``(H, W)`` in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ovenet.data.transforms import normalize_images
from ovenet.geometry import source_rows
from ovenet.inference.backend import CpuBackend
from ovenet.structures import Normalization

VECTOR = "vector: "  # prefix of the names of maps that are not scores


def is_vector(name: str) -> bool:
    """Whether a map holds vectors, by its name."""
    return name.startswith(VECTOR)


def is_score(name: str) -> bool:
    """Whether a map holds scores, by its name."""
    return not is_vector(name)


@dataclass(frozen=True)
class Tiling:
    """Windows of an image.

    Attributes:
        padded: size ``(H, W)`` of the padded image.
        window: size ``(H, W)`` of each window.
        corners: ``(top, left)`` of each window, row by row.
    """

    padded: tuple[int, int]
    window: tuple[int, int]
    corners: list[tuple[int, int]]

    @classmethod
    def of(
        cls, size: tuple[int, int], limits: tuple[int, int] | None, stride: tuple[int, int] | None, multiple: int
    ) -> Tiling:
        """Tiles an image ``(H, W)`` into windows, the last ones shifted inward.

        Args:
            size: size of the image.
            limits: largest size of a window; None for one window.
            stride: step from window to window; None for windows side by side.
            multiple: padded sides are multiples of this.
        """
        padded = padded_size(size, multiple)
        limits = limits or padded
        window = min(padded[0], limits[0]), min(padded[1], limits[1])
        starts = [window_starts(n, w, s) for n, w, s in zip(padded, window, stride or window, strict=True)]
        return cls(padded, window, [(top, left) for top in starts[0] for left in starts[1]])

    @classmethod
    def padded_windows(cls, size: tuple[int, int], window: tuple[int, int]) -> Tiling:
        """Tiles an image ``(H, W)`` as HRNet's test of ADE20K, COCO-Stuff, PASCAL-Context and LIP does.

        All windows are of one size and lie two thirds of it apart; the image is padded until they fit.
        """
        starts = []
        for length, side in zip(size, window, strict=True):
            stride = max(1, side * 2 // 3)
            count = max(0, math.ceil((length - side) / stride)) + 1
            starts.append([index * stride for index in range(count)])
        padded = starts[0][-1] + window[0], starts[1][-1] + window[1]
        return cls(padded, window, [(top, left) for top in starts[0] for left in starts[1]])


class ScaledView:
    """The network's maps of one scale, window by window, while rows of the image are read from top to bottom.

    Args:
        image: ``(H, W, 3)`` uint8 RGB at this scale, on the CPU.
        tiling: windows of the image.
        backend: backend of the device.
        device: device of the network.
        align_corners: convention of the score upsampling.
        averages_logits: whether windows are averaged before `as_averaged` is applied, or after it.
        pads_black: whether windows are padded in black, or in the mean colour.
        first_sizes: size ``(H, W)`` that scores are resized to before the size of the image, and the part of it that is
            kept; None resizes them at once.
        as_averaged: converts the network's scores ``(n, K, w)`` to those that are averaged over scales.
        seeds: keep offsets and confidence too.
        fields: keep other displacements too.

    Attributes:
        waiting: corners of the windows that have not run yet.
    """

    def __init__(
        self,
        image: Tensor,
        tiling: Tiling,
        backend: CpuBackend,
        device: torch.device,
        *,
        align_corners: bool,
        averages_logits: bool,
        as_averaged: Callable[[Tensor], Tensor],
        pads_black: bool = False,
        first_sizes: tuple[tuple[int, int], tuple[int, int]] | None = None,
        seeds: bool = False,
        fields: bool = False,
    ):
        self.seeds, self.fields = seeds, fields
        self.window = tiling.window
        self.waiting = list(tiling.corners)
        self._image, self._padded = image, tiling.padded
        self._size = image.shape[0], image.shape[1]
        self._backend, self._device = backend, device
        self._align_corners, self._averages_logits, self._as_averaged = align_corners, averages_logits, as_averaged
        self._pads_black, self._first_sizes = pads_black, first_sizes
        self._strip: tuple[int, Tensor] | None = None
        self._done: dict[tuple[int, int], dict[str, Tensor]] = {}

    def num_due(self, size: tuple[int, int], row: int) -> int:
        """Number of waiting windows that the rows above `row` of an image ``(H, W)`` need."""
        last = self._own_rows(size, range(row - 1, row)).stop - 1
        return sum(top <= last for top, _ in self.waiting)

    def pixels(self, corner: tuple[int, int], normalization: Normalization) -> Tensor:
        """The next waiting window, normalised, ``(1, 3, h, w)`` on the device."""
        (top, left), (height, width) = corner, self.window
        if self._strip is None or self._strip[0] != top:  # windows side by side share one copy to the device
            is_async = self._device.type == "cuda"
            self._strip = top, self._image[top : top + height].to(self._device, non_blocking=is_async)
        part = self._strip[1][:, left : left + width].permute(2, 0, 1).unsqueeze(0)
        # At a padded border a window holds less of the image.
        missing = (0, width - part.shape[3], 0, height - part.shape[2])
        if any(missing) and self._pads_black:
            return normalize_images(F.pad(part, missing), normalization)
        part = normalize_images(part, normalization)
        return F.pad(part, missing) if any(missing) else part  # zero is the mean colour

    def store(self, corner: tuple[int, int], maps: dict[str, Tensor]) -> None:
        """Keeps the maps ``(h, C, w)`` of a window; converts vectors from units of the window to those of the image."""
        for name in filter(is_vector, maps):
            for axis in (0, 1):  # x, y
                side, window = (sizes[1 - axis] for sizes in (self._size, self.window))
                maps[name][:, axis].mul_((window - 1) / max(1, side - 1))
        self._done[corner] = maps
        if not self.waiting:
            self._strip = None

    def forget_above(self, size: tuple[int, int], row: int) -> None:
        """Drops the windows that no row from `row` of an image ``(H, W)`` on needs."""
        if row < size[0]:
            first = self._own_rows(size, range(row, row + 1)).start
            for corner in [c for c in self._done if c[0] + self.window[0] <= first]:
                del self._done[corner]

    @property
    def num_kept(self) -> int:
        """Number of windows with maps in memory."""
        return len(self._done)

    def resized_rows(self, size: tuple[int, int], rows: range) -> dict[str, Tensor]:
        """Scores at the size of the image, windows averaged where they overlap.

        Args:
            size: ``(H, W)`` of the image.
            rows: rows of the image; their windows have run.

        Returns:
            ``(n, C, W)`` by name: fresh tensors, safe to modify.
        """
        bands = self._rows(self._own_rows(size, rows))
        if self._first_sizes is None:
            return self._resize(bands, self._size, size, rows)
        padded, kept = self._first_sizes
        first_rows = self._source(kept, size, rows)
        bands = self._resize(bands, self._size, padded, first_rows)
        return self._resize({name: band[..., : kept[1]] for name, band in bands.items()}, kept, size, rows)

    def _resize(
        self, bands: dict[str, Tensor], old: tuple[int, int], new: tuple[int, int], rows: range
    ) -> dict[str, Tensor]:
        """Resizes rows of maps of size `old` to rows ``(n, C, W)`` of size `new`."""
        if old == new:
            return bands
        resize = partial(
            self._backend.resize_rows,
            align_corners=self._align_corners,
            in_height=old[0],
            first_row=self._source(old, new, rows).start,
        )
        return {name: resize(band, new, rows) for name, band in bands.items()}

    def _source(self, old: tuple[int, int], new: tuple[int, int], rows: range) -> range:
        """The rows of size `old` that rows of size `new` are resized from."""
        first, last = source_rows(old[0], new[0], rows, align_corners=self._align_corners)
        return range(first, last + 1)

    def _own_rows(self, size: tuple[int, int], rows: range) -> range:
        """The rows at this scale that the given rows of an image ``(H, W)`` need."""
        if self._first_sizes is None:
            return self._source(self._size, size, rows)
        padded, kept = self._first_sizes
        return self._source(self._size, padded, self._source(kept, size, rows))

    def _rows(self, rows: range) -> dict[str, Tensor]:
        """Maps ``(n, C, W)`` of rows at this scale, by name."""
        if self.window == self._padded:
            (maps,) = self._done.values()
            return {
                name: self._finish(name, band)[..., : self._size[1]]
                for name, band in self._window_rows(maps, rows).items()
            }
        total: dict[str, Tensor] = {}
        counts = torch.zeros((len(rows), 1, self._padded[1]), device=self._device)
        for (top, left), maps in self._done.items():
            here = range(max(rows.start, top), min(rows.stop, top + self.window[0]))
            if not here:
                continue
            box = np.s_[here.start - rows.start : here.stop - rows.start, :, left : left + self.window[1]]
            for name, part in self._window_rows(maps, range(here.start - top, here.stop - top)).items():
                if name not in total:
                    total[name] = self._backend.zeros(part, len(rows), self._padded[1])
                if is_vector(name):
                    total[name][box] = part
                else:
                    total[name][box].add_(part if self._averages_logits else self._finish(name, part))
            counts[box].add_(1)
        weights = counts.reciprocal_()
        for name in filter(is_score, total):
            total[name] *= weights
        if self._averages_logits:
            total = {name: self._finish(name, band) for name, band in total.items()}
        return {name: band[..., : self._size[1]] for name, band in total.items()}

    def _window_rows(self, maps: dict[str, Tensor], rows: range) -> dict[str, Tensor]:
        """Rows ``(n, C, w)`` of the network's maps of one window, resized to the window."""
        resize, options = self._backend.resize_rows, {"align_corners": self._align_corners}
        return {name: resize(x, self.window, rows, **options) for name, x in maps.items()}

    def _finish(self, name: str, scores: Tensor) -> Tensor:
        """Scores ``(n, K, w)`` as they are averaged; vectors unchanged."""
        return scores if is_vector(name) else self._as_averaged(scores)


def due_windows(
    views: Iterable[ScaledView], size: tuple[int, int], row: int, limit: Callable[[ScaledView], int]
) -> list[tuple[ScaledView, tuple[int, int]]]:
    """Takes the windows of the next batch, all of one size.

    Args:
        views: scales of one image.
        size: ``(H, W)`` of the image.
        row: the rows above this one are to be finished.
        limit: number of windows in a batch, for a view.

    Returns:
        Views and corners: due windows first, then others that fill the batch; empty if none is due.
    """
    views = list(views)
    num_due = {id(view): view.num_due(size, row) for view in views}
    first = next((view for view in views if num_due[id(view)]), None)
    if first is None:
        return []
    alike = [view for view in views if view.window == first.window]
    batch: list[tuple[ScaledView, tuple[int, int]]] = []
    for wanted in (lambda view: num_due[id(view)], lambda view: len(view.waiting)):
        for view in alike:
            taken = min(wanted(view), limit(first) - len(batch))
            batch += [(view, corner) for corner in view.waiting[:taken]]
            del view.waiting[:taken]
    return batch


def padded_size(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """A size ``(H, W)`` rounded up to multiples of a number of pixels."""
    height, width = size
    return height + -height % multiple, width + -width % multiple


def window_starts(length: int, window: int, stride: int) -> Sequence[int]:
    """Starts of the windows along one axis; the last one is shifted inward.

    Args:
        length: length of the axis, in pixels.
        window: length of a window in pixels, at most `length`.
        stride: step from one window to the next; `window` for windows side by side.
    """
    starts = list(range(0, length - window + 1, stride))
    if starts[-1] + window < length:
        starts.append(length - window)
    return starts
