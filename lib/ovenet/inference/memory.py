"""Estimates the memory of an image, so that one that is too large is an error message instead of a crash."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from ovenet.data.files import read_size
from ovenet.errors import UserError
from ovenet.inference.inferencer import SlidingWindowInferencer, thinning
from ovenet.utils.environment import peak_memory_bytes

_GB = 10**9
_SHARE_OF_FREE = 0.8
_DECODER_BYTES = 4 + 3  # a pixel in Pillow's memory and in its copy as an array
_IMAGE_BYTES = 3
_LABEL_BYTES = 1
_PROBABILITY_BYTES = 4
_OUTPUT_BYTES = 1  # a pixel of the id file
_SEED_BYTES = 3 * 4
_SEED_PICTURE_BYTES = 2 * 4  # an array of offsets in pixels; pictures of them are smaller


class MemoryGuard:
    """Refuses images that would need more memory than there may be used.

    The process's peak memory after one window is the base that every image needs.

    Args:
        predictor: on the CPU; on another device the memory of images is counted in the same way.
        num_classes: ``K``.
        max_gb: limit of the whole process, in 10^9 bytes; None for the base and 80 % of the free memory.
        max_seed_side: longest side of offsets and confidence after subsampling; 0 if there are none.
        probability: whether the probability of the predicted class is predicted too.

    Raises:
        UserError: one window needs more than the limit.
    """

    def __init__(
        self,
        predictor: SlidingWindowInferencer,
        num_classes: int,
        max_gb: float | None,
        *,
        max_seed_side: int = 0,
        probability: bool = False,
    ):
        self._predictor = predictor
        self._num_classes = num_classes
        self._max_seed_side = max_seed_side
        self._kept_bytes = _LABEL_BYTES + (_PROBABILITY_BYTES if probability else 0)
        self._is_given = max_gb is not None
        self.base_bytes = self._run_window() if self._is_given else peak_memory_bytes()
        free = _SHARE_OF_FREE * available_bytes()
        self.max_bytes = int(max_gb * _GB) if max_gb is not None else self.base_bytes + int(free)
        if self._is_given and self.base_bytes > self.max_bytes:
            raise UserError(
                f"--max-memory {max_gb:g}: one window of {' x '.join(map(str, predictor.settings.window_size))} pixels "
                f"needs {self.base_bytes / _GB:.1f} GB; raise it, or lower TEST.IMAGE_SIZE"
            )

    def check(self, path: Path) -> int:
        """Checks an image file by its header.

        Returns:
            The number of its pixels.

        Raises:
            UserError: the file is not an image, or needs too much memory.
        """
        size = read_size(path)
        needed = self.base_bytes + self.image_bytes(size)
        if needed > self.max_bytes:
            may_use = f"--max-memory is {self.max_bytes / _GB:.1f}"
            raise UserError(
                f"{path}: {size[1]} x {size[0]} pixels need about {needed / _GB:.1f} GB of memory; "
                f"{may_use if self._is_given else f'{self.max_bytes / _GB:.1f} GB may be used'}"
            )
        return math.prod(size)

    def image_bytes(self, size: tuple[int, int]) -> int:
        """Memory that grows with the image ``(H, W)``: the maximum of decoding, predicting and writing."""
        pixels = math.prod(size)
        settings = self._predictor.settings
        scaled = [settings.scaled_size(size, scale) for scale in settings.scales]
        scaled *= 2 if settings.has_flipped_views else 1
        views = sum(_IMAGE_BYTES * math.prod(s) for s in scaled if s != size)
        rows = sum(2 * s[1] * min(s[0], settings.window_size[0]) for s in scaled) // 16  # two rows of windows
        maps = rows * 4 * (self._num_classes + 3)
        seeds = 0
        if self._max_seed_side:
            seeds = pixels // thinning(size, self._max_seed_side) ** 2
        predicting = (_IMAGE_BYTES + self._kept_bytes) * pixels + views + maps + _SEED_BYTES * seeds
        writing = (_IMAGE_BYTES + self._kept_bytes) * pixels + _SEED_BYTES * seeds
        writing += max(_OUTPUT_BYTES * pixels, _SEED_PICTURE_BYTES * seeds)
        return max(_DECODER_BYTES * pixels, predicting, writing)

    def _run_window(self) -> int:
        window = self._predictor.settings.window_size
        self._predictor.predict(np.zeros((*window, 3), np.uint8), names=("fused",))
        return peak_memory_bytes()


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Free memory, cached files included; all memory on systems other than Linux."""
    if meminfo.exists():
        for line in meminfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
