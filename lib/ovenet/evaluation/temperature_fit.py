"""The temperature with the smallest negative log-likelihood, from one pass over the images.

Shapes: ``P`` predictions, ``G`` temperatures of a grid, ``K`` classes, ``M`` pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from ovenet.evaluation.class_counts import ROW_STRIDE
from ovenet.inference.inferencer import ClassBand

COLDNESS = np.geomspace(0.1, 10, 33)  # 1 / T
END_TEMPERATURES = (float(1 / COLDNESS[0]), float(1 / COLDNESS[-1]))
_LEAST = 1e-12  # probabilities below it count as much
_STEPS = 2**16  # of a pixel's loss and slope, so that their sums do not depend on the order


class TemperatureCounts:
    """Sums over pixels of the loss and of its slope at each temperature of the grid.

    The loss ``log(sum_k p_k^b) - b log p_y`` is convex in ``b = 1 / T``.

    Args:
        names: names of the ``P`` predictions.
        device: device of the bands.

    Attributes:
        sums: ``(P, G, 2)`` int64, loss and slope by ``1 / T`` in steps.
        num_pixels: int64 ``()``.
    """

    def __init__(self, names: Sequence[str], device: torch.device):
        self.sums = torch.zeros((len(names), len(COLDNESS), 2), dtype=torch.int64, device=device)
        self.num_pixels = torch.zeros((), dtype=torch.int64, device=device)
        self._names, self._lock = tuple(names), Lock()

    def add(self, band: ClassBand, labels: Tensor) -> None:
        """Adds every fourth row of a band; several threads may call this at once.

        Args:
            band: probabilities at temperature 1.
            labels: ``(H, W)`` train ids of the image, -1 where there is none.
        """
        first = -band.rows.start % ROW_STRIDE
        labels = labels[band.rows.start + first : band.rows.stop : ROW_STRIDE]
        valid = labels >= 0
        own = labels[valid].long().unsqueeze(1)  # (M, 1)
        for index, name in enumerate(self._names):
            shares = band.probabilities[name][first::ROW_STRIDE].permute(0, 2, 1)[valid]  # (M, K)
            sums = _losses_and_slopes(shares.nan_to_num(0.0).clamp_min(_LEAST).log_(), own)
            with self._lock:
                self.sums[index] += sums
        with self._lock:
            self.num_pixels += valid.sum()


def _losses_and_slopes(logs: Tensor, own: Tensor) -> Tensor:
    """Sums ``(G, 2)`` over the pixels, in steps.

    Args:
        logs: logarithms ``(M, K)`` of the probabilities.
        own: ``(M, 1)`` class of each pixel.
    """
    logs = logs - logs.gather(1, own)  # log p_k - log p_y
    largest = logs.amax(dim=1, keepdim=True)
    sums = []
    for coldness in COLDNESS.tolist():
        powers = (logs - largest).mul_(coldness).exp_()
        total = powers.sum(dim=1)
        loss, slope = total.log() + coldness * largest[:, 0], (powers * logs).sum(dim=1) / total
        sums.append(torch.stack([x.mul(_STEPS).round_().long().sum() for x in (loss, slope)]))
    return torch.stack(sums)


def best_temperature(sums: np.ndarray) -> float:
    """The temperature where the loss is smallest; an end of the grid if the loss falls all the way there.

    Between two temperatures of the grid the loss is the cubic with its values and slopes at both, over ``1 / T``.

    Args:
        sums: ``(G, 2)`` losses and slopes, of one prediction, divided by anything.
    """
    losses, slopes = sums.T
    if slopes[0] >= 0:
        return END_TEMPERATURES[0]
    if slopes[-1] <= 0:
        return END_TEMPERATURES[1]
    low = int(np.flatnonzero(slopes < 0)[-1])
    width = COLDNESS[low + 1] - COLDNESS[low]
    rise, start, end = losses[low + 1] - losses[low], width * slopes[low], width * slopes[low + 1]
    # The slope of the cubic at a share s of the way is start + b s + a s^2; it rises through 0 in between.
    a, b = 3 * (start + end - 2 * rise), 6 * rise - 4 * start - 2 * end
    share = -2 * start / (b + np.sqrt(max(b * b - 4 * a * start, 0.0)))
    return float(1 / (COLDNESS[low] + width * min(max(share, 0.0), 1.0)))
