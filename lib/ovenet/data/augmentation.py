"""Augmentation and normalisation of whole batches on the device: flips, brightness, colours.

The loading processes draw the numbers, a row of `Batch.changes` for each sample, and hand over the crops as bytes; the
device applies them. Shapes are fixed, nothing depends on values, and nothing is copied from the host, so that CUDA
graphs can capture it. Photometric distortion is that of SSD (Liu et al., 2016) and mmsegmentation, with hue and
saturation in OpenCV's 8-bit HSV.

Columns of the changes, in order of application: 0 flip (0 or 1), 1 brightness shift (integer grey levels); with
photometric distortion also 2 brightness (grey levels), 3 contrast before the colours, 4 saturation, 5 hue (steps of 2
degrees), 6 contrast after the colours (factors). ``B H W`` are batch and crop.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ovenet.data.transforms import normalize_images
from ovenet.structures import Batch, Normalization, Sample

NUM_HUES = 180  # OpenCV's
_HUES_PER_SECTOR = NUM_HUES // 6
_OPENCV_ONE = 2**12  # OpenCV's fixed-point numbers in colour conversions


def augment_and_normalize(batch: Batch, normalization: Normalization) -> tuple[Tensor, Tensor]:
    """The network's input and its targets.

    Args:
        batch: on the device.
        normalization: of the backbone.

    Returns:
        Images ``(B, 3, H, W)`` float32 and labels ``(B, H, W)``, augmented.
    """
    images, labels = batch.images, batch.labels
    if batch.changes is not None:
        images, labels = augment(images, labels, batch.changes)
    return normalize_images(images, normalization), labels


def augment(images: Tensor, labels: Tensor, changes: Tensor) -> tuple[Tensor, Tensor]:
    """Images and labels with their changes applied.

    Args:
        images: ``(B, C, H, W)`` uint8, fastest with channels last; RGB with photometric distortion.
        labels: ``(B, H, W)`` integers; flipped samples already have the classes of the flipped image.
        changes: ``(B, 2)`` or, with photometric distortion, ``(B, 7)`` float32, see the module.

    Returns:
        Integer grey levels from 0 to 255 ``(B, C, H, W)`` as float32, channels last, and the labels.
    """
    columns = changes.view(*changes.shape, 1, 1).unbind(1)  # each (B, 1, 1)
    flip = columns[0]
    labels = _select(labels.flip(-1), labels, flip)
    pixels = images.permute(0, 2, 3, 1)  # (B, H, W, C): all but the colours runs along long rows
    rows = _select(pixels.flip(2).flatten(2), pixels.flatten(2), flip)
    levels = rows.float().add_(columns[1]).clamp_(0, 255)
    levels = levels.view(pixels.shape)
    if len(columns) > 2:
        levels = _distort(levels.permute(3, 0, 1, 2).contiguous(), *columns[2:]).permute(1, 2, 3, 0).contiguous()
    return levels.permute(0, 3, 1, 2), labels


def _select(changed: Tensor, plain: Tensor, share: Tensor) -> Tensor:
    """`changed` where `share` is 1, `plain` where it is 0, in place of `changed`.

    Integers are mixed bitwise, which takes a tenth of the time of `torch.where` on the CPU.
    """
    mask = share.to(plain.dtype).neg()
    return changed.bitwise_xor_(plain).bitwise_and_(mask).bitwise_xor_(plain)


def _distort(
    levels: Tensor, brightness: Tensor, contrast_first: Tensor, saturation: Tensor, hue: Tensor, contrast_last: Tensor
) -> Tensor:
    """Changes the colours of `levels`, ``(3, B, H, W)``, in place, rounding after each change; see the module."""
    levels.add_(brightness).clamp_(0, 255).floor_()
    levels.mul_(contrast_first).clamp_(0, 255).floor_()
    _recolor(levels, saturation, hue)
    return levels.mul_(contrast_last).clamp_(0, 255).floor_()


def _recolor(levels: Tensor, saturation: Tensor, hue: Tensor) -> None:
    """Changes saturation and hue of ``(3, B, H, W)`` in place; samples that keep both stay exactly the same.

    Hues are rounded to 2 degrees and saturations to 1/255 as in OpenCV, which is visible. The way back rounds to the
    nearest grey level, as OpenCV's formula does; its vector instructions truncate there.
    """
    hues, saturations, values = _to_hsv(levels)
    sectors = hues.add_(hue).remainder_(NUM_HUES).div_(_HUES_PER_SECTOR)  # 0 to 6
    chroma = saturations.mul_(saturation).clamp_(0, 255).floor_().mul_(values).div_(255)
    is_changed = ((saturation != 1) | (hue != 0)).float()
    red, green, blue = levels
    for channel, lack in (
        (red, (sectors - 3).abs_().neg_().add_(2)),
        (green, (sectors - 2).abs_().sub_(1)),
        (blue, (sectors - 4).abs_().sub_(1)),
    ):
        colored = lack.clamp_(0, 1).mul_(chroma).neg_().add_(values).round_()
        channel.add_(colored.sub_(channel).mul_(is_changed))  # exact: integers


def _to_hsv(levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue modulo 180, saturation and value 0 to 255, each ``(B, H, W)``, bitwise equal to OpenCV's integers."""
    red, green, blue = levels
    values = torch.maximum(red, green).clamp_(min=blue)
    spread = values - torch.minimum(red, green).clamp_(max=blue)
    saturations = _times_ratio(spread, 255, values)
    from_green, from_blue = (blue - red).add_(spread, alpha=2), (red - green).add_(spread, alpha=4)
    hues = torch.where(values == red, green - blue, torch.where(values == green, from_green, from_blue))
    return _times_ratio(hues, _HUES_PER_SECTOR, spread), saturations, values


def _times_ratio(numbers: Tensor, numerator: int, denominators: Tensor) -> Tensor:
    """``numbers · numerator / denominators`` in OpenCV's fixed-point arithmetic; each step is exact in float32."""
    ratios = torch.reciprocal(denominators.clamp(min=1)).mul_(numerator * _OPENCV_ONE).round_()
    return ratios.mul_(numbers).add_(_OPENCV_ONE // 2).div_(_OPENCV_ONE).floor_()


def apply_changes(sample: Sample) -> Sample:
    """A sample with its changes applied, as the network sees it before normalisation."""
    if sample.changes is None or sample.labels is None:
        return sample
    image = torch.from_numpy(sample.image).permute(2, 0, 1)[None]
    levels, labels = augment(image, torch.from_numpy(sample.labels)[None], torch.from_numpy(sample.changes)[None])
    pixels = levels[0].permute(1, 2, 0).to(torch.uint8).numpy()
    return Sample(pixels, labels[0].numpy(), sample.name, sample.problem)
