"""Borders of classes and directions away from them: targets from labels, and losses of what is trained towards them.

The direction of a pixel is that of the increasing distance from the border of its own class: towards the interior
(Yuan et al., "SegFix: Model-Agnostic Boundary Refinement for Segmentation", ECCV 2020).

Shapes: ``B`` batch, ``D`` directions, ``H W`` label size, ``h w`` map size. Vectors are ``(x, y)``, y downwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ovenet.geometry import at_least_float32, resize_bilinear, spatial_size
from ovenet.losses.functional import mean
from ovenet.structures import NUM_DIRECTIONS, DirectionOutput
from ovenet.utils.coarse import coarse_threads

BOUNDARY_WIDTH = 5  # γ of the paper, in pixels of the label
_KERNEL_RADIUS = 2  # the released kernel is 5x5
_REACH = math.ceil(BOUNDARY_WIDTH + math.hypot(_KERNEL_RADIUS, _KERNEL_RADIUS))  # what the kernel sees of distances
_MIN_PARALLEL_PIXELS = 2**16  # of a batch, from which one image per thread is faster on a CPU
_SMALLEST_GRADIENT = 1e-3  # below it there is no direction, as in the middle of a line


@dataclass(frozen=True)
class DirectionTargets:
    """Which pixels are near the border of their class, and where its interior is.

    Attributes:
        boundary: ``(B, H, W)`` bool, whether the distance to the nearest pixel of another class is below
            `BOUNDARY_WIDTH`.
        valid: ``(B, H, W)`` bool; False at ignored pixels, which count as another class for those around them.
        directed: ``(B, H, W)`` bool, valid boundary pixels that have a direction.
        direction: ``(B, 2, H, W)`` vectors of length 1 where `directed`.
    """

    boundary: Tensor
    valid: Tensor
    directed: Tensor
    direction: Tensor

    @classmethod
    def from_labels(cls, labels: Tensor, *, ignore_label: int) -> DirectionTargets:
        """Targets of a batch; on a GPU without waiting for it.

        Args:
            labels: ``(B, H, W)`` integer class ids.
            ignore_label: label of ignored pixels.
        """
        labels = labels.to(torch.int16)
        if labels.device.type != "cpu" or labels.numel() < _MIN_PARALLEL_PIXELS:
            return cls._of(labels, ignore_label)
        with coarse_threads() as pool:
            parts = list(pool.map(lambda one: cls._of(one, ignore_label), labels.split(1)))
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    @classmethod
    def _of(cls, labels: Tensor, ignore_label: int) -> DirectionTargets:
        distance = border_distance(labels)
        boundary, valid = distance < BOUNDARY_WIDTH, labels != ignore_label
        gradient = distance_gradient(distance, labels)
        length = torch.hypot(gradient[:, 0], gradient[:, 1])  # norm is slow along the channels
        directed = boundary & valid & (length > _SMALLEST_GRADIENT)
        return cls(boundary, valid, directed, gradient / length.clamp_min(_SMALLEST_GRADIENT).unsqueeze(1))

    @property
    def index(self) -> Tensor:
        """The nearest direction, see `DirectionOutput`, ``(B, H, W)`` int64."""
        angle = torch.atan2(self.direction[:, 1], self.direction[:, 0])
        return (angle * (NUM_DIRECTIONS / math.tau)).round().long() % NUM_DIRECTIONS


def border_distance(labels: Tensor, reach: int = _REACH) -> Tensor:
    """Euclidean distance from each pixel to the nearest one with another label, in pixels.

    Exact up to `reach`, which stands for all longer distances; pixels outside the image have no label. First along
    rows, then over the rows above and below: in a row where the pixel's column has another label, that is the nearest,
    and where it has the same one, the nearest is as far from there as that pixel's own is.

    Args:
        labels: ``(B, H, W)``, of any type.
        reach: number of pixels.

    Returns:
        ``(B, H, W)`` float32, from 1 to `reach`.
    """
    along = torch.full(labels.shape, float(reach), device=labels.device)
    for step in range(1, reach):
        (here, there), (near, far) = _pair(labels, step, 0), _pair(along, step, 0)
        bound = (here == there) * float(reach) + step  # arithmetic: masked operations take ten times as long on a CPU
        torch.minimum(near, bound, out=near)
        torch.minimum(far, bound, out=far)
    along.square_()
    squared = along.clone()
    for step in range(1, reach):
        (here, there), (near, far), (upper, lower) = (_pair(x, 0, step) for x in (labels, along, squared))
        same = here == there
        torch.minimum(upper, far * same + step * step, out=upper)
        torch.minimum(lower, near * same + step * step, out=lower)
    return squared.sqrt_()


def distance_gradient(distance: Tensor, labels: Tensor) -> Tensor:
    """Gradient of the distance within each class: the sum of ``distance · v / |v|²`` over a window.

    ``v`` leads to a pixel of the window. Pixels of other classes, and those outside the image, have distance 0.

    Args:
        distance: ``(B, H, W)``.
        labels: ``(B, H, W)``.

    Returns:
        ``(B, 2, H, W)``, not normalised.
    """
    gradient = torch.zeros_like(distance).unsqueeze(1).repeat(1, 2, 1, 1)
    radius = _KERNEL_RADIUS
    for y in range(radius + 1):
        for x in range(1 if y == 0 else -radius, radius + 1):  # each pair of pixels once
            (here, there), (near, far) = _pair(labels, x, y), _pair(distance, x, y)
            same = here == there
            from_far, from_near = far * same, near * same
            for axis, part in enumerate((x, y)):
                if part:
                    first, second = _pair(gradient[:, axis], x, y)
                    first.add_(from_far, alpha=part / (x * x + y * y))
                    second.sub_(from_near, alpha=part / (x * x + y * y))
    return gradient


def _pair(values: Tensor, x: int, y: int) -> tuple[Tensor, Tensor]:
    """Two views ``(…, H - y, W - |x|)``: pixels, and those `x` to the right and `y` at least 0 down of them."""
    height, width = values.shape[-2:]
    columns = max(width - abs(x), 0)
    left, right = max(-x, 0), max(x, 0)
    upper, lower = values[..., : max(height - y, 0), :], values[..., y:, :]
    return upper[..., left : left + columns], lower[..., right : right + columns]


def direction_losses(
    output: DirectionOutput, labels: Tensor, *, ignore_label: int, align_corners: bool
) -> dict[str, Tensor]:
    """SegFix's two losses, each a scalar, at label size.

    Binary cross-entropy of the boundary, and cross-entropy of the directions of boundary pixels, each class weighted by
    one minus its share of the batch's pixels, as in the released code. That one trains directions where the network
    predicts a boundary, this one where the labels have one, so that both learn from the start.

    Args:
        output: the two predictions.
        labels: ``(B, H, W)`` integer class ids.
        ignore_label: label of ignored pixels.
        align_corners: convention of the upsampling.

    Returns:
        ``boundary`` and ``direction``; the paper adds both with weight 1.
    """
    size = spatial_size(labels)
    boundary, direction = (
        resize_bilinear(at_least_float32(x), size, align_corners=align_corners)
        for x in (output.boundary, output.direction)
    )
    targets = DirectionTargets.from_labels(labels, ignore_label=ignore_label)
    logits = torch.cat((torch.zeros_like(boundary), boundary), dim=1)
    return {
        "boundary": _balanced_cross_entropy(logits, targets.boundary.long(), targets.valid),
        "direction": _balanced_cross_entropy(direction, targets.index, targets.directed),
    }


def _balanced_cross_entropy(logits: Tensor, index: Tensor, valid: Tensor) -> Tensor:
    """Weighted mean over the valid pixels; the weight of a class is one minus its share of them."""
    counts = torch.stack([((index == k) & valid).sum() for k in range(logits.shape[1])]).to(logits.dtype)
    weights = (1 - counts / counts.sum().clamp_min(1))[index] * valid
    losses = -logits.log_softmax(dim=1).gather(1, index.unsqueeze(1)).squeeze(1)
    return mean((losses * weights).sum(), weights.sum())


def interior_loss(offset: Tensor, labels: Tensor, *, ignore_label: int) -> tuple[Tensor, Tensor]:
    """Loss of the offsets of boundary pixels that turns them towards the interior of the pixel's own class.

    ``1 - o · u / sqrt(|o|² + 1)`` for an offset ``o`` in pixels and the direction ``u``: one minus the cosine for long
    offsets, and smooth at 0, where the loss is 1 and pulls along ``u``.

    Args:
        offset: ``(B, 2, H, W)`` in normalised units, at label size.
        labels: ``(B, H, W)`` integer class ids.
        ignore_label: label of ignored pixels.

    Returns:
        The sum over the directed pixels (see `DirectionTargets`), and their number.
    """
    targets = DirectionTargets.from_labels(labels, ignore_label=ignore_label)
    height, width = spatial_size(labels)
    x, y = (offset[:, axis] * (max(n - 1, 1) / 2) for axis, n in ((0, width), (1, height)))
    along = x * targets.direction[:, 0] + y * targets.direction[:, 1]
    losses = 1 - along / (x.square() + y.square() + 1).sqrt()
    return (losses * targets.directed).sum(), targets.directed.sum().to(losses.dtype)
